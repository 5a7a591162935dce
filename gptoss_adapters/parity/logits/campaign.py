"""Seeded faults in noisy implementations, many at once: how well a set of probes sees them. For tests and
`bench/parity_faults.py`.

Fault and noise are in the same run: the fault is put into a null implementation (other than those that make the floor),
and the judgement sees its logits alone, as it would an engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.faults.table import CONTROL, all_faults
from gptoss_adapters.parity.logits.judge import Flat, estimate_amount, judge_values
from gptoss_adapters.parity.logits.measure import Record, Reference
from gptoss_adapters.parity.logits.metrics import F64, centre
from gptoss_adapters.parity.logits.probes import Prompt, make_prompts, read_embedding_norms
from gptoss_adapters.parity.logits.ties import Ties
from gptoss_adapters.parity.noise.nulls import Noise, Null, Rope32, realisations, split
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.taps import Taps


@dataclass
class Outcome:
    """excess: by size (judge), projection: by direction (amount), caught: either. alarms: other faults that seem to
    stand in it.
    """

    fault: str
    excess: float
    failed: bool
    coefficient: float
    present: bool

    @property
    def caught(self) -> bool:
        return self.failed or self.present


class Campaign:
    """One checkpoint, one noise class, one set of prompts. forced: every run uses the reference's experts."""

    def __init__(self, checkpoint: Checkpoint, noise: Noise, seed: int = 0, forced: bool = False) -> None:
        self.reference, self.noise = Reference(checkpoint), noise
        self.prompts = make_prompts(checkpoint.config, read_embedding_norms(checkpoint), seed)
        self.groups = _groups(self.prompts)
        self.forced = [self._experts(ids) for ids, _ in self.groups] if forced else None
        self.order = [self.prompts[i] for _, at in self.groups for i in at]
        with torch.inference_mode():
            self.truth = self.values(self.reference.model)
            nulls = [self.values(null.apply(self.reference.model)) - self.truth for null in realisations(noise)]
        sizes = np.cumsum([len(p.ids) for p in self.order])[:-1]
        self.nulls = np.stack(nulls)
        self.record = Record(self.order, values=np.split(self.truth, sizes), nulls=[np.split(n, sizes) for n in nulls])
        ids = [self.reference.sample for _ in self.order]
        ties = None if forced else Ties(self.reference.model, noise, self.order, ids, self.record.values)
        self.flat = Flat.of(self.record, ties=ties)
        self.effects = {f.name: self.values(f.apply(self.reference.model)) - self.truth for f in self._faults()}

    def values(self, model: GptOss) -> F64:
        """[N, S] centred logits of any variant, prompts in `order`."""
        rows = torch.from_numpy(self.reference.sample)
        out = []
        for n, (ids, _) in enumerate(self.groups):
            taps = Taps(forced=self.forced[n]) if self.forced else None
            y = model.head(model.hidden(ids, taps=taps), rows)
            out.append(y.double().flatten(0, 1).numpy())
        return centre(np.concatenate(out))

    def run(self, fault: Fault | None, seed: int = 11) -> Outcome:
        """One noisy run with this fault in it, or a clean one. Another seed is another realisation of the noise."""
        model = fault.apply(self.reference.model) if fault else self.reference.model
        null = Null("target", self.noise, split, Rope32, 2.0**-12 if self.noise.rounds else 2.0**-24, seed)
        values = self.values(null.apply(model))
        judged, error = judge_values(self.flat, self.truth, values), values - self.truth
        if fault is CONTROL:
            return Outcome(CONTROL.name, judged.worst, judged.failed, 0.0, bool(self.alarms(error)))
        if fault is None:
            alarms = self.alarms(error)
            return Outcome(", ".join(alarms), judged.worst, judged.failed, 0.0, bool(alarms))
        a = estimate_amount(error, self.effects[fault.name], self.nulls, self.flat.energy)
        return Outcome(fault.name, judged.worst, judged.failed, a.coefficient, a.present)

    def alarms(self, error: F64) -> list[str]:
        """Faults whose effect seems to stand in an error."""
        return [
            name
            for name, effect in self.effects.items()
            if estimate_amount(error, effect, self.nulls, self.flat.energy).present
        ]

    def all_runs(self) -> list[Outcome]:
        return [self.run(f) for f in self._faults()]

    def _faults(self) -> list[Fault]:
        return [f for f in all_faults().values() if f.applies(self.reference.model)]

    def _experts(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        taps = Taps()
        with torch.inference_mode():
            self.reference.model.hidden(ids, taps=taps)
        return taps.experts


def _groups(prompts: Sequence[Prompt]) -> list[tuple[torch.Tensor, list[int]]]:
    lengths: dict[int, list[int]] = {}
    for i, p in enumerate(prompts):
        lengths.setdefault(len(p.ids), []).append(i)
    return [(torch.tensor([prompts[i].ids for i in at]), at) for at in lengths.values()]


def op_level_gate(model: GptOss, other: GptOss) -> float:
    """The op-level probe: the activation alone on gates far below the clamp. Largest difference, absolute."""
    from gptoss_adapters.parity.noise.variants import experts

    layers = [next(experts(m)) for m in (model, other)]
    h = torch.tensor([[-20.0, 1.0, -9.0, 3.0]], dtype=model.dtype)
    a, b = (layer.ops.swiglu(h, layer.config.swiglu_alpha, layer.config.swiglu_limit) for layer in layers)
    return float((a - b).abs().max())
