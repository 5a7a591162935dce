"""OpenAI's Metal `model.bin`: one file of header, tokenizer and weights without names, for gpt_oss.metal on Apple GPUs.

    >>> header(config), entries(config, weights_begin())     # what a writer puts where
    >>> open_metal(Path("model.bin"))                        # a checkpoint whose vocabulary ends where the file's does

What differs from the original: the vocabulary stops after <|refusal|>; rotary pairs of q and k lie side by side, with 1
/ sqrt(64) folded in; scale bytes are stored plus 14, because the kernels' decoding yields values times 2**-14. Source:
openai/gpt-oss `metal/scripts/create-local-model.py`. Nothing here was run on Apple hardware.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.files import Array, MappedFile, Source
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.resolving import resolve
from gptoss_adapters.checkpoint.storage import METAL_SCALE_BIAS
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import EOS_TOKEN_IDS, SWIGLU_ALPHA, GptOssConfig, alternating

MAGIC = b"GPT-OSS v1.0\0\0\0\0"
PAGE, LINE = 16384, 16  # weights and each layer's experts begin on a page, every item on a line
HEAD_DIM, HEADS_PER_KV, EXPERTS_PER_TOKEN = 64, 8, 4  # what the kernels are written for
MAX_STORED_SCALE = 254 - METAL_SCALE_BIAS  # exclusive, as the upstream script means it
_MODEL, _LAYOUT, _TOKENIZER = (
    UUID(x).bytes
    for x in (
        "df52dc86-1789-4ed0-a295-66f10508145b",
        "229177a8-5775-4268-bfd8-d588b351c56d",
        "7401aded-2a95-40cb-b782-9ccebaafe72b",
    )
)
_FIELDS = struct.Struct("<6If4I6f")  # context_length ... rmsnorm_epsilon
_SIZES = struct.Struct("<4I")  # special tokens, text tokens, bytes of the regex with its NUL, bytes of the text tokens
_FIELDS_AT = len(MAGIC) + 16
_TOKENIZER_AT = _FIELDS_AT + _FIELDS.size + 16
# special tokens that the file names, by id; the script's table also has one for 200001, under a name that it never
# writes
SPECIALS = {
    200000: "07d7da55-b346-4cff-8b37-7cefacf8a3e8",
    200002: "f799ff69-1992-43c4-a3d8-d831f475dc75",
    200003: "c0bb14c7-6022-49da-ad08-792d67e8b470",
    200005: "fd3dda11-c8ab-4033-876e-d93deb172c93",
    200006: "55a77c2f-8a01-4c54-8ac2-313bfc7e208d",
    200007: "fcac2f6d-4705-4f6b-b228-642accac7238",
    200008: "16e40431-f47f-4b22-b59b-8b278fc30a54",
    200012: "1220f796-e388-4de5-b487-fe2eb5fe03c0",
    200013: "e15ba702-28c4-4292-ab8f-ffa434709128",
}
VOCABULARY = max(SPECIALS) + 1  # rows of embedding and head


class _Fields(NamedTuple):
    """The header's numbers, in the order of the file."""

    context: int
    layers: int
    experts: int
    active: int
    hidden: int
    mlp: int
    limit: float
    head_dim: int
    heads: int
    kv_heads: int
    window: int
    theta: float
    interpolation: float
    offset: float
    scale: float
    multiplier: float
    eps: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored array, under the name that the table of layouts gives it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@cache
def tokenizer_section() -> bytes:
    """UUID, sizes, special tokens, regex and text tokens: the published vocabulary, the same in every file."""
    from gptoss_harmony.tokens import N_RANKS
    from gptoss_harmony.vocabulary import PATTERN, load_vocabulary

    texts = b"".join(struct.pack("<H", len(t)) + t for t in load_vocabulary().token_bytes[:N_RANKS])
    specials = b"".join(UUID(SPECIALS[t]).bytes if t in SPECIALS else bytes(16) for t in range(N_RANKS, VOCABULARY))
    regex = PATTERN.encode("ascii") + b"\0"
    return _TOKENIZER + _SIZES.pack(VOCABULARY - N_RANKS, N_RANKS, len(regex), len(texts)) + specials + regex + texts


