"""What adapters add to a canonical tensor: sums of scaled products B A, some rows at a time, and rows put anew."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint.files import Array
from gptoss_adapters.checkpoint.storage import ALL, Rows

F32 = npt.NDArray[np.float32]
_GRANULE = 512
"""Rows of a delta that are computed at once, at fixed places: the same numbers whatever rows are asked for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A [r, in] and B [out, r] of one matrix as stored, with the factor alpha / r * scale: canonical [out, in] +=
    factor * B A.

    `rows`: those of the matrix that B has.
    """

    a: Array
    b: Array
    factor: float
    rows: Rows = ALL

    def add_to(self, total: npt.NDArray[np.float64], first: int, stop: int) -> None:
        """Adds rows first..stop (of all rows, an even run) to `total`."""
        of_b = slice(first // self.rows.step, stop // self.rows.step)
        into = total[self.rows.every]
        into += self.factor * (self.b[of_b].astype(np.float64) @ self.a.astype(np.float64))


_kept = threading.local()  # the granule that each thread is at


class Deltas:
    """What adapters do to one canonical tensor, as rows [prod(leading), in]; `pairs`: by expert, or under None."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.pairs: dict[int | None, list[Pair]] = {}
        self.anew: dict[int, Array] = {}
        self.per_matrix = shape[-2]

    def add(self, expert: int | None, pair: Pair) -> None:
        self.pairs.setdefault(expert, []).append(pair)

    def put(self, row: int, values: Array) -> None:
        """The row becomes `values` [in], whatever it was."""
        self.anew[row] = values

    def apply(self, values: F32, begin: int) -> None:
        """Changes rows begin.. of the base, in float32, to what the adapters make of them."""
        end = begin + len(values)
        values += self.rows(begin, end)
        for row, anew in self.anew.items():
            if begin <= row < end:
                values[row - begin] = anew

    def rows(self, begin: int, end: int) -> F32:
        """What the products add to rows begin..end, float32: computed in float64 and rounded once."""
        out = np.full((end - begin, self.shape[-1]), -0.0, np.float32)  # x + -0 is x, also for x = -0
        at = begin
        while at < end:
            expert, row = divmod(at, self.per_matrix)
            first = row // _GRANULE * _GRANULE
            stop = min(first + _GRANULE, self.per_matrix)
            n = min(stop - row, end - at)
            granule = self._compute_granule(expert if len(self.shape) == 3 else None, first, stop)
            if granule is not None:
                out[at - begin : at - begin + n] = granule[row - first : row - first + n]
            at += n
        return out

    def _compute_granule(self, expert: int | None, first: int, stop: int) -> F32 | None:
        pairs = self.pairs.get(expert)
        if not pairs:
            return None
        if getattr(_kept, "at", None) != (self, expert, first):
            total = np.full((stop - first, self.shape[-1]), -0.0)
            for pair in pairs:
                pair.add_to(total, first, stop)
            _kept.granule = total.astype(np.float32)
            _kept.at = (self, expert, first)  # the object, not its id, which a later one may get
        granule: F32 = _kept.granule
        return granule
