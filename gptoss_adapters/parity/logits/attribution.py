"""Which fault is it? Every known fault is put into the reference and its logits are compared with the target's.

The sweep of all faults over this run's prompts is the fault dictionary; it also makes the sensitivity certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptoss_adapters.parity.faults.experts import W1ScaleOff1OneExpert
from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.faults.files import file_faults
from gptoss_adapters.parity.faults.table import CONTROL, all_faults
from gptoss_adapters.parity.logits.judge import Amount, Flat, Judged, estimate_amount, judge_values
from gptoss_adapters.parity.logits.measure import Record, Reference, values_at
from gptoss_adapters.parity.logits.metrics import F64, TINY
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.logits.ties import Ties
from gptoss_adapters.parity.noise.nulls import Noise, realisations
from gptoss_adapters.parity.report.schema import LOOK_EXCESS, Certificate, CertifiedFault, Suspect
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.taps import Taps

SHOWN = 5  # suspects in a report
EXPERTS = 4  # (layer, expert) pairs that are tried for a fault of one expert
CONFIRM = 4  # suspects that are applied and judged with nulls of their own
BIASED = 1.0  # mean log10 excess above which the size of the error speaks; below, only its direction


@dataclass
class Sweep:
    """Every fault's hidden states over these prompts, [T, H] each. base: the model that they were put into."""

    reference: Reference
    base: GptOss
    prompts: list[Prompt]
    plain: list[torch.Tensor]
    faults: dict[str, tuple[Fault, list[torch.Tensor]]]
    skipped: list[Fault]

    @classmethod
    def run(
        cls, reference: Reference, base: GptOss, prompts: Sequence[Prompt], tick: Callable[[], None] = lambda: None
    ) -> Sweep:
        with torch.inference_mode():
            sweep = cls(reference, base, list(prompts), reference.hidden(base, prompts), {}, [])
            for fault in (CONTROL, *all_faults().values(), *file_faults(len(base.layers))):
                sweep.add(fault)
                tick()
        return sweep

    def add(self, fault: Fault) -> None:
        if not fault.applies(self.base):
            self.skipped.append(fault)
            return
        key = f"{fault.name}: {fault.label}"
        if key in self.faults:
            return
        with torch.inference_mode():
            self.faults[key] = fault, self.reference.hidden(fault.apply(self.base), self.prompts)

    def values(self, hidden: Sequence[torch.Tensor], record: Record) -> F64:
        """[N, S] at the record's ids; the record's prompts, or longer ones that they begin, must be among the
        sweep's.
        """
        at = {(p.family, p.index): i for i, p in enumerate(self.prompts)}
        if all(ids.ndim == 1 for ids in record.ids):  # one sample of the vocabulary for all
            whole = torch.cat([hidden[at[p.family, p.index]][: len(p.ids)] for p in record.prompts])
            return self.reference.values(whole, record.ids[0])
        parts = [
            self.reference.values(hidden[at[p.family, p.index]][: len(p.ids)], ids)
            for p, ids in zip(record.prompts, record.ids, strict=True)
        ]
        return np.concatenate(parts)


@dataclass
class Found:
    """One fault against one target."""

    fault: Fault
    judged: Judged
    amount: Amount
    values: F64
    score: float = 0.0
    confirmed: bool = False


@dataclass
class Evidence:
    """One target's record, laid flat, beside a sweep: what all of its faults are compared with."""

    sweep: Sweep
    record: Record
    noise: Noise
    flat: Flat
    plain: F64  # [N, S]
    nulls: F64  # [R, N, S]

    @classmethod
    def of(cls, sweep: Sweep, record: Record, noise: Noise, ties: Ties | None = None) -> Evidence:
        nulls = np.stack([np.concatenate(n) for n in record.nulls])
        return cls(sweep, record, noise, Flat.of(record, ties=ties), sweep.values(sweep.plain, record), nulls)


def rank_suspects(evidence: Evidence, base: Judged) -> list[Found]:
    """All faults, the likeliest first; the first few are confirmed or not. base: the target judged without any
    fault.
    """
    _add_experts(evidence)
    found = [_found(evidence, base, *entry) for entry in evidence.sweep.faults.values() if entry[0] is not CONTROL]
    found.sort(key=lambda f: -f.score)
    for f in found[:CONFIRM]:
        f.confirmed = f.score > 0 and _confirm(evidence, f, found)
    return sorted(found, key=lambda f: (not f.confirmed, -f.score))


def _found(evidence: Evidence, base: Judged, fault: Fault, hidden: list[torch.Tensor]) -> Found:
    values, flat = evidence.sweep.values(hidden, evidence.record), evidence.flat
    judged = judge_values(flat, values)
    a = estimate_amount(flat.values - evidence.plain, values - evidence.plain, evidence.nulls, flat.energy)
    found = Found(fault, judged, a, values)
    if base.log_excess >= BIASED:
        found.score = max(0.0, 1 - judged.log_excess / base.log_excess)
    elif a.present:
        found.score = max(0.0, 1 - abs(1 - a.coefficient))
    return found


