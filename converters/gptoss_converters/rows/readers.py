"""Rows of a checkpoint's canonical tensors, whatever its kind and with its adapters merged: what every exporter reads
from.

`Readers(checkpoint).values(name)` gives rows as numbers (bf16, f16, f32), `.packed(name)` as MXFP4 blocks and scales. A
tensor of one axis, and an expert bias, counts as rows of one value. `start` and `stride` take every other row: gate, or
up. Kinds whose tensors lie whole in a file are read in pieces; of the others each thread holds one expert at a time.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.dtypes import DENSE, decode_q8_0
from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.storage import ALL, FusedRows, PairedRows, Part, Rows, SwappedAxes
from gptoss_adapters.checkpoint.writing.fills import SourceFile
from gptoss_adapters.spec import MXFP4_BLOCK
from gptoss_converters.rows.rows import BF16, DenseRows, GgufRows, PairRows, Reader, SwappedRows, Values


class Readers:
    """See the module's text; one object per plan: it holds the files open."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files: dict[Path, SourceFile] = {}

    def file(self, source: Source) -> SourceFile:
        """The file of a source, opened when it is first asked for."""
        if source.file not in self._files:
            self._files[source.file] = SourceFile(source.file)
        return self._files[source.file]

    def values(self, name: str, rows: Rows = ALL) -> Reader:
        """Rows of a tensor, all or gate's or up's, as numbers."""
        info = self.checkpoint.tensors[name]
        if info.encoding == "mxfp4":
            return DecodedRows(self.packed(name, rows))
        if self._lies_in_pieces(info):
            held = {part.rows: (source, part) for source, part in info.shares(None)}
            if rows in held:
                return self._read_pieces(info, *held[rows], rows, start=0, stride=1)
            if ALL in held:
                return self._read_pieces(info, *held[ALL], rows, rows.start, rows.step)
        return ExpertRows(self.checkpoint, name, rows.start, rows.step)

    def packed(self, name: str, rows: Rows = ALL) -> PairRows | ExpertBlocks:
        """Rows of an MXFP4 tensor, all or gate's or up's, as blocks [n, G, 16] and scales [n, G]."""
        info = self.checkpoint.tensors[name]
        assert info.encoding == "mxfp4", name
        if info.is_block_pair:
            blocks, scales = info.sources
            return PairRows((self.file(blocks), self.file(scales)), (blocks, scales), rows.start, rows.step)
        return ExpertBlocks(self.checkpoint, name, rows.start, rows.step)

    def _lies_in_pieces(self, info: TensorInfo) -> bool:
        """Whether rows can be read from the file without putting a whole expert together."""
        if info.name in self.checkpoint.deltas or info.per_expert:
            return False
        return not isinstance(info.parts[0].storage, PairedRows)

    def _read_pieces(self, info: TensorInfo, source: Source, part: Part, rows: Rows, start: int, stride: int) -> Reader:
        if source.dtype not in DENSE:
            return GgufRows(self.file(source), source, start, stride)
        if isinstance(part.storage, SwappedAxes):
            return SwappedRows(self.file(source), source, start, stride)
        storage = part.storage
        first = storage.span(self.checkpoint.config).start if isinstance(storage, FusedRows) else 0
        width = row_width(info)
        count = math.prod(info.shape) // rows.step // width
        return DenseRows(self.file(source), source, width, count, first, start, stride)


def row_width(info: TensorInfo) -> int:
    """Values per row of a tensor, as the readers count rows."""
    return info.shape[-1] if info.name.endswith("weight") and len(info.shape) > 1 else 1


_kept = threading.local()  # the expert that each thread is at: one at a time, whatever the number of tensors


