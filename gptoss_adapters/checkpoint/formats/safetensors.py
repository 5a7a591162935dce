"""The safetensors format, read strictly: every rule of its specification is enforced, and some that its library leaves
open.

A file is an 8-byte little-endian header length, a JSON header `name -> {dtype, shape, data_offsets}`, and the tensors'
bytes without a hole or an overlap up to the end. Nothing but the header is read until a tensor is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.checkpoint.files import MAX_JSON_BYTES, MappedFile, Source, locate, parse_json, read_json
from gptoss_adapters.errors import BadInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_NAME_BYTES = 1024
_COMPARED = 1 << 24  # bytes of two tensors that are compared at once
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


class SafetensorsFile(MappedFile):
    """One file: `tensors` by stored name in file order, and `metadata`. Raises BadInput naming file and tensor."""

    def __init__(self, path: Path, real: Path | None = None) -> None:
        super().__init__(path, real)
        header, begin = self._header()
        self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", {}))
        self.tensors: dict[str, Source] = {s.name: s for s in self._sources(header, begin)}

    def _header(self) -> tuple[dict[str, Any], int]:
        size = int.from_bytes(self.data[:8].tobytes(), "little")
        if self.data.size < 8:
            raise BadInput(
                "the file is too short for a checkpoint",
                file=self.path,
                expected="8 bytes and a header",
                got=int(self.data.size),
            )
        if size > MAX_JSON_BYTES:
            what = "the header is too large, or this is neither a safetensors nor a GGUF file"
            raise BadInput(what, file=self.path, expected=f"at most {MAX_JSON_BYTES} bytes", got=size)
        if size > self.data.size - 8:
            raise BadInput(
                "the header runs past the end of the file",
                file=self.path,
                expected=f"{size} bytes",
                got=int(self.data.size - 8),
            )
        text = self.data[8 : 8 + size].tobytes()
        if not text.startswith(b"{"):
            raise BadInput("the header must begin with {", file=self.path, got=repr(text[:1]))
        return parse_json(text, self.path), 8 + size

    def _metadata(self, raw: Any) -> dict[str, str]:
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            raise BadInput("__metadata__ must map strings to strings", file=self.path)
        return raw

    def _sources(self, header: dict[str, Any], begin: int) -> list[Source]:
        sources = sorted((self._source(n, e, begin) for n, e in header.items()), key=lambda s: (s.offset, s.nbytes))
        end = begin
        for s in sources:
            if s.offset != end:
                what = "leaves a hole before it" if s.offset > end else "overlaps the tensor before it"
                raise BadInput(
                    f"the tensor {what}",
                    file=self.path,
                    tensor=s.name,
                    expected=f"offset {end - begin}",
                    got=s.offset - begin,
                )
            end = s.offset + s.nbytes
        if end != self.data.size:
            tensor, what = (
                (None, "trailing bytes after the last tensor")
                if end < self.data.size
                else (sources[-1].name, "the file is truncated")
            )
            raise BadInput(what, file=self.path, tensor=tensor, expected=f"{end} bytes", got=int(self.data.size))
        return sources

    def _source(self, name: str, entry: Any, begin: int) -> Source:
        def need(ok: bool, what: str, expected: object = None, got: object = None) -> None:
            if not ok:
                raise BadInput(what, file=self.path, tensor=name or "(empty name)", expected=expected, got=got)

        plain = name.isprintable() and not set(name) & set("/\\") and len(name.encode()) <= MAX_NAME_BYTES
        need(bool(name) and plain, "the tensor's name is not a plain name")
        need(isinstance(entry, dict), "the header entry must be an object")
        need(
            set(entry) == {"dtype", "shape", "data_offsets"},
            "the header entry has other fields",
            "dtype, shape, data_offsets",
            ", ".join(entry),
        )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        need(isinstance(dtype, str) and dtype in ITEM_BYTES, "unknown or unsupported dtype", got=dtype)
        need(
            isinstance(shape, list) and all(_is_size(d) for d in shape), "the shape must be a list of sizes", got=shape
        )
        need(
            isinstance(offsets, list) and len(offsets) == 2 and all(_is_size(o) for o in offsets),
            "data_offsets must be two offsets",
            got=offsets,
        )
        nbytes = ITEM_BYTES[dtype]
        for d in shape:
            nbytes *= d
        need(
            offsets[1] - offsets[0] == nbytes,
            "dtype and shape do not fit the offsets",
            f"{nbytes} bytes",
            offsets[1] - offsets[0],
        )
        return Source(self.path, name, dtype, tuple(shape), begin + offsets[0], nbytes)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


@dataclass(frozen=True)
class Shards:
    """The files that make up a checkpoint, and what is odd about them. `orphans`: tensors that no index names."""

    files: list[SafetensorsFile]
    odd: list[str] = field(default_factory=list)
    orphans: frozenset[str] = frozenset()


def open_folder(root: Path) -> Shards:
    """The safetensors files that make up the checkpoint in the resolved folder `root`.

    In this order, as transformers does: `model.safetensors`; the files of the index; else the complete set of numbered
    shards, or the only file. Raises BadInput for a missing shard, a tensor that differs between two shards, an index
    that lies.
    """
    present = sorted(p.name for p in root.glob("*.safetensors"))
    has_index = (root / INDEX).is_symlink() or (root / INDEX).exists()
    if SINGLE in present:
        odd = [f"{INDEX} stands beside {SINGLE} and was ignored"] if has_index else []
        return Shards(open_files(root, [SINGLE], odd), odd)
    if has_index:
        return _open_index(root)
    odd = []
    return Shards(open_files(root, _shard_set(root, present), odd), odd)


def open_files(root: Path, names: Iterable[str], odd: list[str]) -> list[SafetensorsFile]:
    """Files of one folder as one checkpoint; see `drop_doubles`."""
    files = [SafetensorsFile(root / name, locate(root, name)) for name in names]
    drop_doubles(files, odd)
    return files


def drop_doubles(files: Iterable[SafetensorsFile], odd: list[str]) -> None:
    """A tensor that stands in two files, byte for byte, counts once, and `odd` says so. Raises BadInput when the two
    differ.
    """
    owner: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in [name for name in file.tensors if name in owner]:
            first = owner[name]
            if not _is_same(first, file, name):
                raise BadInput(
                    "the tensor stands in two files, which differ",
                    file=file.path,
                    tensor=name,
                    got=f"also in {first.path.name}",
                )
            del file.tensors[name]
            odd.append(f"{name} stands in {first.path.name} and, the same, in {file.path.name}")
        owner |= dict.fromkeys(file.tensors, file)


def _is_same(a: SafetensorsFile, b: SafetensorsFile, name: str) -> bool:
    x, y = a.tensors[name], b.tensors[name]
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    return all(
        np.array_equal(
            a.data[x.offset + at : x.offset + min(at + _COMPARED, x.nbytes)],
            b.data[y.offset + at : y.offset + min(at + _COMPARED, y.nbytes)],
        )
        for at in range(0, x.nbytes, _COMPARED)
    )


def _open_index(root: Path) -> Shards:
    index = read_json(root / INDEX, locate(root, INDEX))
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadInput("weight_map must map tensor names to file names", file=root / INDEX)
    odd: list[str] = []
    files = {f.path.name: f for f in open_files(root, dict.fromkeys(weight_map.values()), odd)}
    held = {tensor for file in files.values() for tensor in file.tensors}
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].tensors and not (tensor in held and odd):
            raise BadInput(
                f"the index places the tensor in {shard}, which does not hold it", file=root / INDEX, tensor=tensor
            )
    total = sum(s.nbytes for f in files.values() for s in f.tensors.values())
    metadata = index.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated not in (None, total) and not odd:
        odd.append(f"{INDEX} states total_size {stated}, the tensors take {total} bytes")
    return Shards(list(files.values()), odd, frozenset(held - weight_map.keys()))


def _shard_set(root: Path, present: list[str]) -> list[str]:
    """One file, or a complete numbered set: `of N` counts the files from one, or names the last of zero-based ones."""
    sets: dict[tuple[str, str], dict[int, str]] = {}
    for name in present:
        match = re.fullmatch(r"(.*?)-+(\d+)-of-(\d+)\.safetensors", name)
        if match:
            sets.setdefault((match[1], match[3]), {})[int(match[2])] = name
    if len(present) == 1 and not sets:
        return present
    if len(sets) != 1:
        what = (
            "no safetensors file in the folder"
            if not present
            else "which of the safetensors files make up the checkpoint is unclear"
        )
        raise BadInput(
            what, file=root, got=", ".join(present) or None, hint="name the file, or add model.safetensors.index.json"
        )
    ((_, last), numbered), *_ = sets.items()
    expected = range(0 if 0 in numbered else 1, int(last) + 1)
    if stray := [n for n in numbered if n not in expected]:
        raise BadInput(f"the shard's number exceeds the number of shards {last}", file=root / numbered[stray[0]])
    missing = next((n for n in expected if n not in numbered), None)
    if missing is not None:
        raise BadInput(f"shard {missing} of {last} is missing", file=root, got=", ".join(present))
    return [numbered[n] for n in expected]
