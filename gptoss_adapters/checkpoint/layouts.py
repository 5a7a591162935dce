"""The one table of tensor names and axis orders: canonical name <-> what each kind of checkpoint stores.

A canonical tensor is [.., out, in]; gate and up are interleaved rows (even = gate). A kind stores it as one or more
parts; the part's role says how the stored array lies in the canonical one. Sources: openai/gpt-oss `torch/weights.py`,
transformers' GptOss, llama.cpp's gpt-oss tensors, Ollama's former gptoss model; Unsloth's, Quark's and llm-compressor's
per-expert names; mlx-lm's gpt_oss; openai/gpt-oss `metal/scripts/create-local-model.py`, whose file has no names: those
of `METAL` are ours.

    role       stored array                                place in the canonical tensor
    whole      the same shape                              all of it
    q, k, v    rows of the fused [Q | K | V] array         all of it
    blocks     [.., in / 32, 16] nibble pairs              codes of all of it
    packed     [.., in / 2], the same bytes                codes of all of it
    scales     [.., in / 32] exponents                     scales of all of it
    exponents  the same, as U8 or F8_E8M0                  scales of all of it
    swapped    the last two axes exchanged                 all of it
    gate, up   [E, I, ..]                                  rows 0::2, rows 1::2 of axis 1
    gate_packed, up_exponents, ...                         both
    words      [.., in / 8] U32, the bytes of blocks       codes of all of it
    biased     [.., in / 32] exponents + 14                scales of all of it
    q_pairs    q with rotary pairs side by side, times .5  all of it (k_pairs: k, times .25)

A part with {e} in its name is one expert's, without the first axis.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from gptoss_adapters.checkpoint.files import Array
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

OPENAI, HF_MXFP4, HF_BF16, GGUF = "openai", "hf-mxfp4", "hf-bf16", "gguf"
HF_OUT_IN = "hf-bf16-out-in"  # fused and dense, [E, out, in]: what transformers 4.55 made
DEFUSED = "hf-defused"  # one linear layer per expert, gate and up interleaved: Unsloth, bitsandbytes
QUARK = "hf-quark"  # MXFP4 per expert, gate and up interleaved
COMPRESSED = "hf-compressed-tensors"  # MXFP4 per expert, gate and up apart: llm-compressor
OLLAMA = "ollama"  # GGUF of architecture gptoss
MLX = "mlx"  # MXFP4 as 32-bit words, gate and up apart
METAL = "metal"  # OpenAI's model.bin
KINDS = (OPENAI, HF_MXFP4, HF_BF16, HF_OUT_IN, DEFUSED, QUARK, COMPRESSED, MLX, GGUF, OLLAMA, METAL)
SAFETENSORS_KINDS = tuple(kind for kind in KINDS if kind not in (GGUF, OLLAMA, METAL))
FUSED = ("q", "k", "v", "q_pairs", "k_pairs")  # roles of parts of one stored tensor
PER_EXPERT = (DEFUSED, QUARK, COMPRESSED)
_ONE_EXPERT = re.compile(r"\.experts\.(?:\w+_projs\.)?\d+\.")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor's share in one canonical tensor; `name` holds {n} for the layer, {e} for the expert, until
    filled in.
    """

    name: str
    role: str = "whole"
    expert: int | None = None  # None: all of them


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: canonical name, axes, and the parts per kind; `fused`: what some files of a kind have
    instead.
    """

    name: str
    axes: tuple[str, ...]
    parts: dict[str, tuple[Part, ...]]
    fused: dict[str, tuple[Part, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor that a kind stores: its shape (row-major; MXFP4 in GGUF counts values) and the canonical tensors
    in it, by role.
    """

    name: str
    shape: Shape
    terms: tuple[tuple[str, str], ...]  # (canonical name, role), in the order in which they lie


def _row(
    name: str,
    axes: str,
    openai: str | tuple[Part, ...],
    hf: str,
    gguf: str | tuple[Part, ...],
    **kinds: str | tuple[Part, ...],
) -> Row:
    """A bare name is stored whole. `hf` serves every kind with Hugging Face's names, `gguf` both GGUF kinds, unless
    `kinds` says otherwise.
    """
    table = dict.fromkeys(SAFETENSORS_KINDS, hf) | {OPENAI: openai, METAL: openai, GGUF: gguf, OLLAMA: gguf}
    table |= {_KEYWORDS[k]: v for k, v in kinds.items() if not k.endswith("_fused")}
    fused = {_KEYWORDS[k.removesuffix("_fused")]: v for k, v in kinds.items() if k.endswith("_fused")}
    return Row(
        name, tuple(axes.split()), {k: _parts(v) for k, v in table.items()}, {k: _parts(v) for k, v in fused.items()}
    )


