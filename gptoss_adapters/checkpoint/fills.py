"""How the bytes of an output tensor come about: copied, repacked, or computed, one cache-sized chunk at a time.

Sources are read with `pread` rather than through a mapping: a chunk lands in the L2 cache, the process keeps no mapped pages,
and a file that shrinks under us is an error message instead of a SIGBUS.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.plan import Target
from gptoss_adapters.errors import BadInput, OutputError


def _chunk_bytes() -> int:
    """An eighth of the L2 cache: input, output and what the kernel touches stay in it together."""
    try:
        l2 = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        l2 = 0
    return min(max(l2 // 8, 128 << 10), 512 << 10) & -4096


CHUNK_BYTES = _chunk_bytes()


class SourceFile:
    """A file opened for positioned reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise OutputError(f"cannot be opened ({e.strerror})", file=path) from None

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def read(self, offset: int, nbytes: int) -> U8:
        """`nbytes` from `offset`. Raises BadInput when the file ends before them."""
        out = np.empty(nbytes, np.uint8)
        view, done = out.data, 0
        while done < nbytes:
            try:
                got = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as e:
                raise OutputError(f"cannot be read ({e.strerror})", file=self.path) from None
            if not got:
                raise self.shrank()
            done += got
        return out

    def shrank(self) -> BadInput:
        return BadInput("the file shrank while it was being read", file=self.path, hint="run again when nothing writes to it")


_writing = threading.Lock()  # one writer at a time: the kernel serialises writes to a file by spinning, which costs CPU


def write_at(fd: int, data: U8, offset: int) -> None:
    """All of `data` at `offset`; short writes are continued. Raises OSError."""
    view = data.data.cast("B")
    with _writing:
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done


def read_at(fd: int, offset: int, nbytes: int) -> U8:
    """What was written; raises OSError (EIO) when it is not there."""
    data = os.pread(fd, nbytes, offset)
    if len(data) != nbytes:
        raise OSError(5, "the written bytes cannot be read back")
    return np.frombuffer(data, np.uint8)


class ChunkFill(ABC):
    """A fill that produces one chunk of rows at a time; the read-back produces them again and compares."""

    def __init__(self, rows: int, row_bytes: int, step: int = 1) -> None:
        self.rows, self.row_bytes, self.step = rows, row_bytes, step

    @abstractmethod
    def produce(self, begin: int, end: int) -> Sequence[U8]:
        """Rows begin..end of every tensor that this fills, each (end - begin) * row_bytes contiguous bytes."""

    def write(self, begin: int, end: int, targets: Sequence[Target]) -> None:
        for at, stop in self._chunks(begin, end):
            for data, (fd, offset) in zip(self.produce(at, stop), targets, strict=True):
                write_at(fd, data, offset + at * self.row_bytes)

    def differs(self, begin: int, end: int, targets: Sequence[Target]) -> tuple[int, int] | None:
        for at, stop in self._chunks(begin, end):
            for number, (data, (fd, offset)) in enumerate(zip(self.produce(at, stop), targets, strict=True)):
                flat = data.reshape(-1).view(np.uint8)
                written = read_at(fd, offset + at * self.row_bytes, flat.size)
                if not np.array_equal(written, flat):
                    return number, at * self.row_bytes + int(np.argmax(written != flat))
        return None

    def _chunks(self, begin: int, end: int) -> list[tuple[int, int]]:
        rows = max(CHUNK_BYTES // self.row_bytes // self.step, 1) * self.step
        return [(at, min(at + rows, end)) for at in range(begin, end, rows)]


class Produced(ChunkFill):
    """Rows computed by a function of (begin, end) that gives their bytes, the same ones every time it is asked."""

    def __init__(self, rows: int, row_bytes: int, function: Callable[[int, int], U8], step: int = 1) -> None:
        super().__init__(rows, row_bytes, step)
        self.function = function

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        return (self.function(begin, end),)


class Copied(ChunkFill):
    """Bytes moved as they are: `nbytes` from `offset` of a file. bf16 weights are checked for NaN and Inf on the way.

    `source` is what errors name.
    """

    def __init__(self, file: SourceFile, offset: int, nbytes: int, source: Source) -> None:
        super().__init__(nbytes, 1, step=4)
        self.file, self.offset, self.source = file, offset, source

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        data = self.file.read(self.offset + begin, end - begin)
        if self.source.dtype == "BF16" and ((data.view(np.uint16) & 0x7F80) == 0x7F80).any():
            raise BadInput("holds NaN or Inf", file=self.source.file, tensor=self.source.name)
        return (data,)


class Repacked(ChunkFill):
    """MXFP4 in HF nibble order -> GGML blocks: `tensors` outputs take the source's rows in turn (2: gate and up).

    blocks_at and scales_at are the offsets of [rows * tensors, groups, 16] and [rows * tensors, groups] bytes; `source` is the
    scales as errors name them: a scale byte of 255 is refused.
    """

    def __init__(self, blocks: SourceFile, blocks_at: int, scales: SourceFile, scales_at: int, rows: int, groups: int, tensors: int, source: Source) -> None:
        from gptoss_adapters.checkpoint.base import GGML_MXFP4_BYTES

        super().__init__(rows, groups * GGML_MXFP4_BYTES)
        self.blocks, self.blocks_at, self.scales, self.scales_at = blocks, blocks_at, scales, scales_at
        self.groups, self.tensors, self.source = groups, tensors, source

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        from gptoss_adapters.mxfp4 import check_scales, hf_to_ggml

        g, t = self.groups, self.tensors
        blocks = self.blocks.read(self.blocks_at + begin * t * g * 16, (end - begin) * t * g * 16).reshape(-1, g, 16)
        scales = self.scales.read(self.scales_at + begin * t * g, (end - begin) * t * g).reshape(-1, g)
        check_scales(scales, self.source.file, self.source.name)
        return [hf_to_ggml(blocks, scales, row_start=k, row_step=t) for k in range(t)]