def header(config: GptOssConfig) -> bytes:
    """Everything before the weights."""
    low, high = config.yarn_bounds()
    fields = _Fields(
        context=int(config.initial_context_length * config.rope_scaling_factor),
        layers=config.num_hidden_layers,
        experts=config.num_experts,
        active=config.experts_per_token,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        limit=config.swiglu_limit,
        head_dim=config.head_dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        window=config.sliding_window,
        theta=config.rope_theta,
        interpolation=1.0 / config.rope_scaling_factor,
        offset=-low / (high - low),
        scale=1.0 / (high - low),
        multiplier=config.concentration,
        eps=config.rms_norm_eps,
    )
    return _padded(MAGIC + _MODEL + _FIELDS.pack(*fields) + _LAYOUT + tokenizer_section())


def _padded(head: bytes) -> bytes:
    return head + bytes(-len(head) % PAGE)


def check_expressible(config: GptOssConfig, file: str | Path) -> None:
    """Raises BadInput naming the first field that the format, or the kernels that read it, cannot express."""
    wanted: dict[str, object] = {
        "head_dim": HEAD_DIM,
        "experts_per_token": EXPERTS_PER_TOKEN,
        "num_attention_heads": HEADS_PER_KV * config.num_key_value_heads,
        "swiglu_alpha": SWIGLU_ALPHA,
        "layer_types": alternating(config.num_hidden_layers),
    }
    if config.uses_yarn:
        wanted["yarn_truncate"] = False
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise BadInput(
                f"config field {name}: Metal's kernels know one value only",
                file=file,
                expected=value,
                got=getattr(config, name),
            )
    if config.vocab_size < VOCABULARY:
        raise BadInput(
            "config field vocab_size: Metal's model.bin holds the published vocabulary",
            file=file,
            expected=f"{VOCABULARY} rows or more",
            got=config.vocab_size,
        )


def entries(config: GptOssConfig, begin: int) -> list[Entry]:
    """Every stored array in the file's order, with offsets from `begin`; `config.vocab_size` rows of embedding and
    head.
    """
    stored, out, at = layouts.stored(Kind.METAL, config), list[Entry](), begin

    def add(name: str, align: int = LINE) -> None:
        nonlocal at
        spec = stored[name]
        at += -at % align
        out.append(Entry(name, spec.dtype, spec.shape, at, spec.nbytes))
        at += spec.nbytes

    add("embedding.weight")
    for n in range(config.num_hidden_layers):
        for name, align in _ATTENTION:
            add(f"block.{n}.{name}", align)
    add("norm.scale")
    add("unembedding.weight")
    for n in range(config.num_hidden_layers):
        at += -at % PAGE
        for e in range(config.num_experts):
            for name in _EXPERT:
                add(f"block.{n}.mlp.{name}.{e}")
    return out


_ATTENTION = (
    ("attn.norm.scale", LINE),
    ("attn.qkv.weight", LINE),
    ("attn.qkv.bias", 1),
    ("attn.sinks", LINE),
    ("attn.out.weight", LINE),
    ("attn.out.bias", 1),
    ("mlp.norm.scale", LINE),
    ("mlp.gate.weight", LINE),
    ("mlp.gate.bias", 1),
)
_EXPERT = tuple(f"mlp{k}_{what}" for k in (1, 2) for what in ("weight.blocks", "weight.scales", "bias"))


