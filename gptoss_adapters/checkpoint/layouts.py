"""The one table of tensor names and axis orders: canonical name <-> what each kind of checkpoint stores.

A canonical tensor is [.., out, in]; gate and up are interleaved rows (even = gate). A kind stores it as one or more parts; the
part's role says how the stored array lies in the canonical one. Sources: openai/gpt-oss `torch/weights.py`, transformers'
GptOss, llama.cpp's gpt-oss tensors.

    role     stored array                                  place in the canonical tensor
    whole    the same shape                                all of it
    q, k, v  rows of the fused [Q | K | V] array           all of it
    blocks   [.., in / 32, 16] nibble pairs                codes of all of it
    scales   [.., in / 32] exponents                       scales of all of it
    swapped  the last two axes exchanged                   all of it
    gate, up [E, I, ..]                                    rows 0::2, rows 1::2 of axis 1
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gptoss_adapters.checkpoint.files import Array
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

OPENAI, HF_MXFP4, HF_BF16, GGUF = KINDS = ("openai", "hf-mxfp4", "hf-bf16", "gguf")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor's share in one canonical tensor; `name` holds {n} for the layer until it is filled in."""

    name: str
    role: str = "whole"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: canonical name, axes, and the parts per kind."""

    name: str
    axes: tuple[str, ...]
    parts: dict[str, tuple[Part, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor that a kind stores: its shape (row-major; MXFP4 in GGUF counts values) and the canonical tensors in it, by role."""

    name: str
    shape: Shape
    terms: tuple[tuple[str, str], ...]  # (canonical name, role), in the order in which they lie


def _row(name: str, axes: str, openai: str | tuple[Part, ...], hf: str, gguf: str | tuple[Part, ...], bf16: Part | None = None) -> Row:
    """A bare name is stored whole. `hf` serves both HF kinds, unless `bf16` is given: then it is the MXFP4 pair's stem."""
    mxfp4, plain = ((Part(f"{hf}_blocks", "blocks"), Part(f"{hf}_scales", "scales")), (bf16,)) if bf16 else ((Part(hf),), (Part(hf),))
    o = (Part(openai),) if isinstance(openai, str) else openai
    g = (Part(gguf),) if isinstance(gguf, str) else gguf
    return Row(name, tuple(axes.split()), {OPENAI: o, HF_MXFP4: mxfp4, HF_BF16: plain, GGUF: g})


def _qkv(which: str, kind: str) -> Row:
    axes = {"q": "Q", "k": "KV", "v": "KV"}[which] + (" H" if kind == "weight" else "")
    return _row(f"layers.{{n}}.{which}_proj.{kind}", axes, (Part(f"block.{{n}}.attn.qkv.{kind}", which),),
                f"model.layers.{{n}}.self_attn.{which}_proj.{kind}", f"blk.{{n}}.attn_{which}.{kind}")  # fmt: skip


def _pair(stem: str) -> tuple[Part, ...]:
    return Part(f"{stem}.blocks", "blocks"), Part(f"{stem}.scales", "scales")


def _gate_up(kind: str) -> tuple[Part, ...]:
    return Part(f"blk.{{n}}.ffn_gate_exps.{kind}", "gate"), Part(f"blk.{{n}}.ffn_up_exps.{kind}", "up")


_O, _H, _G, _C = "block.{n}", "model.layers.{n}", "blk.{n}", "layers.{n}"