_KEYWORDS = {
    "mxfp4": HF_MXFP4,
    "bf16": HF_BF16,
    "out_in": HF_OUT_IN,
    "defused": DEFUSED,
    "quark": QUARK,
    "compressed": COMPRESSED,
    "gguf": GGUF,
    "ollama": OLLAMA,
    "mlx": MLX,
    "metal": METAL,
}


def _parts(given: str | tuple[Part, ...]) -> tuple[Part, ...]:
    return (Part(given),) if isinstance(given, str) else given


def _qkv(which: str, kind: str) -> Row:
    axes = {"q": "Q", "k": "KV", "v": "KV"}[which] + (" H" if kind == "weight" else "")
    fused, metal = (
        (Part(f"blk.{{n}}.attn_qkv.{kind}", which),),
        (Part(f"block.{{n}}.attn.qkv.{kind}", which if which == "v" else f"{which}_pairs"),),
    )
    return _row(
        f"layers.{{n}}.{which}_proj.{kind}",
        axes,
        (Part(f"block.{{n}}.attn.qkv.{kind}", which),),
        f"model.layers.{{n}}.self_attn.{which}_proj.{kind}",
        f"blk.{{n}}.attn_{which}.{kind}",
        gguf_fused=fused,
        ollama_fused=fused,
        metal=metal,
    )


def _pair(blocks: str, scales: str, roles: tuple[str, str] = ("blocks", "scales")) -> tuple[Part, ...]:
    return Part(blocks, roles[0]), Part(scales, roles[1])


def _halves(kind: str) -> tuple[Part, ...]:
    return Part(f"{_G}.ffn_gate_exps.{kind}", "gate"), Part(f"{_G}.ffn_up_exps.{kind}", "up")


_O, _H, _G, _C = "block.{n}", "model.layers.{n}", "blk.{n}", "layers.{n}"
_E = f"{_H}.mlp.experts"
_PACKED = ("packed", "exponents")


def _expert_weight(
    which: str, axes: str, openai: str, gguf: str | tuple[Part, ...], **kinds: str | tuple[Part, ...]
) -> Row:
    """An expert weight: MXFP4 as two tensors in four kinds, dense in the others."""
    stem, per = f"{_E}.{which}_proj", f"{_E}.{{e}}.{which}_proj"
    compressed = _pair(f"{per}.weight_packed", f"{per}.weight_scale", _PACKED)
    if which == "gate_up":
        compressed = tuple(
            Part(f"{_E}.{{e}}.{half}_proj.{name}", f"{half}_{role}")
            for half in ("gate", "up")
            for name, role in zip(("weight_packed", "weight_scale"), _PACKED, strict=True)
        )
    mlx = _pair(f"{stem}.weight", f"{stem}.scales", ("words", "scales"))
    if which == "gate_up":
        mlx = tuple(
            Part(f"{_E}.{half}_proj.{name}", f"{half}_{role}")
            for half in ("gate", "up")
            for name, role in (("weight", "words"), ("scales", "scales"))
        )
    metal = _pair(f"{openai}_weight.blocks.{{e}}", f"{openai}_weight.scales.{{e}}", ("blocks", "biased"))
    return _row(
        f"{_C}.experts.{which}.weight",
        axes,
        _pair(f"{openai}_weight.blocks", f"{openai}_weight.scales"),
        stem,
        gguf,
        mxfp4=_pair(f"{stem}_blocks", f"{stem}_scales"),
        bf16=(Part(stem, "swapped"),),
        defused=f"{stem}s.{{e}}.weight",
        quark=_pair(f"{per}.weight", f"{per}.weight_scale", _PACKED),
        compressed=compressed,
        mlx=mlx,
        metal=metal,
        **kinds,
    )


