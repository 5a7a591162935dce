"""A checkpoint of any kind as canonical tensors, read lazily from memory-mapped files.

>>> c = open_checkpoint("gpt-oss-20b")
>>> c.kind, c.config.num_hidden_layers
('hf-mxfp4', 24)
>>> c.array("layers.0.q_proj.weight")                  # a view, nothing is copied
>>> blocks, scales = c.mxfp4("layers.0.experts.down.weight")
>>> c.read("layers.0.experts.down.weight", np.float32, expert=3)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint.dtypes import (
    DENSE,
    GGML_MXFP4_BYTES,
    Q8_0_BYTES,
    GgmlBlocks,
    decode_q8_0,
    stored_type,
)
from gptoss_adapters.checkpoint.files import U8, Array, MappedFile, Source
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import BLOCKS, SCALES, Codes, Dense, Part, Scales
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

_MERGE_ROWS = 512  # of a tensor that are merged at once


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One canonical tensor: logical shape [.., out, in], encoding ("mxfp4", "bf16", "f16", "f32", "q8_0"), bytes
    stored, and where: a part of it in each source. A tensor that adapters change has no parts.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    sources: tuple[Source, ...]
    parts: tuple[Part, ...]

    @property
    def per_expert(self) -> bool:
        """Whether every expert has sources of its own."""
        return bool(self.parts) and self.parts[0].expert is not None

    @property
    def is_block_pair(self) -> bool:
        """Whether it is stored as two whole arrays, blocks [.., in / 32, 16] and scales [.., in / 32]."""
        return tuple((p.storage, p.expert) for p in self.parts) == ((BLOCKS, None), (SCALES, None))

    def shares(self, expert: int | None) -> list[tuple[Source, Part]]:
        """Sources and parts of one expert, or of the whole tensor if its experts are not stored apart."""
        pairs = zip(self.sources, self.parts, strict=True)
        return [(s, p) for s, p in pairs if not self.per_expert or p.expert == expert]

    def lies_like(self, other: TensorInfo) -> bool:
        """Whether equal bytes of the sources, in order, mean equal tensors."""
        same = self.encoding == other.encoding and len(self.parts) == len(other.parts)
        return same and all(p.lies_like(q) for p, q in zip(self.parts, other.parts, strict=True))


class Delta(Protocol):
    """What adapters do to a canonical tensor [.., out, in], seen as rows [prod(leading), in]."""

    def apply(self, values: npt.NDArray[np.float32], begin: int) -> None:
        """Changes `values`, which are rows begin.. of the base, in place."""


@dataclass(frozen=True)
class Checkpoint:
    """See the module's text. `stored` maps each file to its reader; `oddities` lists what is unusual but harmless,
    `unheeded` what of its config is not obeyed: every exporter says that too.
    """

    kind: Kind
    path: Path
    config: GptOssConfig
    stored: dict[Path, MappedFile]
    tensors: dict[str, TensorInfo]
    config_file: Path | None = None
    hf_config: Mapping[str, Any] = field(default_factory=dict)  # config.json as it stands, in HF spelling
    tokenizer_files: dict[str, Path] = field(default_factory=dict)
    chat_template: str | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # others, by name
    generation_config: dict[str, Any] | None = None
    license_text: str | None = None
    model_card: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()
    unheeded: tuple[str, ...] = ()
    deltas: Mapping[str, Delta] = field(default_factory=dict)  # canonical name -> what adapters add to it, see lora.py
    base: Checkpoint | None = None  # what they are added to
    adapters: tuple[str, ...] = ()  # in words

    def with_config(self, config: GptOssConfig) -> Checkpoint:
        """The same tensors under another config; sizes must stay."""
        return dataclasses.replace(self, config=config)

    def expert_encodings(self) -> set[str]:
        """In what types the experts' weights are stored; more than one in a model that was partly tuned."""
        names = (name for name in self.tensors if ".experts." in name and name.endswith(".weight"))
        return {self.tensors[name].encoding for name in names}

    def raw(self, source: Source) -> U8:
        """The stored bytes of one source, a flat read-only view."""
        return self.stored[source.file].data[source.offset : source.offset + source.nbytes]

    def release(self, name: str) -> None:
        """Let this process forget the pages of a tensor that was read."""
        for source in self.tensors[name].sources:
            self.stored[source.file].release(source.offset, source.nbytes)

    def array(self, name: str, expert: int | None = None) -> Array:
        """A dense tensor in its stored dtype: a view on the file, except gate_up of a GGUF, which is put together.

        `expert` takes one index of the first axis. Raises TypeError for MXFP4 and Q8_0, which `read` decodes.
        """
        info = self.tensors[name]
        if info.encoding in ("mxfp4", "q8_0"):
            raise TypeError(f"{name} is stored as {info.encoding}: use read(), or mxfp4() for its blocks")
        if name in self.deltas:
            return self._merge(info, expert)
        return self._put_together(info, expert, lambda s: self.raw(s).view(DENSE[s.dtype]).reshape(s.shape))

    def mxfp4(self, name: str, expert: int | None = None) -> tuple[U8, U8]:
        """blocks [E, O, G, 16] and scales [E, O, G] in HF nibble order: views, or converted copies where they are
        stored otherwise.

        With `expert`, [O, G, 16] and [O, G]. Raises TypeError when the tensor is not stored as MXFP4.
        """
        info = self.tensors[name]
        if info.encoding != "mxfp4":
            raise TypeError(f"{name} is stored as {info.encoding}, not mxfp4")
        if expert is None and (info.per_expert or len(info.parts) == 4):
            pairs = [self.mxfp4(name, e) for e in range(info.shape[0])]
            return np.stack([b for b, _ in pairs]), np.stack([s for _, s in pairs])
        shares = info.shares(expert)
        if isinstance(stored_type(shares[0][0].dtype), GgmlBlocks):
            return self._unpack_ggml(info, expert)
        at = None if info.per_expert else expert
        blocks = [_pick(p.storage.blocks(self.raw(s), s), at) for s, p in shares if isinstance(p.storage, Codes)]
        scales = [_pick(p.storage.scales(self.raw(s), s), at) for s, p in shares if isinstance(p.storage, Scales)]
        return _interleave(blocks), _interleave(scales)

    def _merge(self, info: TensorInfo, expert: int | None) -> Array:
        """Base plus deltas in float32, rounded once to the encoding's type; a piece of the rows at a time."""
        values = self._base_values(info.name, expert)
        rows = values.reshape(-1, info.shape[-1])
        out = np.empty(rows.shape, DENSE[info.encoding.upper()])
        first = len(rows) * (expert or 0)
        for at in range(0, len(rows), _MERGE_ROWS):
            piece = rows[at : at + _MERGE_ROWS].astype(np.float32)
            self.deltas[info.name].apply(piece, first + at)
            out[at : at + len(piece)] = piece
        return out.reshape(values.shape)

    def _base_values(self, name: str, expert: int | None) -> Array:
        """What the deltas are added to, in the narrowest type that holds it."""
        assert self.base is not None
        encoding = self.base.tensors[name].encoding
        if encoding == "mxfp4":
            return self.base.read(name, DENSE["BF16"], expert)
        if encoding == "q8_0":
            return self.base.read(name, np.float32, expert)
        return self.base.array(name, expert)

    def _unpack_ggml(self, info: TensorInfo, expert: int | None) -> tuple[U8, U8]:
        lead = (*((1,) if expert is not None else info.shape[:1]), *info.shape[1:-1])
        groups = info.shape[-1] // MXFP4_BLOCK
        blocks = np.empty((*lead, groups, MXFP4_BLOCK // 2), np.uint8)
        scales = np.empty((*lead, groups), np.uint8)
        for source, part in info.shares(expert):
            stored = stored_type(source.dtype)
            assert isinstance(stored, GgmlBlocks)
            experts = _slice(self.raw(source).reshape(source.shape[0], -1), expert)
            rows = experts.reshape(-1, groups * GGML_MXFP4_BYTES)
            stored.unpack(rows, blocks, scales, part.rows.start, part.rows.step)
        if expert is not None:
            return blocks[0], scales[0]
        return blocks, scales

    def expert(self, name: str, e: int) -> Array | tuple[U8, U8]:
        """One expert as it is stored: (blocks [O, G, 16], scales [O, G]) for MXFP4, else a dense [O, I] or [O]
        array.
        """
        return self.mxfp4(name, e) if self.tensors[name].encoding == "mxfp4" else self.array(name, e)

    def read(self, name: str, dtype: npt.DTypeLike = np.float32, expert: int | None = None) -> Array:
        """A decoded copy of the tensor (or of one expert) in `dtype`. Exact in float32 and float64."""
        encoding = self.tensors[name].encoding
        if encoding == "mxfp4":
            from gptoss_adapters import mxfp4

            blocks, scales = self.mxfp4(name, expert)
            return mxfp4.decode(blocks, scales, dtype)
        if encoding == "q8_0":
            rows = self.q8_0(name, expert)
            return decode_q8_0(rows).reshape(*rows.shape[:-1], -1).astype(dtype, copy=False)
        return np.array(self.array(name, expert), dtype=dtype, order="C")

    def q8_0(self, name: str, expert: int | None = None) -> U8:
        """The GGML Q8_0 rows [.., out, in / 32 * 34] of a tensor stored so: a view, or a copy for gate_up."""
        info = self.tensors[name]
        if info.encoding != "q8_0":
            raise TypeError(f"{name} is stored as {info.encoding}, not q8_0")
        width = info.shape[-1] // MXFP4_BLOCK * Q8_0_BYTES
        return self._put_together(info, expert, lambda s: self.raw(s).reshape(*s.shape[:-1], width))

    def _put_together(self, info: TensorInfo, expert: int | None, load: Callable[[Source], Array]) -> Array:
        """The tensor, or one expert of it, out of its sources' arrays: a view where it is one source."""
        if info.per_expert and expert is None:
            return np.stack([self._put_together(info, e, load) for e in range(info.shape[0])])
        shares = info.shares(expert)
        arrays = [load(s)[None] if info.per_expert else _slice(load(s), expert) for s, _ in shares]
        whole = self._assemble(info, arrays, [part for _, part in shares])
        return whole if expert is None else whole[0]

    def _assemble(self, info: TensorInfo, arrays: list[Array], parts: list[Part]) -> Array:
        if len(arrays) == 1:
            storage = parts[0].storage
            assert isinstance(storage, Dense)
            return storage.array(arrays[0], self.config)
        out = np.empty((len(arrays[0]), info.shape[1], *arrays[0].shape[2:]), arrays[0].dtype)
        for array, part in zip(arrays, parts, strict=True):
            out[part.rows.index] = array
        return out

    def check(self, name: str) -> None:
        """Reads a tensor's bytes to refuse what no engine computes alike: scale byte 255, NaN and Inf. Raises
        BadInput.
        """
        info = self.tensors[name]
        if name in self.deltas and self.base is not None:
            self.base.check(name)
            return
        for source, part in zip(info.sources, info.parts, strict=True):
            part.storage.check(self.raw(source), source)

    def check_unchanged(self) -> None:
        """Raises BadInput when one of the files changed since the checkpoint was opened."""
        for file in self.stored.values():
            file.check_unchanged()


def _slice(array: Array, expert: int | None) -> Array:
    """One expert with its axis, or all of them."""
    return array if expert is None else array[expert : expert + 1]


def _pick(array: U8, expert: int | None) -> U8:
    """One expert without its axis, or all of them."""
    return array if expert is None else array[expert]


def _interleave(halves: list[U8]) -> U8:
    """gate and up [O / 2, ..] -> [O, ..], gate on even rows; a whole tensor as it is."""
    if len(halves) == 1:
        return halves[0]
    return np.stack(halves, axis=1).reshape(-1, *halves[0].shape[1:])
