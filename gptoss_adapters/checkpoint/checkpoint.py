"""A checkpoint of any kind as canonical tensors, read lazily from memory-mapped files.

>>> c = open_checkpoint("gpt-oss-20b")
>>> c.kind, c.config.num_hidden_layers
('hf-mxfp4', 24)
>>> c.array("layers.0.q_proj.weight")                  # a view, nothing is copied
>>> blocks, scales = c.mxfp4("layers.0.experts.down.weight")
>>> c.read("layers.0.experts.down.weight", np.float32, expert=3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.files import U8, Array, MappedFile, Source
from gptoss_adapters.checkpoint.layouts import Part
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

GGML_MXFP4_BYTES = MXFP4_BLOCK // 2 + 1
Q8_0_BYTES = MXFP4_BLOCK + 2
DENSE = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
OLD_MXFP4 = "MXFP4_OLD"  # Ollama's tensor type 4: GGML's blocks with the nibbles in Hugging Face's order
GGML_MXFP4 = ("MXFP4", OLD_MXFP4)
ENCODINGS = {"BF16": "bf16", "F16": "f16", "F32": "f32", "Q8_0": "q8_0", "MXFP4": "mxfp4"}
_MERGE_ROWS = 512  # of a tensor that are merged at once
METAL_SCALE_BIAS, METAL_FACTOR = 14, {"q": 0.5, "k": 0.25, "v": 1.0}  # see metal.py
_ROLE_DTYPES = {
    "blocks": ("U8",),
    "packed": ("U8",),
    "scales": ("U8",),
    "exponents": ("U8", "F8_E8M0"),
    "words": ("U32",),
    "biased": ("U8",),
}  # others: the kind's dense dtypes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One canonical tensor: logical shape [.., out, in], encoding ("mxfp4", "bf16", "f16", "f32", "q8_0"), bytes
    stored, and where.

    `experts` says whose part each source is, where every expert has sources of its own.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    sources: tuple[Source, ...]
    roles: tuple[str, ...]
    experts: tuple[int, ...] = ()

    def of(self, expert: int | None) -> list[tuple[Source, str]]:
        """Sources and roles of one expert, or of the whole tensor if its experts are not stored apart."""
        return [
            (s, r)
            for s, r, e in zip(self.sources, self.roles, self.experts or (expert,) * len(self.sources), strict=True)
            if e == expert
        ]


class Delta(Protocol):
    """What is added to a canonical tensor [.., out, in], seen as rows [prod(leading), in]."""

    def rows(self, begin: int, end: int) -> npt.NDArray[np.float32]: ...


@dataclass
class Checkpoint:
    """See the module's text. `stored` maps each file to its reader; `oddities` lists what is unusual but harmless."""

    kind: str
    path: Path
    config: GptOssConfig
    stored: dict[Path, MappedFile]
    tensors: dict[str, TensorInfo]
    config_file: Path | None = None
    tokenizer_files: dict[str, Path] = field(default_factory=dict)
    chat_template: str | None = None
    generation_config: dict[str, Any] | None = None
    license_text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    oddities: list[str] = field(default_factory=list)
    deltas: Mapping[str, Delta] = field(default_factory=dict)  # canonical name -> what adapters add to it, see lora.py
    base: Checkpoint | None = None  # what they are added to
    adapters: list[str] = field(default_factory=list)  # in words

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
            return self._merged(info, expert)
        return self._put_together(info, expert, lambda s: self.raw(s).view(DENSE[s.dtype]).reshape(s.shape))

    def mxfp4(self, name: str, expert: int | None = None) -> tuple[U8, U8]:
        """blocks [E, O, G, 16] and scales [E, O, G] in HF nibble order: views, or converted copies where they are
        stored otherwise.

        With `expert`, [O, G, 16] and [O, G]. Raises TypeError when the tensor is not stored as MXFP4.
        """
        info = self.tensors[name]
        if info.encoding != "mxfp4":
            raise TypeError(f"{name} is stored as {info.encoding}, not mxfp4")
        if expert is None and (info.experts or len(info.roles) == 4):
            pairs = [self.mxfp4(name, e) for e in range(info.shape[0])]
            return np.stack([b for b, _ in pairs]), np.stack([s for _, s in pairs])
        parts = info.of(expert)
        if parts[0][0].dtype in GGML_MXFP4:
            return self._mxfp4_from_ggml(info, expert)
        arrays = [
            _squeeze(_rows(a, None if info.experts else expert), None if info.experts else expert)
            for a in map(self._hf_part, parts)
        ]
        if len(arrays) == 2:
            return arrays[0], arrays[1]
        return _interleaved(arrays[0::2]), _interleaved(arrays[1::2])

    def _merged(self, info: TensorInfo, expert: int | None) -> Array:
        """Base plus deltas in float32, rounded once to the encoding's type; a piece of the rows at a time."""
        assert self.base is not None
        encoding = self.base.tensors[info.name].encoding
        values = (
            self.base.read(info.name, DENSE["BF16"], expert)
            if encoding == "mxfp4"
            else self.base.array(info.name, expert)
            if encoding != "q8_0"
            else self.base.read(info.name, np.float32, expert)
        )
        rows = values.reshape(-1, info.shape[-1])
        out, first = np.empty(rows.shape, DENSE[info.encoding.upper()]), len(rows) * (expert or 0)
        for at in range(0, len(rows), _MERGE_ROWS):
            piece = rows[at : at + _MERGE_ROWS].astype(np.float32)
            piece += self.deltas[info.name].rows(first + at, first + at + len(piece))
            out[at : at + len(piece)] = piece
        return out.reshape(values.shape)

    def _hf_part(self, part: tuple[Source, str]) -> U8:
        """blocks [.., G, 16] or scales [.., G] of one source."""
        source, role = part
        if layouts.storage_of(role) in ("packed", "words"):
            return self.raw(source).reshape(*source.shape[:-1], -1, MXFP4_BLOCK // 2)
        array = self.raw(source).reshape(source.shape)
        return array - np.uint8(METAL_SCALE_BIAS) if role == "biased" else array

    def _mxfp4_from_ggml(self, info: TensorInfo, expert: int | None) -> tuple[U8, U8]:
        lead = (*((1,) if expert is not None else info.shape[:1]), *info.shape[1:-1])
        groups = info.shape[-1] // MXFP4_BLOCK
        blocks, scales = np.empty((*lead, groups, MXFP4_BLOCK // 2), np.uint8), np.empty((*lead, groups), np.uint8)
        for source, role in zip(info.sources, info.roles, strict=True):
            rows = _rows(self.raw(source).reshape(source.shape[0], -1), expert).reshape(-1, groups * GGML_MXFP4_BYTES)
            from_ggml(
                rows,
                source.dtype,
                blocks,
                scales,
                row_start=int(role == "up"),
                row_step=2 if role in ("gate", "up") else 1,
            )
        return _squeeze(blocks, expert), _squeeze(scales, expert)

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
        if info.experts and expert is None:
            return np.stack([self._put_together(info, e, load) for e in range(info.shape[0])])
        parts = [load(s)[None] if info.experts else _rows(load(s), expert) for s, _ in info.of(expert)]
        return _squeeze(self._assemble(info, parts), expert)

    def _assemble(self, info: TensorInfo, parts: list[Array]) -> Array:
        if len(parts) == 1:
            array = layouts.view(parts[0], info.roles[0], self.config)
            return from_pairs(array, info.roles[0], self.config.head_dim) if info.roles[0].endswith("_pairs") else array
        out = np.empty((len(parts[0]), info.shape[1], *parts[0].shape[2:]), parts[0].dtype)
        for part, role in zip(parts, info.roles, strict=False):  # the roles of every expert are the same
            out[layouts.place(role)] = part
        return out

    def check(self, name: str) -> None:
        """Reads a tensor's bytes to refuse what no engine computes alike: scale byte 255, NaN and Inf. Raises
        BadInput.
        """
        info = self.tensors[name]
        if name in self.deltas and self.base is not None:
            self.base.check(name)
            return
        for source, role in zip(info.sources, info.roles, strict=True):
            data = self.raw(source)
            if role == "biased":
                _refuse_255(self._hf_part((source, role)), source)
            elif layouts.storage_of(role) in ("scales", "exponents"):
                _refuse_255(data.reshape(source.shape), source)
            elif source.dtype in GGML_MXFP4:
                _refuse_255(data.reshape(-1, GGML_MXFP4_BYTES)[:, 0], source)
            else:
                _refuse_nonfinite(data, source)

    def check_unchanged(self) -> None:
        """Raises BadInput when one of the files changed since the checkpoint was opened."""
        for file in self.stored.values():
            file.check_unchanged()


def _rows(array: Array, expert: int | None) -> Array:
    return array if expert is None else array[expert : expert + 1]


def _squeeze(array: Array, expert: int | None) -> Array:
    return array if expert is None else array[0]


def from_pairs(rows: Array, role: str, head_dim: int) -> Array:
    """Rows (or values) of q or k as Metal's model.bin has them -> as everyone else has them: a head's rotary pairs
    apart, the share of 1 / sqrt(head_dim) taken out again. Exact: the factor is a power of two, and the writer refused
    what it would round.
    """
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    restored: Array = heads * rows.dtype.type(1 / METAL_FACTOR[role[0]])
    return restored


def _interleaved(halves: list[U8]) -> U8:
    """gate and up [O / 2, ..] -> [O, ..], gate on even rows."""
    return np.stack(halves, axis=1).reshape(-1, *halves[0].shape[1:])


def from_ggml(rows: U8, dtype: str, blocks: U8, scales: U8, row_start: int = 0, row_step: int = 1) -> None:
    """GGML rows [R, G * 17] of a type of GGML_MXFP4 into rows row_start, row_start + row_step, ... of blocks and
    scales.
    """
    from gptoss_adapters import mxfp4

    if dtype == OLD_MXFP4:
        block = rows.reshape(len(rows), -1, GGML_MXFP4_BYTES)
        groups = block.shape[1]
        blocks.reshape(-1, groups, MXFP4_BLOCK // 2)[row_start::row_step] = block[..., 1:]
        scales.reshape(-1, groups)[row_start::row_step] = block[..., 0]
    else:
        mxfp4.ggml_to_hf(rows, blocks, scales, row_start=row_start, row_step=row_step)


def decode_q8_0(rows: U8) -> npt.NDArray[np.float32]:
    """GGML Q8_0 blocks (f16 scale, 32 int8) [..] -> flat float32 values, exact."""
    blocks = np.ascontiguousarray(rows).reshape(-1, Q8_0_BYTES)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return values.reshape(-1)


def _refuse_255(scales: U8, source: Source) -> None:
    from gptoss_adapters.mxfp4 import check_scales

    check_scales(scales, source.file, source.name)


_CHUNK = 1 << 20  # values or blocks that one step of a scan looks at: keeps its temporaries in cache


def _refuse_nonfinite(data: U8, source: Source) -> None:
    step = _CHUNK * item_bytes(source.dtype)
    for begin in range(0, data.size, step):
        bad = bad_items(data[begin : begin + step], source.dtype)
        if bad.any():
            values = int(np.prod(source.shape)) // (data.size // item_bytes(source.dtype))  # that an item holds
            at = (begin // item_bytes(source.dtype) + int(np.argmax(bad))) * values
            where = [int(i) for i in np.unravel_index(at, source.shape)]
            raise BadInput(f"NaN or Inf at {where}", file=source.file, tensor=source.name)


def item_bytes(dtype: str) -> int:
    """Bytes of what has a NaN of its own: a value, or a block of MXFP4 or Q8_0; 1 for what has none."""
    return (
        DENSE[dtype].itemsize
        if dtype in DENSE
        else {"MXFP4": GGML_MXFP4_BYTES, OLD_MXFP4: GGML_MXFP4_BYTES, "Q8_0": Q8_0_BYTES}.get(dtype, 1)
    )


def bad_items(data: U8, dtype: str) -> npt.NDArray[np.bool_]:
    """Stored bytes, whole items -> a flag each: what no engine computes alike, which is scale byte 255, NaN and Inf."""
    if dtype in DENSE:
        return np.asarray(~np.isfinite(data.view(DENSE[dtype])))
    items: U8 = data.reshape(-1, item_bytes(dtype))
    if dtype in GGML_MXFP4:
        return np.asarray(items[:, 0] == 255)
    if dtype == "Q8_0":
        return np.asarray(~np.isfinite(np.ascontiguousarray(items[:, :2]).view(np.float16)[:, 0]))
    return np.zeros(len(items), np.bool_)


def resolve(
    kind: str, path: Path, config: GptOssConfig, sources: Mapping[str, Source], dense: tuple[str, ...]
) -> dict[str, TensorInfo]:
    """The canonical tensors of a checkpoint of this kind out of its stored ones, in forward order.

    Every name, shape and dtype is checked before a byte is read; `dense` lists the dtypes that unquantised parts may
    have.
    Raises BadInput naming file and tensor: a missing or left-over tensor, a wrong shape or dtype.
    """
    if config.hidden_size % MXFP4_BLOCK or config.intermediate_size % MXFP4_BLOCK:
        raise BadInput(
            f"hidden_size and intermediate_size must be multiples of {MXFP4_BLOCK}",
            file=path,
            got=f"{config.hidden_size}, {config.intermediate_size}",
        )
    _check_expert_count(kind, config, sources)
    wanted = layouts.stored(kind, config, sources)
    for name, source in sources.items():
        if name not in wanted:
            raise _unexpected(kind, config, source)
    for name, spec in wanted.items():
        if name not in sources:
            raise BadInput("the tensor is missing", file=path, tensor=name)
        _check_source(sources[name], spec, dense)
    shapes = layouts.canonical(config)
    return {
        name: _info(name, shapes[name], parts, sources) for name, parts in layouts.parts(kind, config, sources).items()
    }


def _check_expert_count(kind: str, config: GptOssConfig, sources: Mapping[str, Source]) -> None:
    """Pruned checkpoints have fewer experts; what the config says must be what the router has."""
    router = sources.get(layouts.parts(kind, config)["layers.0.router.weight"][0].name)
    if (
        router is not None
        and len(router.shape) == 2
        and router.shape[0] != config.num_experts
        and router.shape[1] == config.hidden_size
    ):
        raise BadInput(
            "the router has another number of experts than the config",
            file=router.file,
            tensor=router.name,
            expected=f"{config.num_experts} rows",
            got=router.shape[0],
        )


def _unexpected(kind: str, config: GptOssConfig, source: Source) -> BadInput:
    what = f"unexpected tensor in a checkpoint of kind {kind} with {config.num_hidden_layers} layers"
    hint = None
    if (
        ".absmax" in source.name
        or ".quant_state" in source.name
        or ".quant_map" in source.name
        or "bitsandbytes" in source.name
    ):
        hint = "bitsandbytes' 4-bit values are not MXFP4: save the model merged to 16 bits"
    elif ".lora_" in source.name:
        hint = "an adapter's tensor: name the adapter by --lora, beside the model that it is for"
    elif source.name.endswith("_global_scale"):
        hint = "NVFP4, not MXFP4: save the model in 16 bits or as MXFP4"
    return BadInput(what, file=source.file, tensor=source.name, hint=hint)


def _check_source(source: Source, spec: layouts.Stored, dense: tuple[str, ...]) -> None:
    allowed = _ROLE_DTYPES.get(layouts.storage_of(spec.terms[0][1]), dense)
    if source.dtype not in allowed:
        raise BadInput(
            "wrong dtype", file=source.file, tensor=source.name, expected=" or ".join(allowed), got=source.dtype
        )
    if source.shape != spec.shape:
        raise BadInput(
            "the shape does not fit the config",
            file=source.file,
            tensor=source.name,
            expected=list(spec.shape),
            got=list(source.shape),
        )


def _info(name: str, shape: tuple[int, ...], parts: tuple[Part, ...], sources: Mapping[str, Source]) -> TensorInfo:
    found = tuple(sources[p.name] for p in parts)
    roles = tuple(p.role for p in parts)
    encodings = {_encoding(s, role) for s, role in zip(found, roles, strict=True)}
    if len(encodings) > 1:
        what = "the experts are" if parts[0].expert is not None else "gate and up are"
        raise BadInput(
            f"{what} stored in different types",
            file=found[0].file,
            tensor=found[0].name,
            got=", ".join(sorted(encodings)),
        )
    count = 1
    for d in shape:
        count *= d
    nbytes = sum(s.nbytes for s in found)
    if roles[0] in layouts.FUSED:
        nbytes = count * found[0].nbytes // math.prod(found[0].shape)
    experts = tuple(p.expert for p in parts if p.expert is not None)
    return TensorInfo(name, shape, encodings.pop(), nbytes, found, roles, experts)


def _encoding(source: Source, role: str) -> str:
    packed = layouts.storage_of(role) in _ROLE_DTYPES or source.dtype == OLD_MXFP4
    return "mxfp4" if packed else ENCODINGS[source.dtype]
