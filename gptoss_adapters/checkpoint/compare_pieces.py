"""Pieces of two checkpoints' tensors, some rows at a time, and what may hold between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.dtypes import decode_q8_0
from gptoss_adapters.checkpoint.files import U8, Array
from gptoss_adapters.spec import MXFP4_BLOCK

BYTES_EQUAL, VALUES_EQUAL = "BYTES EQUAL", "VALUES EQUAL"
PIECE_VALUES = 1 << 21  # values per side that one step looks at
_BITS = {"bf16": np.uint16, "f16": np.uint16, "f32": np.uint32, "q8_0": np.uint8}
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a canonical tensor: dense values [rows, in], Q8_0 rows [rows, bytes], or MXFP4 blocks and scales."""

    encoding: str
    dense: Array | None
    blocks: U8 | None = None
    scales: U8 | None = None

    def to_f32(self) -> F32:
        if self.blocks is not None and self.scales is not None:
            return cast(F32, mxfp4.decode(self.blocks, self.scales, np.float32))
        assert self.dense is not None
        if self.encoding == "q8_0":
            return decode_q8_0(self.dense).reshape(len(self.dense), -1)
        if self.encoding == "bf16":
            return mxfp4.to_f32(self.dense)
        return np.ascontiguousarray(self.dense, np.float32)

    def bits(self) -> Array:
        """What must be equal for the bytes to be: the stored bits of this piece."""
        if self.blocks is not None and self.scales is not None:
            return np.concatenate((self.scales[..., None], self.blocks), axis=-1)
        assert self.dense is not None
        return np.ascontiguousarray(self.dense).view(_BITS[self.encoding])


def iterate_pieces(a: Checkpoint, b: Checkpoint, name: str) -> Iterator[tuple[tuple[int, ...], Piece, Piece]]:
    """Both sides' pieces of the same rows, with the index of their first row."""
    shape = a.tensors[name].shape
    if len(shape) == 3:
        for e in range(shape[0]):
            for at, x, y in _step_through(_load_rows(a, name, e), _load_rows(b, name, e)):
                yield (e, at), x, y
        return
    for at, x, y in _step_through(_load_rows(a, name, None), _load_rows(b, name, None)):
        yield (at,), x, y


def _load_rows(c: Checkpoint, name: str, expert: int | None) -> Piece:
    """A tensor or one expert as rows; a view where the storage allows it."""
    encoding = c.tensors[name].encoding
    if encoding == "mxfp4":
        return Piece(encoding, None, *c.mxfp4(name, expert))
    array = c.q8_0(name, expert) if encoding == "q8_0" else c.array(name, expert)
    return Piece(encoding, array[None] if array.ndim == 1 else array)


def _step_through(x: Piece, y: Piece) -> Iterator[tuple[int, Piece, Piece]]:
    rows, width = _extent(x)
    step = max(PIECE_VALUES // max(width, 1), 1)
    for at in range(0, rows, step):
        yield at, cut(x, at, at + step), cut(y, at, at + step)


def _extent(p: Piece) -> tuple[int, int]:
    if p.blocks is not None:
        return p.blocks.shape[0], p.blocks.shape[1] * MXFP4_BLOCK
    assert p.dense is not None
    return p.dense.shape[0], p.dense.shape[1]


def cut(p: Piece, begin: int, end: int) -> Piece:
    if p.blocks is not None and p.scales is not None:
        return Piece(p.encoding, None, p.blocks[begin:end], p.scales[begin:end])
    assert p.dense is not None
    return Piece(p.encoding, p.dense[begin:end])


Check = Callable[[Piece, Piece], bool]
_WIDTH = {"f32": 4, "bf16": 3, "f16": 3, "q8_0": 2, "mxfp4": 1}  # information: a wider one is rounded to a narrower one


def checks_for(a: str, b: str) -> dict[str, Check]:
    """What may hold for a pair of encodings, strongest first; keys are verdicts or rules."""
    checks: dict[str, Check] = {}
    if a == b or {a, b} in ({"bf16", "f32"}, {"f16", "f32"}):
        checks[BYTES_EQUAL] = (lambda x, y: np.array_equal(x.bits(), y.bits())) if a == b else _equals_widened
    checks[VALUES_EQUAL] = lambda x, y: bool(np.array_equal(x.to_f32(), y.to_f32()))
    # of two directions that both hold, the one without a choice of rules is named
    for one, other, label, turned in sorted(
        ((a, b, "a -> b", False), (b, a, "b -> a", True)), key=lambda way: way[1] == "mxfp4"
    ):
        if one != other and (_WIDTH[one] >= _WIDTH[other] or one == "mxfp4"):
            for rule in mxfp4.RULES if other == "mxfp4" else ("",):
                checks[f"{label}: {other}{rule and f' by rule {rule}'}"] = _check_rounding(other, rule, turned)
    return checks


def _equals_widened(x: Piece, y: Piece) -> bool:
    return bool(np.array_equal(x.to_f32().view(np.uint32), y.to_f32().view(np.uint32)))


def _check_rounding(target: str, rule: str, turned: bool) -> Check:
    """Whether rounding one side to `target` gives the other side's bits."""

    def check(x: Piece, y: Piece) -> bool:
        source, made = (y, x) if turned else (x, y)
        return bool(np.array_equal(_round_piece(source, target, rule), made.bits()))

    return check


def _round_piece(source: Piece, target: str, rule: str) -> Array:
    values = source.to_f32()
    if target == "mxfp4":
        blocks, scales = mxfp4.encode(
            source.dense if source.encoding == "bf16" and source.dense is not None else values, rule=rule
        )
        return np.concatenate((scales[..., None], blocks), axis=-1)
    if target == "q8_0":
        return mxfp4.to_q8_0(values)
    if target == "f16":
        return mxfp4.to_f16(values).view(np.uint16)
    return values.astype(ml_dtypes.bfloat16).view(np.uint16) if target == "bf16" else values.view(np.uint32)