def _confirm(evidence: Evidence, f: Found, others: Sequence[Found]) -> bool:
    """Whether with this fault in the reference nothing is left: no family fails, and no other fault stands in what
    remains.
    """
    broken = f.fault.apply(evidence.sweep.base)
    with torch.inference_mode():
        nulls = [
            _null_errors(evidence, null.apply(broken), f.values) for null in list(realisations(evidence.noise))[:3]
        ]
    flat = Flat.of(evidence.record, nulls)
    f.judged = judge_values(flat, f.values)
    if f.judged.failed or f.judged.worst > LOOK_EXCESS or not (f.amount.present or f.score > 0.5):
        return False
    rest, errors = flat.values - f.values, np.stack([np.concatenate(n) for n in nulls])
    return not any(
        estimate_amount(rest, g.values - evidence.plain, errors, flat.energy).present
        for g in others
        if g.fault.name != f.fault.name
    )


def _null_errors(evidence: Evidence, null: GptOss, truth: F64) -> list[F64]:
    out = []
    record, starts = evidence.record, evidence.flat.starts
    for i, (prompt, ids) in enumerate(zip(record.prompts, record.ids, strict=True)):
        hidden = null.hidden(torch.tensor([prompt.ids]))[0]
        out.append(values_at(null, hidden, ids) - truth[starts[i] : starts[i + 1]])
    return out


def _add_experts(evidence: Evidence) -> None:
    """One expert may be wrong: which, is told by the positions that were routed to it, whose error is larger than
    the others'.
    """
    sweep = evidence.sweep
    record = evidence.record
    flat = evidence.flat
    if not W1ScaleOff1OneExpert().applies(sweep.base):
        return
    error = np.log(
        np.maximum(((flat.values - evidence.plain) ** 2).sum(-1), TINY) / np.maximum(np.median(flat.energy, 0), TINY)
    )
    routing = [_experts(sweep.base, p) for p in record.prompts]
    candidates = []
    for layer in range(len(sweep.base.layers)):
        chosen = np.concatenate([r[layer] for r in routing])
        for expert in range(sweep.base.config.experts_of(layer)):
            routed = (chosen == expert).any(-1)
            if 0 < routed.sum() < len(routed):
                candidates.append((float(error[routed].mean() - error[~routed].mean()), layer, expert))
    for _, layer, expert in sorted(candidates, reverse=True)[:EXPERTS]:
        for step in (-1, 1):
            sweep.add(W1ScaleOff1OneExpert(layer, expert, step))


def _experts(model: GptOss, prompt: Prompt) -> list[np.ndarray]:
    taps = Taps()
    model.hidden(torch.tensor([prompt.ids]), taps=taps)
    return [chosen[0].numpy() for chosen in taps.experts]


def to_suspects(found: Sequence[Found]) -> list[Suspect]:
    return [
        Suspect(
            f.fault.name,
            f.confirmed,
            round(f.score, 4),
            f.fault.part,
            f.fault.label,
            f.judged.worst,
            f.amount.coefficient,
            f.amount.chance,
        )
        for f in found[:SHOWN]
        if f.score > 0
    ]


def certify(evidence: Evidence) -> Certificate:
    """What this run's prompts would have shown of each of the 41 faults above one target's noise."""
    sweep = evidence.sweep
    flat = evidence.flat
    plain = evidence.plain
    made = Certificate(str(evidence.noise))
    numbers = all_faults()
    for fault, hidden in sweep.faults.values():
        if fault is not CONTROL and (fault.name not in numbers or any(c.fault == fault.name for c in made.faults)):
            continue
        values = sweep.values(hidden, evidence.record)
        judged, effect = judge_values(flat, plain, values), values - plain
        by = ""
        if judged.failed:
            by = "excess"
        elif (effect**2).any() and estimate_amount(effect, effect, evidence.nulls, flat.energy).resolvable:
            by = "projection"
        if fault is CONTROL:
            made.control = judged.worst
        else:
            family = max(judged.families, key=lambda n: judged.families[n].worst)
            nmse = max(f.observed["nmse_mean"] for f in judged.families.values())
            made.faults.append(
                CertifiedFault(
                    fault.name, fault.part, fault.what, nmse, judged.worst, bool(by), family, judged.first_divergent, by
                )
            )
    for fault in sweep.skipped:
        if fault.name in numbers:
            made.faults.append(CertifiedFault(fault.name, fault.part, fault.what, None, None, False, applies=False))
    order = list(numbers)
    made.faults.sort(key=lambda c: order.index(c.fault))
    made.caught, made.total = sum(c.caught for c in made.faults), sum(c.applies for c in made.faults)
    return made
