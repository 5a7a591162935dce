"""From errors to verdicts: excess over the nulls per probe family, and how much of a fault's effect stands in an error.

An error is values minus truth, [T, S] per prompt, over the same ids everywhere. See `measure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gptoss_adapters.parity.measure import Record
from gptoss_adapters.parity.metrics import F64, TINY, nmse_of, summarise
from gptoss_adapters.parity.schema import FAIL, LOOK, LOOK_EXCESS, PASS, PASS_EXCESS, Family

RESOLVED = 4.0  # a coefficient this many times above what any null has by chance is real
PRESENT = (0.5, 2.0)  # coefficients of a fault that is there: noise and flips blur it, so it is not exactly 1
DIVERGED = 100.0  # a position this far above every null differs for a reason


@dataclass
class Excess:
    """One family, judged: statistics, the nulls' and their quotient. `beyond`: above what the nulls' own scatter allows."""

    observed: dict[str, float]
    excess: dict[str, float]
    beyond: bool
    positions: int = 0

    @property
    def worst(self) -> float:
        return max(self.excess.values())

    @property
    def verdict(self) -> str:
        if self.worst > LOOK_EXCESS:
            return FAIL if self.beyond else LOOK
        return LOOK if self.worst > PASS_EXCESS else PASS


@dataclass
class Judged:
    """Every family against one truth."""

    families: dict[str, Excess] = field(default_factory=dict)
    log_excess: float = 0.0  # mean over positions of log10(nmse / null), not below 0
    first_divergent: int | None = None

    @property
    def worst(self) -> float:
        return max((f.worst for f in self.families.values()), default=0.0)

    @property
    def failed(self) -> bool:
        return any(f.verdict == FAIL for f in self.families.values())


def judge(record: Record, truth: Sequence[F64], nulls: Sequence[Sequence[F64]]) -> Judged:
    """record's values against `truth` (per prompt, [T, S]); nulls: errors per realisation and prompt."""
    nmse = [nmse_of(z, y) for z, y in zip(truth, record.values, strict=True)]
    null_nmse = [[_ratio(e, z) for e, z in zip(errors, truth, strict=True)] for errors in nulls]
    out = Judged()
    for family in dict.fromkeys(p.family for p in record.prompts):
        which = [i for i, p in enumerate(record.prompts) if p.family == family]
        own = _statistics([nmse[i] for i in which])
        theirs = [_statistics([realisation[i] for i in which]) for realisation in null_nmse]
        out.families[family] = _family(own, theirs, sum(len(nmse[i]) for i in which))
    floor = [np.median(np.stack([r[i] for r in null_nmse]), 0) for i in range(len(nmse))]
    logs = np.concatenate([np.log10(np.maximum(n, TINY) / np.maximum(f, TINY)) for n, f in zip(nmse, floor, strict=True)])
    out.log_excess = float(np.maximum(logs, 0).mean())
    ceiling = [np.max(np.stack([r[i] for r in null_nmse]), 0) for i in range(len(nmse))]
    out.first_divergent = _first(nmse, ceiling)
    return out


def _family(own: dict[str, float], theirs: Sequence[dict[str, float]], positions: int) -> Excess:
    excess, beyond = {}, False
    for name, value in own.items():
        null = np.maximum([t[name] for t in theirs], TINY)
        excess[name] = value / float(np.median(null))
        logs = np.log(null)
        if excess[name] > LOOK_EXCESS and value > np.exp(logs.mean() + 3 * logs.std()):
            beyond = True
    return Excess(own, excess, beyond, positions)


def _statistics(nmse: Sequence[F64]) -> dict[str, float]:
    """The median sees what is everywhere, the mean what is rare and large."""
    whole = np.maximum(np.concatenate(nmse), TINY)
    return {"nmse_median": float(np.median(whole)), "nmse_mean": float(whole.mean())}


def _ratio(error: F64, truth: F64) -> F64:
    result: F64 = (error**2).sum(-1) / np.maximum((truth**2).sum(-1), TINY)
    return result


def _first(nmse: Sequence[F64], ceiling: Sequence[F64]) -> int | None:
    """The first position, over all prompts of more than one token, that stands far above every null."""
    found = []
    for n, c in zip(nmse, ceiling, strict=True):
        typical = max(float(np.median(c)), TINY)
        above = np.flatnonzero(n > DIVERGED * np.maximum(c, typical))
        if len(n) > 1 and len(above):
            found.append(int(above[0]))
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a fault's effect stands in an error: 1 all, 0 none; chance: the largest that any null has."""

    coefficient: float
    chance: float

    @property
    def resolvable(self) -> bool:
        """Whether this run could tell presence from absence."""
        return self.chance * RESOLVED < PRESENT[0]

    @property
    def present(self) -> bool:
        return self.resolvable and PRESENT[0] <= self.coefficient <= PRESENT[1] and self.coefficient > RESOLVED * self.chance

    @property
    def absent(self) -> bool:
        return self.resolvable and abs(self.coefficient) < PRESENT[0] / 2


def amount(error: F64, effect: F64, nulls: Sequence[F64]) -> Amount:
    """Least squares of error on effect, all [N, S]; positions weigh by their noise, and no flip dominates."""
    size = (effect**2).sum(-1)
    noise = np.median(np.stack([(n**2).sum(-1) for n in nulls]), 0)
    weight = 1 / np.maximum(noise + 0.1 * size, TINY)
    whole = float((weight * size).sum())
    if whole <= 0:
        return Amount(0.0, np.inf)

    def project(e: F64) -> float:
        return float((weight * (e * effect).sum(-1)).sum()) / whole

    return Amount(project(error), max(abs(project(n)) for n in nulls))


def schema_families(record: Record, judged: Judged, described: dict[str, str]) -> list[Family]:
    """The report's families: statistics over the whole vocabulary against the plain truth, verdicts from `judged`."""
    out = []
    for name, family in judged.families.items():
        which = [i for i, p in enumerate(record.prompts) if p.family == name]
        metrics = summarise([record.positions[i] for i in which], record.lower_bound)
        null = {n: summarise([positions[i] for i in which], record.lower_bound) for n, positions in record.null_positions.items()}
        kl = metrics.kl_mean or 0.0
        floor = max(float(np.median([m.kl_mean or 0.0 for m in null.values()])), TINY)
        out.append(Family(name, described[name], len(which), metrics.positions, metrics, null, {**family.excess, "kl_mean": kl / floor},
                          family.worst, family.verdict))  # fmt: skip
    return out