TABLE: tuple[Row, ...] = (
    _row("embedding.weight", "V H", "embedding.weight", "model.embed_tokens.weight", "token_embd.weight"),
    _row(f"{_C}.attn_norm.weight", "H", f"{_O}.attn.norm.scale", f"{_H}.input_layernorm.weight", f"{_G}.attn_norm.weight"),
    *(_qkv(which, kind) for which in "qkv" for kind in ("weight", "bias")),
    _row(f"{_C}.o_proj.weight", "H Q", f"{_O}.attn.out.weight", f"{_H}.self_attn.o_proj.weight", f"{_G}.attn_output.weight"),
    _row(f"{_C}.o_proj.bias", "H", f"{_O}.attn.out.bias", f"{_H}.self_attn.o_proj.bias", f"{_G}.attn_output.bias"),
    _row(f"{_C}.sinks", "NQ", f"{_O}.attn.sinks", f"{_H}.self_attn.sinks", f"{_G}.attn_sinks.weight"),
    _row(f"{_C}.mlp_norm.weight", "H", f"{_O}.mlp.norm.scale", f"{_H}.post_attention_layernorm.weight", f"{_G}.post_attention_norm.weight"),
    _row(f"{_C}.router.weight", "E H", f"{_O}.mlp.gate.weight", f"{_H}.mlp.router.weight", f"{_G}.ffn_gate_inp.weight"),
    _row(f"{_C}.router.bias", "E", f"{_O}.mlp.gate.bias", f"{_H}.mlp.router.bias", f"{_G}.ffn_gate_inp.bias"),
    _row(f"{_C}.experts.gate_up.weight", "E 2I H", _pair(f"{_O}.mlp.mlp1_weight"), f"{_H}.mlp.experts.gate_up_proj", _gate_up("weight"),
         Part(f"{_H}.mlp.experts.gate_up_proj", "swapped")),
    _row(f"{_C}.experts.gate_up.bias", "E 2I", f"{_O}.mlp.mlp1_bias", f"{_H}.mlp.experts.gate_up_proj_bias", _gate_up("bias")),
    _row(f"{_C}.experts.down.weight", "E H I", _pair(f"{_O}.mlp.mlp2_weight"), f"{_H}.mlp.experts.down_proj", f"{_G}.ffn_down_exps.weight",
         Part(f"{_H}.mlp.experts.down_proj", "swapped")),
    _row(f"{_C}.experts.down.bias", "E H", f"{_O}.mlp.mlp2_bias", f"{_H}.mlp.experts.down_proj_bias", f"{_G}.ffn_down_exps.bias"),
    _row("norm.weight", "H", "norm.scale", "model.norm.weight", "output_norm.weight"),
    _row("unembedding.weight", "V H", "unembedding.weight", "lm_head.weight", "output.weight"),
)  # fmt: skip


def canonical(config: GptOssConfig) -> dict[str, Shape]:
    """Every canonical tensor of a model and its shape, in forward order."""
    sizes = _sizes(config)
    return {row.name.format(n=n): tuple(sizes[a] for a in row.axes) for row, n in _filled(config)}


def parts(kind: str, config: GptOssConfig) -> dict[str, tuple[Part, ...]]:
    """Canonical name -> the stored parts that make it up in a checkpoint of this kind."""
    return {row.name.format(n=n): tuple(Part(p.name.format(n=n), p.role) for p in row.parts[kind]) for row, n in _filled(config)}


def stored(kind: str, config: GptOssConfig) -> dict[str, Stored]:
    """Every tensor that a checkpoint of this kind stores, in forward order, with what of the canonical tensors is in it."""
    shapes, out = canonical(config), dict[str, Stored]()
    for name, share in parts(kind, config).items():
        for part in share:
            before = out[part.name].terms if part.name in out else ()
            out[part.name] = Stored(part.name, stored_shape(part.role, shapes[name], config), (*before, (name, part.role)))
    return out


def stored_shape(role: str, shape: Shape, config: GptOssConfig) -> Shape:
    """The shape of the array in which a canonical tensor of this shape is stored in this role."""
    match role:
        case "q" | "k" | "v":
            return (config.q_rows + 2 * config.kv_rows, *shape[1:])
        case "blocks":
            return (*shape[:-1], shape[-1] // MXFP4_BLOCK, MXFP4_BLOCK // 2)
        case "scales":
            return (*shape[:-1], shape[-1] // MXFP4_BLOCK)
        case "swapped":
            return (*shape[:-2], shape[-1], shape[-2])
        case "gate" | "up":
            return (shape[0], shape[1] // 2, *shape[2:])
    return shape


def fused_rows(role: str, config: GptOssConfig) -> slice:
    """The rows of the fused [Q | K | V] array that belong to q, k or v."""
    q, kv = config.q_rows, config.kv_rows
    return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[role]


def view(array: Array, role: str, config: GptOssConfig) -> Array:
    """The part of a stored array that belongs to the canonical tensor, in canonical orientation; never a copy."""
    if role in ("q", "k", "v"):
        return array[fused_rows(role, config)]
    return array.swapaxes(-1, -2) if role == "swapped" else array


def place(role: str) -> tuple[slice, ...]:
    """The index into the canonical tensor that the part fills."""
    return {"gate": (slice(None), slice(0, None, 2)), "up": (slice(None), slice(1, None, 2))}.get(role, (slice(None),))


def tell_kind(names: Iterable[str], config: GptOssConfig, kinds: Iterable[str] = KINDS) -> str:
    """The kind that explains most of the names. Raises BadInput when none explains any."""
    present = set(names)
    found = {kind: len(present & stored(kind, config).keys()) for kind in kinds}
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
    return {"V": c.vocab_size, "H": c.hidden_size, "I": c.intermediate_size, "2I": 2 * c.intermediate_size, "E": c.num_experts,
            "Q": c.q_rows, "KV": c.kv_rows, "NQ": c.num_attention_heads}  # fmt: skip
