"""The one table of tensor names and axis orders: canonical name <-> what each kind of checkpoint stores.

Sources: openai/gpt-oss `torch/weights.py`, transformers' GptOss, llama.cpp's gpt-oss tensors, Ollama's former gptoss
model; Unsloth's, Quark's and llm-compressor's per-expert names; mlx-lm's gpt_oss; openai/gpt-oss
`metal/scripts/create-local-model.py`, whose file has no names: those of METAL are ours.

{n} stands for the layer, {e} for the expert: a part with {e} in its name is one expert's, without the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gptoss_adapters.checkpoint.kinds import Kind, Names
from gptoss_adapters.checkpoint.storage import (
    BIASED,
    BLOCKS,
    GATE,
    PACKED,
    SCALES,
    SWAPPED,
    UP,
    WORDS,
    FusedRows,
    PairedRows,
    Part,
    Storage,
)

Parts = tuple[Part, ...]
Given = str | Parts  # a bare name is stored whole, as numbers
_O, _H, _G, _C = "block.{n}", "model.layers.{n}", "blk.{n}", "layers.{n}"
_E = f"{_H}.mlp.experts"
_COMPRESSED, _MLX = (PACKED, SCALES), (WORDS, SCALES)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: canonical name, axes, and the parts per kind; `other`: what some files of a kind, or some
    of their layers, have instead.
    """

    name: str
    axes: tuple[str, ...]
    parts: Mapping[str, Parts]  # by kind
    other: Mapping[str, Parts] = field(default_factory=dict)


def _row(
    name: str,
    axes: str,
    openai: Given,
    hf: Given,
    gguf: Given,
    others: Mapping[Kind, Given] | None = None,
    other: Mapping[Kind, Given] | None = None,
) -> Row:
    """The three spellings serve every kind that has such names, unless `others` says otherwise."""
    usual = {Names.OPENAI: openai, Names.HF: hf, Names.GGUF: gguf}
    given = {kind: usual[kind.names] for kind in Kind} | dict(others or {})
    parts: dict[str, Parts] = {kind: _parts(one) for kind, one in given.items()}
    return Row(name, tuple(axes.split()), parts, {kind: _parts(one) for kind, one in (other or {}).items()})


def _parts(given: Given) -> Parts:
    return (Part(given),) if isinstance(given, str) else given


def _qkv(which: str, what: str) -> Row:
    rows = {"q": "Q", "k": "KV", "v": "KV"}[which]
    fused = (Part(f"{_G}.attn_qkv.{what}", storage=FusedRows(which)),)
    paired = FusedRows(which) if which == "v" else PairedRows(which)
    return _row(
        f"{_C}.{which}_proj.{what}",
        f"{rows} H" if what == "weight" else rows,
        (Part(f"{_O}.attn.qkv.{what}", storage=FusedRows(which)),),
        f"{_H}.self_attn.{which}_proj.{what}",
        f"{_G}.attn_{which}.{what}",
        {Kind.METAL: (Part(f"{_O}.attn.qkv.{what}", storage=paired),)},
        other={Kind.GGUF: fused, Kind.OLLAMA: fused},
    )


def _pair(codes: str, scales: str, storages: tuple[Storage, Storage] = (BLOCKS, SCALES)) -> Parts:
    return Part(codes, storage=storages[0]), Part(scales, storage=storages[1])


def _halves(name: str) -> Parts:
    """gate and up apart; `name` holds {half}."""
    return tuple(Part(name.replace("{half}", rows.word), rows) for rows in (GATE, UP))


def _half_pairs(codes: str, scales: str, storages: tuple[Storage, Storage]) -> Parts:
    """gate and up apart, each as codes and scales."""
    return tuple(
        Part(name.replace("{half}", rows.word), rows, storage)
        for rows in (GATE, UP)
        for name, storage in zip((codes, scales), storages, strict=True)
    )


def _expert_weight(
    which: str, axes: str, openai: str, gguf: Given, compressed: Parts, mlx: Parts, linear: Given
) -> Row:
    """An expert weight: MXFP4 as codes and scales in the packed kinds, dense in the others. Of a model in HF MXFP4
    some layers may be dense: those that were tuned.
    """
    stem, per = f"{_E}.{which}_proj", f"{_E}.{{e}}.{which}_proj"
    return _row(
        f"{_C}.experts.{which}.weight",
        axes,
        _pair(f"{openai}_weight.blocks", f"{openai}_weight.scales"),
        stem,
        gguf,
        {
            Kind.HF_MXFP4: _pair(f"{stem}_blocks", f"{stem}_scales"),
            Kind.HF_BF16: (Part(stem, storage=SWAPPED),),
            Kind.DEFUSED: f"{stem}s.{{e}}.weight",
            Kind.LINEAR: linear,
            Kind.QUARK: _pair(f"{per}.weight", f"{per}.weight_scale", (PACKED, SCALES)),
            Kind.COMPRESSED: compressed,
            Kind.MLX: mlx,
            Kind.METAL: _pair(f"{openai}_weight.blocks.{{e}}", f"{openai}_weight.scales.{{e}}", (BLOCKS, BIASED)),
        },
        {Kind.HF_MXFP4: (Part(stem, storage=SWAPPED),)} | _fused(gguf, which, "weight"),
    )


