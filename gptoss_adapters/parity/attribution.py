"""Which fault is it? Every known fault is put into the reference and its logits are compared with the target's.

The sweep of all faults over this run's prompts is the fault dictionary; it also makes the sensitivity certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptoss_adapters.model import GptOss, Taps
from gptoss_adapters.parity.faults import CONTROL, Fault, all_faults
from gptoss_adapters.parity.faults_experts import W1ScaleOff1OneExpert
from gptoss_adapters.parity.faults_files import file_faults
from gptoss_adapters.parity.judge import Amount, Judged, amount, judge
from gptoss_adapters.parity.measure import Record, Reference
from gptoss_adapters.parity.metrics import F64
from gptoss_adapters.parity.nulls import Noise, realisations
from gptoss_adapters.parity.probes import Prompt
from gptoss_adapters.parity.schema import LOOK_EXCESS, Certificate, CertifiedFault, Suspect

SHOWN = 5  # suspects in a report
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
    def run(cls, reference: Reference, base: GptOss, prompts: Sequence[Prompt], tick: Callable[[], None] = lambda: None) -> Sweep:
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
        with fault(self.base) as broken, torch.inference_mode():
            self.faults[f"{fault.name}: {fault.label}"] = fault, self.reference.hidden(broken, self.prompts)

    def values(self, hidden: Sequence[torch.Tensor], record: Record) -> list[F64]:
        """At the record's ids; the record's prompts must be among the sweep's."""
        at = {(p.family, p.index): i for i, p in enumerate(self.prompts)}
        return [self.reference.values(hidden[at[p.family, p.index]][: len(p.ids)], ids) for p, ids in zip(record.prompts, record.ids, strict=True)]


@dataclass
class Found:
    """One fault against one target."""

    fault: Fault
    judged: Judged
    amount: Amount
    values: list[F64]
    score: float = 0.0
    confirmed: bool = False


def suspects(sweep: Sweep, record: Record, base: Judged, noise: Noise) -> list[Found]:
    """All faults, the likeliest first; the first few are confirmed or not. base: the target judged without any fault."""
    plain = sweep.values(sweep.plain, record)
    _add_experts(sweep, record, plain)
    error, nulls = np.concatenate(record.values) - np.concatenate(plain), [np.concatenate(n) for n in record.nulls]
    found = [_found(sweep, record, base, plain, error, nulls, *entry) for entry in sweep.faults.values() if entry[0] is not CONTROL]
    found.sort(key=lambda f: -f.score)
    for f in found[:CONFIRM]:
        f.confirmed = f.score > 0 and _confirm(sweep, record, f, found, plain, noise)
    return sorted(found, key=lambda f: (not f.confirmed, -f.score))


def _found(sweep: Sweep, record: Record, base: Judged, plain: list[F64], error: F64, nulls: list[F64], fault: Fault, hidden: list[torch.Tensor]) -> Found:
    values = sweep.values(hidden, record)
    judged = judge(record, values, record.nulls)
    a = amount(error, np.concatenate(values) - np.concatenate(plain), nulls)
    found = Found(fault, judged, a, values)
    if base.log_excess >= BIASED:
        found.score = max(0.0, 1 - judged.log_excess / base.log_excess)
    elif a.present:
        found.score = max(0.0, 1 - abs(1 - a.coefficient))
    return found


def _confirm(sweep: Sweep, record: Record, f: Found, others: Sequence[Found], plain: list[F64], noise: Noise) -> bool:
    """Whether with this fault in the reference nothing is left: no family fails, and no other fault stands in what remains."""
    with f.fault(sweep.base) as broken, torch.inference_mode():
        nulls = [_null_errors(sweep, record, null.apply(broken), null.cache, f.values) for null in list(realisations(noise))[:3]]
    judged = judge(record, f.values, nulls)
    f.judged = judged
    if judged.failed or judged.worst > LOOK_EXCESS or not (f.amount.present or f.score > 0.5):
        return False
    rest = np.concatenate(record.values) - np.concatenate(f.values)
    flat, whole = [np.concatenate(n) for n in nulls], np.concatenate(plain)
    return not any(amount(rest, np.concatenate(g.values) - whole, flat).present for g in others if g.fault.name != f.fault.name)


