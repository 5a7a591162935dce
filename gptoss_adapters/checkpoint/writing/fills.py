"""How the bytes of an output tensor come about: copied, repacked, or computed, one cache-sized chunk at a time.

Sources are read with `pread` rather than through a mapping: a chunk lands in the L2 cache, the process keeps no mapped
pages, and a file that shrinks under us is an error message instead of a SIGBUS.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.dtypes import stored_type
from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.writing import native_stream
from gptoss_adapters.checkpoint.writing.plan import Target
from gptoss_adapters.errors import BadInput, OutputError
from gptoss_adapters.mxfp4.oracle import GGML_BLOCK, HF_BLOCK


def _chunk_bytes() -> int:
    """A power of two such that input, output and what is held back stay in the L2 cache together."""
    try:
        l2 = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        l2 = 0
    return 256 << 10 if l2 >= 2 << 20 else 128 << 10


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
        return BadInput(
            "the file shrank while it was being read", file=self.path, hint="run again when nothing writes to it"
        )


WRITE_BYTES = 128 << 10  # PIECE in native/stream.cpp, which says why
_writing = threading.Lock()  # one writer at a time: the kernel serialises writes to a file by spinning, which costs CPU


def write_at(fd: int, data: U8, offset: int) -> None:
    """All of `data` at `offset`; short writes are continued. Raises OSError."""
    view = data.data.cast("B")
    with _writing:
        while view:
            done = os.pwrite(fd, view[: WRITE_BYTES - offset % WRITE_BYTES], offset)
            view, offset = view[done:], offset + done


def read_at(fd: int, offset: int, nbytes: int) -> U8:
    """What was written; raises OSError (EIO) when it is not there."""
    data = os.pread(fd, nbytes, offset)
    if len(data) != nbytes:
        raise OSError(5, "the written bytes cannot be read back")
    return np.frombuffer(data, np.uint8)


class ChunkFill(ABC):
    """A fill that produces one chunk of rows at a time; the read-back produces them again and compares."""

    def __init__(self, rows: int, row_bytes: int | tuple[int, ...], step: int = 1, outputs: int = 1) -> None:
        """row_bytes: of a row of every output, or of each of them."""
        self.rows, self.step = rows, step
        self.widths = row_bytes if isinstance(row_bytes, tuple) else (row_bytes,) * outputs
        self.row_bytes = max(self.widths)

    @abstractmethod
    def produce(self, begin: int, end: int) -> Sequence[U8]:
        """Rows begin..end of every tensor that this fills, each (end - begin) times its width contiguous bytes."""

    def produce_again(self, begin: int, end: int) -> Sequence[U8]:
        """The same, for the read-back: every row of a finished output comes by here once, also when a run was
        resumed.
        """
        return self.produce(begin, end)

    def write(self, begin: int, end: int, targets: Sequence[Target]) -> None:
        for at, stop in self._chunks(begin, end):
            for data, (fd, offset), width in zip(self.produce(at, stop), targets, self.widths, strict=True):
                write_at(fd, data, offset + at * width)

    def differs(self, begin: int, end: int, targets: Sequence[Target]) -> tuple[int, int] | None:
        for at, stop in self._chunks(begin, end):
            for number, (data, (fd, offset), width) in enumerate(
                zip(self.produce_again(at, stop), targets, self.widths, strict=True)
            ):
                flat = data.reshape(-1).view(np.uint8)
                written = read_at(fd, offset + at * width, flat.size)
                if not np.array_equal(written, flat):
                    return number, at * width + int(np.argmax(written != flat))
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


class Streamed(ChunkFill):
    """A fill that native code can do from file to file; without it, `produce` serves. `source` is what errors name."""

    groups = 0  # MXFP4 blocks per row; 0: plain bytes

    def __init__(
        self,
        rows: int,
        row_bytes: int,
        source: Source,
        inputs: Sequence[tuple[SourceFile, int, int]],
        step: int = 1,
        outputs: int = 1,
    ) -> None:
        """inputs: file, offset, and bytes that one row of every output takes."""
        super().__init__(rows, row_bytes, step, outputs)
        self.source, self.inputs = source, inputs

    def write(self, begin: int, end: int, targets: Sequence[Target]) -> None:
        if native_stream.available():
            self._stream(begin, end, targets, compare=False)
        else:
            super().write(begin, end, targets)

    def differs(self, begin: int, end: int, targets: Sequence[Target]) -> tuple[int, int] | None:
        return (
            self._stream(begin, end, targets, compare=True)
            if native_stream.available()
            else super().differs(begin, end, targets)
        )

    def _stream(self, begin: int, end: int, targets: Sequence[Target], compare: bool) -> tuple[int, int] | None:
        sources = [(file.fd, offset + begin * per_row) for file, offset, per_row in self.inputs]
        places = [(fd, offset + begin * self.row_bytes) for fd, offset in targets]
        result, a = native_stream.stream(
            sources, places, end - begin, self.groups, CHUNK_BYTES, compare=compare, dtype=self.source.dtype
        )
        if result == native_stream.SOURCE_ENDS:
            raise self.inputs[0][0].shrank()
        if result == native_stream.READ_FAILED:
            raise OutputError(f"cannot be read ({os.strerror(a.error)})", file=self.source.file)
        if result == native_stream.BAD_VALUE:
            raise self.bad_value()
        return (a.output, begin * self.row_bytes + a.at) if result == native_stream.DIFFERS else None

    def bad_value(self) -> BadInput:
        """What no engine computes alike."""
        what = (
            "holds MXFP4 scale bytes of 255 (NaN)"
            if self.groups or self.source.dtype == "MXFP4"
            else "holds NaN or Inf"
        )
        return BadInput(what, file=self.source.file, tensor=self.source.name)


class Copied(Streamed):
    """Bytes moved as they are: `nbytes` from `offset` of a file. The read-back refuses weights that hold NaN or Inf."""

    def __init__(self, file: SourceFile, offset: int, nbytes: int, source: Source) -> None:
        super().__init__(nbytes, 1, source, [(file, offset, 1)], step=stored_type(source.dtype).item_bytes)

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        file, offset, _ = self.inputs[0]
        data = file.read(offset + begin, end - begin)
        if stored_type(self.source.dtype).find_bad(data).any():
            raise self.bad_value()
        return (data,)


class Repacked(Streamed):
    """MXFP4 in HF nibble order -> GGML blocks: `tensors` outputs take the source's rows in turn (2: gate and up).

    blocks and scales: file and offset of [rows * tensors, groups, 16] and [rows * tensors, groups] bytes.
    """

    def __init__(
        self,
        blocks: tuple[SourceFile, int],
        scales: tuple[SourceFile, int],
        rows: int,
        groups: int,
        tensors: int,
        source: Source,
    ) -> None:
        inputs = [(*blocks, tensors * groups * HF_BLOCK), (*scales, tensors * groups)]
        super().__init__(rows, groups * GGML_BLOCK, source, inputs, outputs=tensors)
        self.groups, self.tensors = groups, tensors

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        from gptoss_adapters.mxfp4 import hf_to_ggml

        blocks, scales = (file.read(offset + begin * n, (end - begin) * n) for file, offset, n in self.inputs)
        if (scales == 255).any():
            raise self.bad_value()
        blocks, scales = blocks.reshape(-1, self.groups, HF_BLOCK), scales.reshape(-1, self.groups)
        return [hf_to_ggml(blocks, scales, row_start=k, row_step=self.tensors) for k in range(self.tensors)]
