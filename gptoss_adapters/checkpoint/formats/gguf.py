"""The GGUF format, memory-mapped and read strictly: what llama.cpp rejects is rejected here, and some that it lets
pass.

Layout: magic, version, counts; metadata (key, type, value); tensor infos (name, dimensions fastest first, type,
offset); padding; tensor data. Source: the GGUF specification, and the checks of llama.cpp's gguf.cpp and model loader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.dtypes import DENSE, OLD_MXFP4
from gptoss_adapters.checkpoint.files import MappedFile, Source, locate
from gptoss_adapters.checkpoint.formats.gguf_values import UINT32, Cursor, StringArray
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.resolving import USE_LORA, resolve
from gptoss_adapters.errors import BadInput

MAGIC, VERSIONS, DEFAULT_ALIGNMENT = b"GGUF", (2, 3), 32
MAX_TENSORS = MAX_KEYS = 1_000_000
MAX_NAME_BYTES, MAX_DIMS = 63, 4  # ggml: 64 with the terminator

# type number: (name, values per block, bytes per block)
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
OLD_TYPES = {
    4: (OLD_MXFP4, 32, 17)
}  # Ollama's own number for MXFP4, before GGML had one (there it was Q4_2, long removed)
READABLE = (*DENSE, "Q8_0", "MXFP4")  # the types that a checkpoint's tensors may have


class GgufFile(MappedFile):
    """One file: `metadata` (scalars, strings, numpy views, StringArray), `types` of its values, and `tensors` in file
    order.

    A tensor's Source has its shape row-major (the reverse of GGUF's order) and counts values, also of block types.
    """

    def __init__(self, path: Path, real: Path | None = None) -> None:
        super().__init__(path, real)
        cursor = Cursor(self)
        count, keys = self._header(cursor)
        self.metadata: dict[str, Any] = {}
        self.types: dict[str, int] = {}
        self.spans: dict[str, slice] = {}  # of each value's bytes
        for _ in range(keys):
            self._key(cursor)
        self.alignment = self._alignment(cursor)
        infos = [self._info(cursor) for _ in range(count)]
        self.data_begin = -(-cursor.offset // self.alignment) * self.alignment
        self.tensors = self._place(infos, cursor)

    def value_bytes(self, key: str) -> bytes:
        """A metadata value as it is stored, without its type; an array with its element type and length."""
        return self.buffer[self.spans[key]]

    def _header(self, c: Cursor) -> tuple[int, int]:
        magic = c.buffer[c.take(4) : 4]
        if magic != MAGIC:
            raise c.fail("is not a GGUF file", expected=MAGIC.decode(), got=repr(magic))
        version = c.u32()
        if version not in VERSIONS:
            what = "is a big-endian GGUF file" if version and not version & 0xFFFF else "unsupported GGUF version"
            raise c.fail(what, expected="2 or 3", got=version)
        count, keys = c.u64(), c.u64()
        if count > MAX_TENSORS or keys > MAX_KEYS:
            raise c.fail(
                "the header counts more tensors or keys than any model has",
                expected=f"at most {MAX_TENSORS}",
                got=f"{count}, {keys}",
            )
        return count, keys

    def _key(self, c: Cursor) -> None:
        c.where = f"metadata key {len(self.metadata)}"
        key = c.name(65535)
        if key in self.metadata:
            raise c.fail("duplicate metadata key", got=key)
        c.where = f"metadata key {key}"
        self.types[key] = c.u32()
        begin = c.offset
        self.metadata[key] = c.value(self.types[key])
        self.spans[key] = slice(begin, c.offset)

    def _alignment(self, c: Cursor) -> int:
        value = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if self.types.get("general.alignment", UINT32) != UINT32 or value < 1 or value & (value - 1):
            raise c.fail("general.alignment must be a power of two", got=value)
        return int(value)

    def _info(self, c: Cursor) -> tuple[str, tuple[int, ...], int, int]:
        c.where = "the list of tensors"
        name = c.name(MAX_NAME_BYTES)
        dims = c.u32()
        if not 1 <= dims <= MAX_DIMS:
            raise c.fail("wrong number of dimensions", tensor=name, expected=f"1 to {MAX_DIMS}", got=dims)
        shape = tuple(c.u64() for _ in range(dims))[::-1]
        return name, shape, c.u32(), c.u64()

    def _place(self, infos: list[tuple[str, tuple[int, ...], int, int]], c: Cursor) -> dict[str, Source]:
        tensors: dict[str, Source] = {}
        expected = end = 0
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise c.fail("duplicate tensor", tensor=name)
            type_name, nbytes = _nbytes(c, name, shape, kind)
            if offset != expected:
                what = (
                    "the tensor's offset is not aligned"
                    if offset % self.alignment
                    else "the tensor leaves a hole or overlaps another"
                )
                raise c.fail(what, tensor=name, expected=f"offset {expected}", got=offset)
            end = offset + nbytes
            if self.data_begin + end > self.data.size:
                raise c.fail(
                    "the tensor runs past the end of the file",
                    tensor=name,
                    expected=f"{self.data_begin + end} bytes",
                    got=int(self.data.size),
                )
            tensors[name] = Source(self.path, name, type_name, shape, self.data_begin + offset, nbytes)
            expected = -(-end // self.alignment) * self.alignment
        if self.data.size > self.data_begin + expected:
            raise c.fail(
                "trailing bytes after the last tensor",
                expected=f"{self.data_begin + expected} bytes",
                got=int(self.data.size),
            )
        return tensors


def _nbytes(c: Cursor, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """Type name and size of a tensor; every number is checked before it is used."""
    if kind not in TYPES and kind not in OLD_TYPES:
        raise c.fail("unknown tensor type", tensor=name, got=kind)
    type_name, block, block_bytes = TYPES.get(kind) or OLD_TYPES[kind]
    values = 1
    for d in shape:
        values *= d
    if not 0 < values < 2**63 or max(shape) >= 2**63:
        raise c.fail("a dimension is zero or their product overflows", tensor=name, got=list(shape))
    if shape[-1] % block:
        raise c.fail(f"a row of {type_name} must be a multiple of {block} values", tensor=name, got=shape[-1])
    return type_name, values // block * block_bytes


_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def open_splits(path: Path) -> list[GgufFile]:
    """A GGUF file, or all files of a split one, given its first. Raises BadInput for a missing or foreign part."""
    root = path.parent.resolve()
    first = GgufFile(root / path.name, path.resolve())
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [first]
    match = _SPLIT_NAME.fullmatch(path.name)
    if _number(first, "split.no") != 0 or not match or int(match[3]) != count:
        raise BadInput(
            "is one part of a split GGUF",
            file=path,
            expected=f"the first part, NAME-00001-of-{count:05d}.gguf",
            hint="name the first part",
        )
    names = [f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(1, count)]
    files = [first]
    for number, name in enumerate(names, 1):
        files.append(GgufFile(root / name, locate(root, name)))
        got = _number(files[-1], "split.no"), _number(files[-1], "split.count")
        if got != (number, count):
            raise BadInput(
                "is not the part that its name says",
                file=root / name,
                expected=f"split.no {number}, split.count {count}",
                got=got,
            )
    return files


def _number(file: GgufFile, key: str, default: int = -1) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int):
        raise BadInput(f"metadata key {key} must be an integer", file=file.path, got=value)
    return value


def open_gguf(path: Path) -> Checkpoint:
    """A gpt-oss GGUF (one file, or the first of several), or a blob of Ollama's library, as a Checkpoint.

    Raises BadInput naming file and tensor.
    """
    from gptoss_adapters.checkpoint.formats.ollama import is_blob, translated

    files = open_splits(path)
    metadata = files[0].metadata
    if str(metadata.get("general.type")) == "adapter":  # a key may hold an array
        raise BadInput("is a LoRA adapter, not a model", file=path, hint=USE_LORA)
    sources = _gather_sources(path, files)
    if blob := is_blob(metadata):
        metadata = translated(metadata, sources)
    config = spellings.from_gguf(metadata, _vocab_size(files[0], sources), str(path))
    kind = layouts.tell_kind(sources, config, (Kind.OLLAMA, Kind.GGUF)) if blob else Kind.GGUF
    tensors = resolve(kind, path, config, sources, (*READABLE, OLD_MXFP4) if blob else READABLE)
    template = metadata.get("tokenizer.chat_template")
    odd = [] if "tokenizer.ggml.tokens" in metadata else ["no vocabulary in the file"]
    if kind is Kind.OLLAMA:
        odd.append(
            "an Ollama blob of architecture gptoss, which llama.cpp and Ollama from 0.30 on do not load as it is"
        )
    return Checkpoint(
        kind,
        path,
        config,
        {f.path: f for f in files},
        tensors,
        metadata=metadata,
        oddities=tuple(odd),
        chat_template=template if isinstance(template, str) else None,
        chat_templates=_find_named_templates(metadata),
    )


def _find_named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template."
    return {
        key.removeprefix(prefix): text
        for key, text in metadata.items()
        if key.startswith(prefix) and isinstance(text, str)
    }


def _gather_sources(path: Path, files: list[GgufFile]) -> dict[str, Source]:
    """The tensors of all parts, as many as the first part says."""
    sources: dict[str, Source] = {}
    for file in files:
        for name, source in file.tensors.items():
            if name in sources:
                raise BadInput(
                    "the tensor stands in two files",
                    file=file.path,
                    tensor=name,
                    got=f"also in {sources[name].file.name}",
                )
            sources[name] = source
    stated = _number(files[0], "split.tensors.count", len(sources))
    if len(files) > 1 and stated != len(sources):
        raise BadInput("split.tensors.count does not fit the parts", file=path, expected=stated, got=len(sources))
    return sources


def _vocab_size(file: GgufFile, sources: dict[str, Source]) -> int:
    embedding = sources.get("token_embd.weight")
    if embedding is None:
        raise BadInput("the tensor is missing", file=file.path, tensor="token_embd.weight")
    tokens = file.metadata.get("tokenizer.ggml.tokens", ())
    if isinstance(tokens, StringArray) and len(tokens) != embedding.shape[0]:
        raise BadInput(
            "the vocabulary does not fit the embedding",
            file=file.path,
            tensor=embedding.name,
            expected=f"{len(tokens)} rows",
            got=embedding.shape[0],
        )
    return embedding.shape[0]