def _expert_bias(
    which: str, axes: str, openai: str, gguf: str | tuple[Part, ...], **kinds: str | tuple[Part, ...]
) -> Row:
    stem, per = f"{_E}.{which}_proj", f"{_E}.{{e}}.{which}_proj.bias"
    halves = tuple(Part(f"{_E}.{{e}}.{half}_proj.bias", half) for half in ("gate", "up"))
    mlx = (
        tuple(Part(f"{_E}.{half}_proj.bias", half) for half in ("gate", "up")) if which == "gate_up" else f"{stem}.bias"
    )
    return _row(
        f"{_C}.experts.{which}.bias",
        axes,
        f"{openai}_bias",
        f"{stem}_bias",
        gguf,
        defused=f"{stem}s.{{e}}.bias",
        quark=per,
        compressed=halves if which == "gate_up" else per,
        mlx=mlx,
        metal=f"{openai}_bias.{{e}}",
        **kinds,
    )


TABLE: tuple[Row, ...] = (
    _row("embedding.weight", "V H", "embedding.weight", "model.embed_tokens.weight", "token_embd.weight"),
    _row(
        f"{_C}.attn_norm.weight", "H", f"{_O}.attn.norm.scale", f"{_H}.input_layernorm.weight", f"{_G}.attn_norm.weight"
    ),
    *(_qkv(which, kind) for which in "qkv" for kind in ("weight", "bias")),
    *(
        _row(
            f"{_C}.o_proj.{kind}",
            axes,
            f"{_O}.attn.out.{kind}",
            f"{_H}.self_attn.o_proj.{kind}",
            f"{_G}.attn_output.{kind}",
            ollama=f"{_G}.attn_out.{kind}",
        )
        for kind, axes in (("weight", "H Q"), ("bias", "H"))
    ),
    _row(
        f"{_C}.sinks",
        "NQ",
        f"{_O}.attn.sinks",
        f"{_H}.self_attn.sinks",
        f"{_G}.attn_sinks.weight",
        ollama=f"{_G}.attn_sinks",
    ),
    _row(
        f"{_C}.mlp_norm.weight",
        "H",
        f"{_O}.mlp.norm.scale",
        f"{_H}.post_attention_layernorm.weight",
        f"{_G}.post_attention_norm.weight",
        ollama=f"{_G}.ffn_norm.weight",
    ),
    *(
        _row(
            f"{_C}.router.{kind}",
            axes,
            f"{_O}.mlp.gate.{kind}",
            f"{_H}.mlp.router.{kind}",
            f"{_G}.ffn_gate_inp.{kind}",
            defused=f"{_H}.mlp.router.linear.{kind}",
        )
        for kind, axes in (("weight", "E H"), ("bias", "E"))
    ),
    _expert_weight(
        "gate_up", "E 2I H", f"{_O}.mlp.mlp1", _halves("weight"), ollama_fused=f"{_G}.ffn_gate_up_exps.weight"
    ),
    _expert_bias("gate_up", "E 2I", f"{_O}.mlp.mlp1", _halves("bias"), ollama_fused=f"{_G}.ffn_gate_up_exps.bias"),
    _expert_weight("down", "E H I", f"{_O}.mlp.mlp2", f"{_G}.ffn_down_exps.weight"),
    _expert_bias("down", "E H", f"{_O}.mlp.mlp2", f"{_G}.ffn_down_exps.bias"),
    _row("norm.weight", "H", "norm.scale", "model.norm.weight", "output_norm.weight"),
    _row("unembedding.weight", "V H", "unembedding.weight", "lm_head.weight", "output.weight"),
)


def canonical(config: GptOssConfig) -> dict[str, Shape]:
    """Every canonical tensor of a model and its shape, in forward order."""
    sizes = _sizes(config)
    return {row.name.format(n=n): tuple(sizes[a] for a in row.axes) for row, n in _filled(config)}


def parts(kind: str, config: GptOssConfig, present: Container[str] = ()) -> dict[str, tuple[Part, ...]]:
    """Canonical name -> the stored parts that make it up in a checkpoint of this kind; `present`: the names that are
    there, by which the fused form of some tensors is told.
    """
    out = {}
    for row, n in _filled(config):
        fused = row.fused.get(kind, ())
        chosen = fused if fused and fused[0].name.format(n=n) in present else row.parts[kind]
        out[row.name.format(n=n)] = _expanded(chosen, n, config)
    return out


def _expanded(given: tuple[Part, ...], n: int, config: GptOssConfig) -> tuple[Part, ...]:
    """With the layer, and expert by expert where a part is one expert's."""
    if "{e}" not in given[0].name:
        return tuple(Part(p.name.format(n=n), p.role) for p in given)
    return tuple(Part(p.name.format(n=n, e=e), p.role, e) for e in range(config.num_experts) for p in given)


