"""Rows of a checkpoint's tensors as values, and values as the rows of an output type.

A reader gives rows begin..end of one output tensor as [n, width] bf16, f16 or f32, whatever way the source stores them;
`ENCODERS` turn those into bytes. What the output type cannot hold is refused by name, never rounded to Inf.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint.dtypes import DENSE, decode_q8_0, stored_type
from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.formats.gguf import READABLE, TYPES
from gptoss_adapters.checkpoint.writing.fills import ChunkFill, SourceFile
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.errors import BadInput

Values = npt.NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
GGML_TYPES = {
    stored_type(name).encoding: (number, block, nbytes)
    for number, (name, block, nbytes) in TYPES.items()
    if name in READABLE
}


def row_bytes(kind: str, values: int) -> int:
    _, block, nbytes = GGML_TYPES[kind]
    return values // block * nbytes


class Reader(Protocol):
    """`count` rows of `width` values."""

    count: int
    width: int

    def read(self, begin: int, end: int) -> Values: ...


class DenseRows:
    """Every `stride`-th row, from `start`, of a dense array that begins `offset` bytes into a file."""

    def __init__(
        self, file: SourceFile, source: Source, width: int, count: int, first: int = 0, start: int = 0, stride: int = 1
    ) -> None:
        self.file, self.source, self.dtype, self.width, self.count = file, source, DENSE[source.dtype], width, count
        self.offset = source.offset + first * width * self.dtype.itemsize
        self.start, self.stride = start, stride

    def read(self, begin: int, end: int) -> Values:
        row = self.width * self.dtype.itemsize
        data = self.file.read(self.offset + begin * self.stride * row, (end - begin) * self.stride * row)
        rows: Values = data.view(self.dtype).reshape(-1, self.width)[self.start :: self.stride]
        return rows


_kept = threading.local()  # the expert that each thread is at: one at a time, whatever the number of tensors


class SwappedRows:
    """Rows of [E, out, in] that is stored as [E, in, out]; an expert is read whole and kept until another one is
    asked for.
    """

    def __init__(self, file: SourceFile, source: Source, start: int = 0, stride: int = 1) -> None:
        self.file, self.source, self.start, self.stride = file, source, start, stride
        experts, self.width, self.out = source.shape
        self.per_expert = self.out // stride
        self.count = experts * self.per_expert

    def read(self, begin: int, end: int) -> Values:
        result = np.empty((end - begin, self.width), DENSE[self.source.dtype])
        at = begin
        while at < end:
            expert, row = divmod(at, self.per_expert)
            stop = min(end, at - row + self.per_expert)
            columns = self._expert(expert)[:, self.start :: self.stride][:, row : row + stop - at]
            result[at - begin : stop - begin] = columns.T
            at = stop
        return result

    def _expert(self, number: int) -> Values:
        dtype = DENSE[self.source.dtype]
        nbytes = self.width * self.out * dtype.itemsize
        at = self.file.path, self.source.offset + number * nbytes
        if getattr(_kept, "at", None) != at:
            _kept.matrix = self.file.read(at[1], nbytes).view(dtype).reshape(self.width, self.out)
            _kept.at = at
        matrix: Values = _kept.matrix
        return matrix


class PairRows:
    """Rows of MXFP4 blocks [n, G, 16] and scales [n, G] that are stored as two tensors; every `stride`-th row from
    `start`.
    """

    def __init__(
        self, files: tuple[SourceFile, SourceFile], pair: tuple[Source, Source], start: int = 0, stride: int = 1
    ) -> None:
        self.files, self.pair, self.start, self.stride = files, pair, start, stride
        *lead, self.groups = pair[1].shape
        self.count = int(np.prod(lead)) // stride

    def read(self, begin: int, end: int) -> tuple[U8, U8]:
        n, at, g = (end - begin) * self.stride, begin * self.stride, self.groups
        blocks = self.files[0].read(self.pair[0].offset + at * g * 16, n * g * 16).reshape(n, g, 16)
        scales = self.files[1].read(self.pair[1].offset + at * g, n * g).reshape(n, g)
        mxfp4.check_scales(scales, self.files[1].path, self.pair[1].name)
        return blocks[self.start :: self.stride], scales[self.start :: self.stride]


class GgufRows:
    """Decoded rows of a GGUF tensor that is stored as MXFP4 or Q8_0; every `stride`-th from `start`."""

    exactly = True

    def __init__(self, file: SourceFile, source: Source, start: int = 0, stride: int = 1) -> None:
        self.file, self.source, self.start, self.stride = file, source, start, stride
        *lead, self.width = source.shape
        self.row_bytes = source.nbytes // int(np.prod(lead))
        self.count = int(np.prod(lead)) // stride

    def read(self, begin: int, end: int) -> Values:
        n, at = (end - begin) * self.stride, begin * self.stride
        raw = self.file.read(self.source.offset + at * self.row_bytes, n * self.row_bytes).reshape(n, -1)[
            self.start :: self.stride
        ]
        return decode_q8_0(raw).reshape(end - begin, self.width)


def to_f32(x: Values) -> U8:
    return (mxfp4.to_f32(x) if x.dtype == BF16 else np.ascontiguousarray(x, np.float32)).view(np.uint8)


def to_bf16(x: Values) -> U8:
    return np.ascontiguousarray(x.astype(BF16, copy=False)).view(np.uint8)


def to_f16(x: Values) -> U8:
    half = np.ascontiguousarray(x) if x.dtype == np.float16 else mxfp4.to_f16(x)
    if not np.isfinite(half).all():
        raise BadInput(
            "values beyond the range of float16", got=float(np.abs(x.astype(np.float32)).max()), hint="use bf16 or f32"
        )
    return half.view(np.uint8)


def to_f16_exactly(x: Values) -> U8:
    """Decoded MXFP4 as float16, which holds it for scale bytes 104..140 only: anything else is refused."""
    half = mxfp4.to_f16(x)
    same = half.astype(np.float32) == x.astype(np.float32)
    if not same.all():
        raise BadInput(
            "MXFP4 values that float16 cannot hold exactly",
            got=float(x.astype(np.float32)[~same][0]),
            hint="use --experts mxfp4, bf16 or f32",
        )
    return half.view(np.uint8)


def to_q8_0(x: Values) -> U8:
    return mxfp4.to_q8_0(x)


ENCODERS: dict[str, Callable[[Values], U8]] = {"f32": to_f32, "bf16": to_bf16, "f16": to_f16, "q8_0": to_q8_0}


def bf16_loses(values: Values, source: Source) -> bool:
    """Whether the source's own float32 holds values that bfloat16 cannot."""
    return (
        source.dtype == "F32"
        and values.dtype == np.float32
        and bool((np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any())
    )


def rounded(plan: Plan) -> list[str]:
    """After `write`: a notice if float32 values of a source were rounded to bfloat16. Only the data tells: most
    float32 files hold bfloat16 values.
    """
    names = [
        plan.files[w.places[0].file].tensors[w.places[0].tensor].name
        for w in plan.works
        if getattr(w.fill, "lossy", False)
    ]
    return (
        [
            f"{len(names)} tensors hold float32 values that bfloat16 cannot, and were rounded: "
            f"{names[0]}{', ...' if len(names) > 1 else ''}"
        ]
        if names
        else []
    )


class Encoded(ChunkFill):
    """Rows of a reader in another type. `source` is what errors name. `lossy` is set when bfloat16 could not hold
    the source's float32.
    """

    def __init__(self, reader: Reader, kind: str, source: Source) -> None:
        super().__init__(reader.count, row_bytes(kind, reader.width))
        exactly = kind == "f16" and getattr(reader, "exactly", False)
        self.reader, self.source, self.encode = reader, source, to_f16_exactly if exactly else ENCODERS[kind]
        self.kind, self.lossy = kind, False

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        values = self.reader.read(begin, end)
        if not np.isfinite(values).all():
            raise BadInput("holds NaN or Inf", file=self.source.file, tensor=self.source.name)
        if self.kind == "bf16" and not self.lossy:
            self.lossy = bf16_loses(values, self.source)
        try:
            return (self.encode(values),)
        except BadInput as e:
            raise BadInput(
                e.what, file=self.source.file, tensor=self.source.name, expected=e.expected, got=e.got, hint=e.hint
            ) from None
