"""One target's evidence, gathered step by step into its part of the report; `verdict.py` decides what it comes to."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from gptoss_adapters.backends import Backend
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.parity.deviations import KnownDeviation, known_deviations
from gptoss_adapters.parity.faults.table import find_fault
from gptoss_adapters.parity.logits.attribution import Evidence, Sweep, certify, rank_suspects, to_suspects
from gptoss_adapters.parity.logits.behaviour import check_greedy, check_structure
from gptoss_adapters.parity.logits.judge import Flat, Judged, estimate_amount, judge_values, to_families
from gptoss_adapters.parity.logits.layers import check_forced_routing, compare_layers
from gptoss_adapters.parity.logits.measure import Record, Reference
from gptoss_adapters.parity.logits.metrics import F64, histogram
from gptoss_adapters.parity.logits.probes import FAMILIES, Prompt
from gptoss_adapters.parity.logits.ties import Ties
from gptoss_adapters.parity.noise.nulls import Noise
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.measurements import Strip
from gptoss_adapters.parity.report.schema import Deviation, TargetResult
from gptoss_adapters.parity.text.text_layer import check_text_layer
from gptoss_adapters.parity.text.tool_calls import check_tool_calls
from gptoss_adapters.parity.verdict import LogitFindings, list_failures, tell_status
from gptoss_adapters.reference.model import GptOss

STRIP_FAMILIES = ("long", "far", "harmony")


class Case:
    """A target beside the reference: the logits are judged at once, the rest when it is asked for.

    judged: against the plain reference; base: against the one that carries the known deviations (`carried`) of this
    engine, unless the logits say that they are absent.
    """

    def __init__(
        self, backend: Backend, reference: Reference, noise: Noise, record: Record, result: TargetResult
    ) -> None:
        self.backend = backend
        self.reference = reference
        self.noise = noise
        self.record, self.result = record, result
        self.carried: tuple[str, ...] = ()
        self.model = reference.model
        self.fault_present = False
        self.plain = self._truth(reference.model)
        self.flat = Flat.of(record, ties=self._ties(reference.model, self.plain))
        self.nulls = np.stack([np.concatenate(n) for n in record.nulls])
        self.judged = self.base = judge_values(self.flat, self.plain)
        self._judge_with_deviations()
        self._fill_in_logits()

    def _judge_with_deviations(self) -> None:
        known = [
            k
            for k in known_deviations(self.backend.info.arithmetic)
            if find_fault(k.fault).applies(self.reference.model)
        ]
        if not known:
            return
        carried = tuple(k.fault for k in known)
        model = self.reference.carrying(carried)
        truth = self._truth(model)
        # other positions are ties with the deviation
        with_it = judge_values(replace(self.flat, ties=self._ties(model, truth)), truth)
        self.result.deviations = [self._deviation(k, truth, with_it) for k in known]
        if self.result.deviations[0].status != schema.ABSENT:
            self.base = with_it
            self.model = model
            self.carried = carried

    def _ties(self, model: GptOss, truth: F64) -> Ties:
        """truth: of that model, [N, S]."""
        parts = np.split(truth, np.cumsum([len(v) for v in self.record.values])[:-1])
        return Ties(model, self.noise, self.record.prompts, self.record.ids, parts)

    def _truth(self, model: GptOss) -> F64:
        """[N, S]"""
        with torch.inference_mode():
            hidden = self.reference.hidden(model, self.record.prompts)
            pairs = zip(hidden, self.record.ids, strict=True)
            return np.concatenate([self.reference.values(h, ids) for h, ids in pairs])

    def _deviation(self, known: KnownDeviation, truth: F64, with_it: Judged) -> Deviation:
        found = estimate_amount(self.flat.values - self.plain, truth - self.plain, self.nulls, self.flat.energy)
        return Deviation(
            known.fault,
            tell_status(found.present, found.absent),
            self.backend.info.engine,
            known.versions,
            known.source,
            known.effect,
            self.judged.worst,
            with_it.worst,
            resolvable_from=self._resolvable_from(truth),
            longest_position=max(len(p.ids) for p in self.record.prompts) - 1,
            coefficient=found.coefficient,
            coefficient_sd=found.chance,
        )

    def _resolvable_from(self, truth: F64) -> int | None:
        """The first position from which on the effect, seen over at least 16 positions of a prompt, can be told
        from noise.
        """
        found = [self._first_resolvable(truth, begin, end) for begin, end in pairwise(self.flat.starts)]
        return min((first for first in found if first is not None), default=None)

    def _first_resolvable(self, truth: F64, begin: int, end: int) -> int | None:
        for first in range(0, max(end - begin - 16, 0) + 1, 16):
            part = slice(begin + first, min(begin + first + 16, end))
            effect = (truth - self.plain)[part]
            if not (effect**2).any():
                continue
            if estimate_amount(effect, effect, self.nulls[:, part], self.flat.energy[:, part]).resolvable:
                return first
        return None

    def _fill_in_logits(self) -> None:
        result, record = self.result, self.record
        result.families = to_families(record, self.judged, FAMILIES)
        result.worst_excess, result.first_divergent = self.judged.worst, self.base.first_divergent
        own = np.concatenate([p["kl"] for p in record.positions])
        null = np.concatenate([p["kl"] for p in next(iter(record.null_positions.values()))])
        result.kl_histogram = histogram(own, null)
        result.strips = [
            self._strip(i, p) for i, p in enumerate(record.prompts) if p.family in STRIP_FAMILIES and p.index == 0
        ]

    def _strip(self, i: int, prompt: Prompt) -> Strip:
        c = self.reference.config
        ticks = {
            str(p): label
            for p, label in ((c.sliding_window, "W"), (c.initial_context_length, "original context"))
            if p < len(prompt.ids)
        }
        nulls = [positions[i] for positions in self.record.null_positions.values()]
        own = self.record.positions[i]
        made = Strip(prompt.family, prompt.index, own["nmse"].tolist(), own["kl"].tolist(), ticks=ticks)
        made.null_nmse, made.null_kl = (np.median([n[name] for n in nulls], 0).tolist() for name in ("nmse", "kl"))
        return made

    def check_behaviour(self, chunked: bool) -> None:
        """Known deviations change how far a token's influence is felt, and what is chosen: the reference that carries
        them is asked. chunked: start the engine a second time, with other prefill steps.
        """
        same = self.reference.with_model(self.model)
        self.result.structural = check_structure(self.backend, same, self.record, self.base, chunked)
        self.result.greedy = check_greedy(self.backend, same, self.record, self.noise)

    def check_text(self, checkpoint: Checkpoint) -> None:
        """Tokenizer, chat template and tool calls."""
        self.result.text_layer = check_text_layer(checkpoint, self.backend)
        self.result.tool_calls = check_tool_calls(checkpoint, self.backend)

    def look_inside(self) -> None:
        """Layer by layer, and with the reference's experts forced, where the engine has taps."""
        if not self.backend.info.capabilities.taps:
            return
        prompts = self.record.prompts
        index = max(range(len(prompts)), key=lambda i: (prompts[i].family == "long", len(prompts[i].ids)))
        with torch.inference_mode():
            self.result.layers = compare_layers(
                self.backend, self.reference, self.model, self.noise, prompts[index], index
            )
            self.result.structural.append(
                check_forced_routing(self.backend, self.reference, self.model, self.noise, prompts)
            )

    def attribute(self, sweep: Sweep) -> None:
        """Which fault it is, and which this run would have seen. sweep: over the reference with `carried`."""
        evidence = Evidence.of(sweep, self.record, self.noise, self.flat.ties)
        found = rank_suspects(evidence, self.base)
        self.fault_present = any(f.amount.present for f in found)
        self.result.certificate = certify(evidence)
        if self.findings().differ or list_failures(self.result):
            self.result.suspects = to_suspects(found)

    def findings(self) -> LogitFindings:
        # the first null is the reference in the target's own precision
        bitwise = np.array_equal(self.flat.values - self.plain, self.nulls[0])
        return LogitFindings(self.judged.worst, self.base.worst, self.base.failed, self.fault_present, bitwise)