def stored(kind: str, config: GptOssConfig, present: Container[str] = ()) -> dict[str, Stored]:
    """Every tensor that a checkpoint of this kind stores, in forward order, with what of the canonical tensors is
    in it.
    """
    shapes, out = canonical(config), dict[str, Stored]()
    for name, share in parts(kind, config, present).items():
        for part in share:
            before = out[part.name].terms if part.name in out else ()
            shape = stored_shape(part.role, shapes[name], config)
            out[part.name] = Stored(
                part.name, shape if part.expert is None else shape[1:], (*before, (name, part.role))
            )
    return out


def half_of(role: str) -> str:
    """ "gate", "up", or "" for a part that holds all rows."""
    return role.partition("_")[0] if role.startswith(("gate", "up")) else ""


def storage_of(role: str) -> str:
    """How a part's array is stored, whichever rows it holds: whole, blocks, packed, scales, exponents, swapped, q,
    k, v.
    """
    return role.removeprefix(half_of(role)).removeprefix("_") or "whole"


def stored_shape(role: str, shape: Shape, config: GptOssConfig) -> Shape:
    """The shape of the array in which a canonical tensor of this shape is stored in this role."""
    if half_of(role):
        shape = (shape[0], shape[1] // 2, *shape[2:])
    match storage_of(role):
        case "q" | "k" | "v" | "q_pairs" | "k_pairs":
            return (config.q_rows + 2 * config.kv_rows, *shape[1:])
        case "blocks":
            return (*shape[:-1], shape[-1] // MXFP4_BLOCK, MXFP4_BLOCK // 2)
        case "packed":
            return (*shape[:-1], shape[-1] // 2)
        case "words":
            return (*shape[:-1], shape[-1] // 8)
        case "scales" | "exponents" | "biased":
            return (*shape[:-1], shape[-1] // MXFP4_BLOCK)
        case "swapped":
            return (*shape[:-2], shape[-1], shape[-2])
    return shape


def fused_rows(role: str, config: GptOssConfig) -> slice:
    """The rows of the fused [Q | K | V] array that belong to q, k or v."""
    q, kv = config.q_rows, config.kv_rows
    return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[role[0]]


def view(array: Array, role: str, config: GptOssConfig) -> Array:
    """The part of a stored array that belongs to the canonical tensor, in canonical orientation; never a copy. (What is
    stored in pairs is still so.)
    """
    if role in FUSED:
        return array[fused_rows(role, config)]
    return array.swapaxes(-1, -2) if role == "swapped" else array


def place(role: str) -> tuple[slice, ...]:
    """The index into the canonical tensor that the part fills."""
    return {"gate": (slice(None), slice(0, None, 2)), "up": (slice(None), slice(1, None, 2))}.get(
        half_of(role), (slice(None),)
    )


def tell_kind(names: Iterable[str], config: GptOssConfig, kinds: Iterable[str] = KINDS) -> str:
    """The kind that explains most of the names; of two with the same names the first. Raises BadInput when none
    explains any.
    """
    present = set(names)
    if not any(_ONE_EXPERT.search(name) for name in present):
        kinds = [kind for kind in kinds if kind not in PER_EXPERT]
    found = {kind: len(present & stored(kind, config, present).keys()) for kind in kinds}
    best = max(found, key=lambda kind: found[kind])
    if not found[best]:
        raise BadInput("no tensor name is one of gpt-oss", got=", ".join(sorted(present)[:3]))
    return best


def _filled(config: GptOssConfig) -> Iterable[tuple[Row, int]]:
    """The table's rows in forward order: before the layers, each layer, after them."""
    split = [i for i, row in enumerate(TABLE) if "{n}" in row.name]
    first, last = split[0], split[-1] + 1
    yield from ((row, 0) for row in TABLE[:first])
    yield from ((row, n) for n in range(config.num_hidden_layers) for row in TABLE[first:last])
    yield from ((row, 0) for row in TABLE[last:])


def _sizes(c: GptOssConfig) -> dict[str, int]:
    return {
        "V": c.vocab_size,
        "H": c.hidden_size,
        "I": c.intermediate_size,
        "2I": 2 * c.intermediate_size,
        "E": c.num_experts,
        "Q": c.q_rows,
        "KV": c.kv_rows,
        "NQ": c.num_attention_heads,
    }
