"""From errors to verdicts: excess over the nulls per probe family, and how much of a fault's effect stands in an error.

An error is values minus truth, [T, S] per prompt, over the same ids everywhere. See `measure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gptoss_adapters.parity.logits.measure import Record
from gptoss_adapters.parity.logits.metrics import F64, TINY, summarise
from gptoss_adapters.parity.report.schema import FAIL, LOOK, LOOK_EXCESS, PASS, PASS_EXCESS, Family

if TYPE_CHECKING:
    from gptoss_adapters.parity.logits.ties import Ties

RESOLVED = 4.0  # a coefficient this many times above what any null has by chance is real
PRESENT = (0.5, 2.0)  # coefficients of a fault that is there: noise and flips blur it, so it is not exactly 1
DIVERGED = 100.0  # a position this far above every null differs for a reason


@dataclass
class Excess:
    """One family, judged: statistics, the nulls' and their quotient. `beyond`: above what the nulls' own scatter
    allows.
    """

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


@dataclass
class Flat:
    """A record's prompts laid end to end, [N, S], with what every judgement needs of the nulls."""

    values: F64
    families: dict[str, npt.NDArray[np.int64]]  # family -> its positions
    starts: list[int]  # where each prompt begins, and the end
    energy: F64  # [R, N]: squared error of each null
    ties: Ties | None = None  # nulls in which the router's ties go either way

    @classmethod
    def of(cls, record: Record, nulls: Sequence[Sequence[F64]] | None = None, ties: Ties | None = None) -> Flat:
        sizes = [len(v) for v in record.values]
        starts = [0, *np.cumsum(sizes).tolist()]
        names = np.repeat([p.family for p in record.prompts], sizes)
        families = {f: np.flatnonzero(names == f) for f in dict.fromkeys(p.family for p in record.prompts)}
        energy = np.stack(
            [np.concatenate([(e**2).sum(-1) for e in errors]) for errors in (record.nulls if nulls is None else nulls)]
        )
        return cls(np.concatenate(record.values), families, starts, energy, ties)


def judge_values(flat: Flat, truth: F64, values: F64 | None = None) -> Judged:
    """The values (of another subject at the same ids, if given) against `truth` [N, S]."""
    size = np.maximum((truth**2).sum(-1), TINY)
    nmse = (((flat.values if values is None else values) - truth) ** 2).sum(-1) / size
    nulls = flat.energy / size
    out = Judged()
    for name, at in flat.families.items():
        own, theirs = _statistics(nmse[at]), [_statistics(n[at]) for n in nulls]
        found = _family(own, theirs, len(at))
        if (
            found.verdict == FAIL and flat.ties and found.excess["nmse_median"] <= LOOK_EXCESS
        ):  # few positions are far off: ties, perhaps
            lots = [_statistics(n / size[at]) for n in flat.ties.energy(name)]
            found.beyond = (
                own["nmse_mean"] > max(n["nmse_mean"] for n in lots) and _family(own, [*theirs, *lots], len(at)).beyond
            )
        out.families[name] = found
    logs = np.log10(np.maximum(nmse, TINY) / np.maximum(np.median(nulls, 0), TINY))
    out.log_excess = float(np.maximum(logs, 0).mean())
    out.first_divergent = _first(nmse, nulls.max(0), flat.starts)
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


def family(nmse: F64, nulls: Sequence[F64]) -> Excess:
    """One set of positions beside the nulls' at the same."""
    return _family(_statistics(nmse), [_statistics(n) for n in nulls], len(nmse))


def _statistics(nmse: F64) -> dict[str, float]:
    """The median sees what is everywhere, the mean what is rare and large."""
    floored = np.maximum(nmse, TINY)
    return {"nmse_median": float(np.median(floored)), "nmse_mean": float(floored.mean())}


def _first(nmse: F64, ceiling: F64, starts: Sequence[int]) -> int | None:
    """The first position, over all prompts of more than one token, that stands far above every null."""
    found = []
    for lo, hi in pairwise(starts):
        typical = max(float(np.median(ceiling[lo:hi])), TINY)
        above = np.flatnonzero(nmse[lo:hi] > DIVERGED * np.maximum(ceiling[lo:hi], typical))
        if hi - lo > 1 and len(above):
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
        return (
            self.resolvable
            and PRESENT[0] <= self.coefficient <= PRESENT[1]
            and self.coefficient > RESOLVED * self.chance
        )

    @property
    def absent(self) -> bool:
        return self.resolvable and abs(self.coefficient) < PRESENT[0] / 2


def estimate_amount(error: F64, effect: F64, nulls: F64, energy: F64) -> Amount:
    """Least squares of error on effect, both [N, S]; nulls [R, N, S] with their energy [R, N]. Positions weigh by their
    noise, and no flip dominates.
    """
    size = (effect**2).sum(-1)
    weight = 1 / np.maximum(np.median(energy, 0) + 0.1 * size, TINY)
    whole = float((weight * size).sum())
    if whole <= 0:
        return Amount(0.0, np.inf)
    weighted = weight[:, None] * effect / whole
    return Amount(float((weighted * error).sum()), float(np.abs(np.einsum("rns,ns->r", nulls, weighted)).max()))


def to_families(record: Record, judged: Judged, described: dict[str, str]) -> list[Family]:
    """The report's families: statistics over the whole vocabulary against the plain truth, verdicts from `judged`."""
    out = []
    for name, family in judged.families.items():
        which = [i for i, p in enumerate(record.prompts) if p.family == name]
        metrics = summarise([record.positions[i] for i in which], record.lower_bound)
        null = {
            n: summarise([positions[i] for i in which], record.lower_bound)
            for n, positions in record.null_positions.items()
        }
        kl = metrics.kl_mean or 0.0
        floor = max(float(np.median([m.kl_mean or 0.0 for m in null.values()])), TINY)
        out.append(
            Family(
                name,
                described[name],
                len(which),
                metrics.positions,
                metrics,
                null,
                {**family.excess, "kl_mean": kl / floor},
                family.worst,
                family.verdict,
            )
        )
    return out
