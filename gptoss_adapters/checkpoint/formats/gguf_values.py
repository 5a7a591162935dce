"""The values in a GGUF file's header, read one after the other and strictly.

Arrays of strings are skipped when the file is opened and decoded when they are read: the real vocabulary has 648,000
strings.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from gptoss_adapters.checkpoint.files import MappedFile
from gptoss_adapters.errors import BadInput

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class StringArray(Sequence[str]):
    """An array of strings inside the mapping, decoded only when it is read. Raises BadInput for one that is not
    UTF-8.
    """

    def __init__(self, file: Path, data: mmap.mmap | bytes, begin: int, count: int) -> None:
        self._file, self._data, self._begin, self._count = file, data, begin, count
        self._offsets: list[int] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._offsets is None:
            self._offsets = list(self._walk())
        if isinstance(index, slice):
            return [self._at(o) for o in self._offsets[index]]
        return self._at(self._offsets[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._at, self._walk())

    def raw(self) -> Iterator[bytes]:
        """The strings as they are stored."""
        for offset in self._walk():
            yield self._data[offset + 8 : offset + 8 + _length(self._data, offset)]

    def _walk(self) -> Iterator[int]:
        offset = self._begin
        for _ in range(self._count):
            yield offset
            offset += 8 + _length(self._data, offset)

    def _at(self, offset: int) -> str:
        try:
            return self._data[offset + 8 : offset + 8 + _length(self._data, offset)].decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput("a string is not UTF-8", file=self._file, got=f"offset {offset}") from None


def _length(data: mmap.mmap | bytes, offset: int) -> int:
    return int(_U64.unpack_from(data, offset)[0])


class Cursor:
    """Reads little-endian values one after the other; running past the end of the file is an error that says where."""

    def __init__(self, file: MappedFile) -> None:
        self.data, self.buffer, self.path, self.offset = file.data, file.buffer, file.path, 0
        self.where = "the header"

    def fail(self, what: str, expected: object = None, got: object = None, tensor: str | None = None) -> BadInput:
        return BadInput(what, file=self.path, tensor=tensor, expected=expected, got=got)

    def take(self, nbytes: int) -> int:
        """Skips `nbytes` and returns where they begin."""
        begin = self.offset
        if nbytes > self.data.size - begin:
            raise self.fail(
                f"the file ends inside {self.where}",
                expected=f"{nbytes} bytes at {begin}",
                got=int(self.data.size) - begin,
            )
        self.offset = begin + nbytes
        return begin

    def u32(self) -> int:
        return int(_U32.unpack_from(self.buffer, self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.buffer, self.take(8))[0])

    def string(self) -> bytes:
        size = self.u64()
        begin = self.take(size)
        return self.buffer[begin : begin + size]

    def text(self) -> str:
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{self.where} is not UTF-8") from None

    def name(self, limit: int) -> str:
        name = self.text()
        if not name or not name.isprintable() or len(name.encode()) > limit:
            raise self.fail(
                f"{self.where} has a name that is empty, longer than {limit} bytes or not printable",
                got=repr(name[:80]),
            )
        return name

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.fail(f"{self.where} has an unknown type", got=kind)
        fmt = _SCALARS[kind]
        begin = self.take(struct.calcsize(fmt))
        if kind == BOOL and self.data[begin] > 1:
            raise self.fail(f"{self.where} is not a boolean", got=int(self.data[begin]))
        return struct.unpack_from(fmt, self.buffer, begin)[0]

    def _array(self) -> Any:
        kind, count = self.u32(), self.u64()
        if kind == STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            raise self.fail(f"{self.where} is an array of arrays or of an unknown type", got=kind)
        dtype = np.dtype(_SCALARS[kind] if kind != BOOL else "?")
        begin = self.take(count * dtype.itemsize)
        raw = self.data[begin : self.offset]
        if kind == BOOL and raw.size and raw.max() > 1:
            raise self.fail(f"{self.where} holds what is not a boolean")
        return raw.view(dtype)

    def _strings(self, count: int) -> StringArray:
        begin, read, data, offset = self.offset, _U64.unpack_from, self.buffer, self.offset
        if count > (len(data) - begin) // 8:
            raise self.fail(f"the file ends inside {self.where}", expected=f"{count} strings")
        try:
            for _ in range(count):
                offset += 8 + read(data, offset)[0]
        except (struct.error, OverflowError):
            raise self.fail(f"a string of {self.where} runs past the end of the file") from None
        self.take(offset - begin)
        return StringArray(self.path, self.buffer, begin, count)