def paired(rows: Array, head_dim: int) -> Array:
    """Whole heads' rows (or values) of q or k -> with the two of each rotary pair side by side."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _check_uuids(data: bytes, path: Path) -> None:
    for what, at, wanted in (
        ("model", len(MAGIC), _MODEL),
        ("layout", _TOKENIZER_AT - 16, _LAYOUT),
        ("tokenizer", _TOKENIZER_AT, _TOKENIZER),
    ):
        if data[at : at + 16] != wanted:
            raise BadInput(
                f"the UUID of the {what} is not the known one",
                file=path,
                expected=UUID(bytes=wanted),
                got=UUID(bytes=data[at : at + 16]),
            )


def open_metal(path: Path) -> Checkpoint:
    """A model.bin as a checkpoint. Raises BadInput naming what is wrong with it."""
    file = MappedFile(path, path.resolve())
    data = file.data.tobytes() if file.data.size < PAGE else file.data[:PAGE].tobytes()
    if len(data) < _TOKENIZER_AT + 16 + _SIZES.size:
        raise BadInput("ends within its header", file=path, got=f"{file.data.size} bytes")
    _check_uuids(data, path)
    special, text, regex, texts = _SIZES.unpack_from(data, _TOKENIZER_AT + 16)
    config = _to_config(_Fields._make(_FIELDS.unpack_from(data, _FIELDS_AT)), special + text, str(path))
    begin = _TOKENIZER_AT + 16 + _SIZES.size + 16 * special + regex + texts
    section = file.data[_TOKENIZER_AT : min(begin, file.data.size)].tobytes()
    begin += -begin % PAGE
    if config.num_hidden_layers * config.num_experts * config.hidden_size * config.intermediate_size > file.data.size:
        raise BadInput("the file is too small for its header", file=path, got=f"{file.data.size} bytes")
    found = entries(config, begin)
    end = found[-1].offset + found[-1].nbytes
    if file.data.size != end:
        raise BadInput("the size does not fit the header", file=path, expected=f"{end} bytes", got=file.data.size)
    sources = {e.name: Source(path, e.name, e.dtype, e.shape, e.offset, e.nbytes) for e in found}
    odd = [f"the vocabulary ends at {config.vocab_size}: Metal's format drops the rows of the reserved tokens after it"]
    if section != tokenizer_section():
        odd.append("the tokenizer in the file is not the published one")
    return Checkpoint(
        Kind.METAL,
        path,
        config,
        {path: file},
        resolve(Kind.METAL, path, config, sources, ("BF16",)),
        oddities=tuple(odd),
    )


def _to_config(fields: _Fields, vocabulary: int, file: str) -> GptOssConfig:
    rope = _read_rope(fields, file)
    return GptOssConfig(
        num_hidden_layers=fields.layers,
        num_experts=fields.experts,
        experts_per_token=fields.active,
        vocab_size=vocabulary,
        hidden_size=fields.hidden,
        intermediate_size=fields.mlp,
        head_dim=fields.head_dim,
        num_attention_heads=fields.heads,
        num_key_value_heads=fields.kv_heads,
        sliding_window=fields.window,
        rms_norm_eps=_decimal(fields.eps),
        swiglu_limit=_decimal(fields.limit),
        max_position_embeddings=fields.context,
        eos_token_id=EOS_TOKEN_IDS[0],
        **rope,
    ).validate(file)


def _read_rope(fields: _Fields, file: str) -> dict[str, Any]:
    """The config's fields of YaRN: the ramp's offset and scale say where it begins and ends, and the betas are the
    rotations there.
    """
    theta, offset, scale = fields.theta, fields.offset, fields.scale
    if not (0 < fields.interpolation <= 1 and scale > 0 and theta > 1 and math.isfinite(offset)):
        raise BadInput(
            "the rope fields of the header are out of range",
            file=file,
            got=[theta, fields.interpolation, offset, scale],
        )
    factor = _decimal(1 / fields.interpolation)
    initial = round(fields.context * fields.interpolation)

    def beta(bound: float) -> float:
        return _decimal(initial / (2 * math.pi) / theta ** (2 * bound / max(fields.head_dim, 1)))

    usual = 0.1 * math.log(factor) + 1
    return {
        "rope_theta": _decimal(theta),
        "rope_scaling_factor": factor,
        "initial_context_length": initial,
        "yarn_beta_fast": beta(-offset / scale),
        "yarn_beta_slow": beta((1 - offset) / scale),
        "attention_factor": None if abs(fields.multiplier - usual) < 1e-6 else _decimal(fields.multiplier),
    }


def _decimal(x: float) -> float:
    """Of a float32, or computed from some: the short decimal near it."""
    return float(f"{x:.5g}") if abs(float(f"{x:.5g}") - x) <= 2e-6 * abs(x) else float(f"{x:.8g}")