def _null_errors(sweep: Sweep, record: Record, null: GptOss, cache: Callable[[GptOss], object], truth: list[F64]) -> list[F64]:
    out = []
    for prompt, ids, z in zip(record.prompts, record.ids, truth, strict=True):
        hidden = null.hidden(torch.tensor([prompt.ids]), cache=cache(null))[0]  # type: ignore[arg-type]
        rows = torch.from_numpy(np.ascontiguousarray(ids))
        if ids.ndim == 1:
            y = null.linear(hidden, null.unembedding[rows], None)
        else:
            y = torch.stack([null.linear(h, null.unembedding[r], None) for h, r in zip(hidden, rows, strict=True)])
        values = y.double().numpy()
        out.append(values - values.mean(-1, keepdims=True) - z)
    return out


def _add_experts(sweep: Sweep, record: Record, plain: list[F64]) -> None:
    """One expert may be wrong: which, is told by the one-token prompts that differ, beside what each of them was routed to."""
    if not W1ScaleOff1OneExpert().applies(sweep.base):
        return
    singles = [i for i, p in enumerate(record.prompts) if p.family == "single"]
    if not singles:
        return
    ids = torch.tensor([record.prompts[i].ids for i in singles])
    taps = Taps()
    sweep.base.hidden(ids, taps=taps)
    error = np.array([((record.values[i] - plain[i]) ** 2).sum() for i in singles])
    noise = np.array([max(((n[i]) ** 2).sum() for n in record.nulls) for i in singles])
    wrong = error > 10 * noise
    if not 0 < wrong.mean() < 0.9:
        return
    candidates = []
    for layer, chosen in enumerate(taps.experts):
        for expert in range(sweep.base.config.num_experts):
            routed = (chosen[:, -1] == expert).any(-1).numpy()
            candidates.append((float((routed & wrong).sum() / max((routed | wrong).sum(), 1)), layer, expert))
    for _, layer, expert in sorted(candidates, reverse=True)[:4]:
        for step in (-1, 1):
            sweep.add(W1ScaleOff1OneExpert(layer, expert, step))


def to_schema(found: Sequence[Found]) -> list[Suspect]:
    return [
        Suspect(f.fault.name, f.confirmed, round(f.score, 4), f.fault.part, f.fault.label, f.judged.worst, f.amount.coefficient, f.amount.chance)
        for f in found[:SHOWN]
        if f.score > 0
    ]


def certificate(sweep: Sweep, record: Record, noise: Noise) -> Certificate:
    """What this run's prompts would have shown of each of the 41 faults above one target's noise."""
    plain = sweep.values(sweep.plain, record)
    nulls = [np.concatenate(n) for n in record.nulls]
    made = Certificate(str(noise))
    numbers = {f.name for f in all_faults().values()}
    for fault, hidden in sweep.faults.values():
        values = sweep.values(hidden, record)
        pretend = Record(record.prompts, record.ids, values)
        judged = judge(pretend, plain, record.nulls)
        effect = np.concatenate(values) - np.concatenate(plain)
        by = "excess" if judged.failed else "projection" if amount(effect, effect, nulls).resolvable and (effect**2).any() else ""
        if fault is CONTROL:
            made.control = judged.worst
        elif fault.name in numbers and not any(c.fault == fault.name for c in made.faults):
            family = max(judged.families, key=lambda n: judged.families[n].worst)
            nmse = max(f.observed["nmse_mean"] for f in judged.families.values())
            made.faults.append(CertifiedFault(fault.name, fault.part, fault.what, nmse, judged.worst, bool(by), family, judged.first_divergent, by))
    for fault in sweep.skipped:
        if fault.name in numbers:
            made.faults.append(CertifiedFault(fault.name, fault.part, fault.what, None, None, False, applies=False))
    order = list(all_faults())
    made.faults.sort(key=lambda c: order.index(c.fault))
    made.caught, made.total = sum(c.caught for c in made.faults), sum(c.applies for c in made.faults)
    return made