class _ByExpert:
    """Rows out of one expert's matrix at a time; a tensor without experts is one matrix."""

    def __init__(self, checkpoint: Checkpoint, name: str, start: int, stride: int) -> None:
        self.checkpoint, self.name, self.start, self.stride = checkpoint, name, start, stride
        info = checkpoint.tensors[name]
        self.width = row_width(info)
        self.experts = info.shape[0] if ".experts." in name else 0
        rows = math.prod(info.shape) // self.width // (self.experts or 1)
        self.per_matrix = rows // stride
        self.count = self.per_matrix * (self.experts or 1)

    def pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(expert, first row in it, last) of a run of rows."""
        out = []
        while begin < end:
            expert, row = divmod(begin, self.per_matrix)
            stop = min(end, begin - row + self.per_matrix)
            out.append((expert, row, row + stop - begin))
            begin = stop
        return out

    def matrix(self, expert: int) -> Any:
        at = self.name, expert
        if getattr(_kept, "of", None) is not self.checkpoint or _kept.at != at:
            _kept.matrix, _kept.of = None, None  # the old one goes before the new one comes
            _kept.matrix = self.load(expert if self.experts else None)
            _kept.of, _kept.at = self.checkpoint, at  # the object, not its id, which a later one may get
        return _kept.matrix

    def load(self, expert: int | None) -> Any:
        raise NotImplementedError

    def take(self, array: Any, row: int, stop: int) -> Any:
        return array[self.start :: self.stride][row:stop]


class ExpertRows(_ByExpert):
    """Numbers of any dense tensor: experts stored apart, gate and up put together, adapters merged."""

    def read(self, begin: int, end: int) -> Values:
        parts = [self.take(self.matrix(e), row, stop) for e, row, stop in self.pieces(begin, end)]
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def load(self, expert: int | None) -> Values:
        c = self.checkpoint
        if c.tensors[self.name].encoding == "q8_0":
            rows = c.q8_0(self.name, expert)
            return decode_q8_0(rows).reshape(-1, self.width)
        matrix: Values = c.array(self.name, expert).reshape(-1, self.width)
        return matrix


class ExpertBlocks(_ByExpert):
    """Blocks and scales of MXFP4 in any other storage than two tensors: GGML rows, or experts stored apart."""

    def __init__(self, checkpoint: Checkpoint, name: str, start: int, stride: int) -> None:
        super().__init__(checkpoint, name, start, stride)
        self.groups = self.width // MXFP4_BLOCK

    def read(self, begin: int, end: int) -> tuple[U8, U8]:
        parts = [[self.take(a, row, stop) for a in self.matrix(e)] for e, row, stop in self.pieces(begin, end)]
        blocks, scales = (np.concatenate([p[k] for p in parts]) for k in range(2))
        if (scales == 255).any():
            self.checkpoint.check(self.name)  # says in which stored tensor
        return blocks, scales

    def load(self, expert: int | None) -> tuple[U8, U8]:
        return self.checkpoint.mxfp4(self.name, expert)


class DecodedRows:
    """The numbers of MXFP4 rows; bf16 holds every one of them."""

    exactly = True

    def __init__(self, packed: PairRows | ExpertBlocks) -> None:
        self.packed, self.count, self.width = packed, packed.count, packed.groups * MXFP4_BLOCK

    def read(self, begin: int, end: int) -> Values:
        return mxfp4.decode(*self.packed.read(begin, end), BF16)


class JoinedRows:
    """Rows of several readers of one width, one after the other: q, k and v."""

    def __init__(self, readers: list[Reader]) -> None:
        self.readers, self.width = readers, readers[0].width
        self.count = sum(r.count for r in readers)

    def read(self, begin: int, end: int) -> Values:
        out, at = [], 0
        for reader in self.readers:
            lo, hi = max(begin - at, 0), min(end - at, reader.count)
            if lo < hi:
                out.append(reader.read(lo, hi))
            at += reader.count
        wide = out[0].dtype if len({a.dtype for a in out}) == 1 else np.dtype(np.float32)
        return np.concatenate([a.astype(wide, copy=False) for a in out])