def _expert_bias(which: str, axes: str, openai: str, gguf: Given, apart: Given, mlx: Given) -> Row:
    stem, per = f"{_E}.{which}_proj", f"{_E}.{{e}}.{which}_proj"
    return _row(
        f"{_C}.experts.{which}.bias",
        axes,
        f"{openai}_bias",
        f"{stem}_bias",
        gguf,
        {
            Kind.DEFUSED: f"{stem}s.{{e}}.bias",
            Kind.QUARK: f"{per}.bias",
            Kind.LINEAR: apart,
            Kind.COMPRESSED: apart,
            Kind.MLX: mlx,
            Kind.METAL: f"{openai}_bias.{{e}}",
        },
        _fused(gguf, which, "bias"),
    )


def _fused(gguf: Given, which: str, what: str) -> dict[Kind, Given]:
    """Old blobs of Ollama have gate and up in one tensor."""
    return {} if isinstance(gguf, str) else {Kind.OLLAMA: f"{_G}.ffn_{which}_exps.{what}"}


def _experts() -> tuple[Row, ...]:
    one, half, stacked = f"{_E}.{{e}}", f"{_E}.{{e}}.{{half}}_proj", f"{_E}.{{half}}_proj"
    return (
        _expert_weight(
            "gate_up",
            "E 2I H",
            f"{_O}.mlp.mlp1",
            _halves(f"{_G}.ffn_{{half}}_exps.weight"),
            _half_pairs(f"{half}.weight_packed", f"{half}.weight_scale", _COMPRESSED),
            _half_pairs(f"{stacked}.weight", f"{stacked}.scales", _MLX),
            _halves(f"{half}.weight"),
        ),
        _expert_bias(
            "gate_up",
            "E 2I",
            f"{_O}.mlp.mlp1",
            _halves(f"{_G}.ffn_{{half}}_exps.bias"),
            _halves(f"{half}.bias"),
            _halves(f"{stacked}.bias"),
        ),
        _expert_weight(
            "down",
            "E H I",
            f"{_O}.mlp.mlp2",
            f"{_G}.ffn_down_exps.weight",
            _pair(f"{one}.down_proj.weight_packed", f"{one}.down_proj.weight_scale", _COMPRESSED),
            _pair(f"{_E}.down_proj.weight", f"{_E}.down_proj.scales", _MLX),
            f"{one}.down_proj.weight",
        ),
        _expert_bias(
            "down",
            "E H",
            f"{_O}.mlp.mlp2",
            f"{_G}.ffn_down_exps.bias",
            f"{one}.down_proj.bias",
            f"{_E}.down_proj.bias",
        ),
    )


TABLE: tuple[Row, ...] = (
    _row("embedding.weight", "V H", "embedding.weight", "model.embed_tokens.weight", "token_embd.weight"),
    _row(
        f"{_C}.attn_norm.weight", "H", f"{_O}.attn.norm.scale", f"{_H}.input_layernorm.weight", f"{_G}.attn_norm.weight"
    ),
    *(_qkv(which, what) for which in "qkv" for what in ("weight", "bias")),
    *(
        _row(
            f"{_C}.o_proj.{what}",
            axes,
            f"{_O}.attn.out.{what}",
            f"{_H}.self_attn.o_proj.{what}",
            f"{_G}.attn_output.{what}",
            {Kind.OLLAMA: f"{_G}.attn_out.{what}"},
        )
        for what, axes in (("weight", "H Q"), ("bias", "H"))
    ),
    _row(
        f"{_C}.sinks",
        "NQ",
        f"{_O}.attn.sinks",
        f"{_H}.self_attn.sinks",
        f"{_G}.attn_sinks.weight",
        {Kind.OLLAMA: f"{_G}.attn_sinks"},
    ),
    _row(
        f"{_C}.mlp_norm.weight",
        "H",
        f"{_O}.mlp.norm.scale",
        f"{_H}.post_attention_layernorm.weight",
        f"{_G}.post_attention_norm.weight",
        {Kind.OLLAMA: f"{_G}.ffn_norm.weight"},
    ),
    *(
        _row(
            f"{_C}.router.{what}",
            axes,
            f"{_O}.mlp.gate.{what}",
            f"{_H}.mlp.router.{what}",
            f"{_G}.ffn_gate_inp.{what}",
            {Kind.DEFUSED: f"{_H}.mlp.router.linear.{what}"},
            other={
                kind: f"{_H}.mlp.router.{'' if kind is Kind.DEFUSED else 'linear.'}{what}"
                for kind in Kind
                if kind.names is Names.HF
            },
        )
        for what, axes in (("weight", "E H"), ("bias", "E"))
    ),
    *_experts(),
    _row("norm.weight", "H", "norm.scale", "model.norm.weight", "output_norm.weight"),
    _row("unembedding.weight", "V H", "unembedding.weight", "lm_head.weight", "output.weight"),
)
