"""The names that adapters give to modules -> what of the model each one is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import ALL, GATE, UP, FusedRows, Rows
from gptoss_adapters.spec import GptOssConfig

_PREFIX = re.compile(r"^(?:base_model\.)?(?:model\.)?(?=model\.|lm_head|layers\.|embed_tokens)")


@dataclass(frozen=True, slots=True)
class Target:
    """What a module of an adapter adapts: a canonical tensor or one expert's matrix of it, all its rows or every
    other one. `piece`: which rows of the module's own matrix are meant and how many it has, where it holds several
    tensors one below the other. `tinker`: a module that only Tinker's own files have.
    """

    canonical: str
    expert: int | None = None
    rows: Rows = ALL
    piece: tuple[int, int, int] | None = None
    tinker: bool = False


def name_module(name: str) -> str:
    """A module's name as the whole model has it, without the wrappers' prefixes."""
    plain = _PREFIX.sub("", name)
    return f"model.{plain}" if plain.startswith(("layers.", "embed_tokens")) else plain


def list_targets(config: GptOssConfig) -> dict[str, tuple[Target, ...]]:
    """What each module name, as PEFT, Unsloth, Tinker and mlx-lm spell it without prefix, adapts."""
    out: dict[str, tuple[Target, ...]] = {
        "model.embed_tokens": (Target("embedding.weight"),),
        "lm_head": (Target("unembedding.weight"),),
        "model.unembed_tokens": (Target("unembedding.weight", tinker=True),),
    }
    for n in range(config.num_hidden_layers):
        out |= _list_attention(config, n) | _list_experts(config, n)
        for linear in ("", ".linear"):
            out[f"model.layers.{n}.mlp.router{linear}"] = (Target(f"layers.{n}.router.weight"),)
    return out


def _list_attention(config: GptOssConfig, n: int) -> dict[str, tuple[Target, ...]]:
    out: dict[str, tuple[Target, ...]] = {}
    spans = {which: FusedRows(which).span(config) for which in "qkv"}
    total = spans["v"].stop
    for attention in ("self_attn", "attn"):
        at = f"model.layers.{n}.{attention}"
        for which in "qkvo":
            out[f"{at}.{which}_proj"] = (Target(f"layers.{n}.{which}_proj.weight"),)
        fused = tuple(
            Target(f"layers.{n}.{which}_proj.weight", piece=(span.start, span.stop, total))
            for which, span in spans.items()
        )
        out |= {f"{at}.{name}": fused for name in ("qkv_proj", "qkv")}
    return out


def _list_experts(config: GptOssConfig, n: int) -> dict[str, tuple[Target, ...]]:
    """All experts at once with three axes, and expert by expert with two."""
    at, ours = f"model.layers.{n}.mlp.experts", f"layers.{n}.experts"
    gate_up, down = f"{ours}.gate_up.weight", f"{ours}.down.weight"
    out: dict[str, tuple[Target, ...]] = {
        f"{at}.gate_up_proj": (Target(gate_up),),
        f"{at}.gate_proj": (Target(gate_up, rows=GATE),),
        f"{at}.up_proj": (Target(gate_up, rows=UP),),
        f"{at}.down_proj": (Target(down),),
        f"{at}.w1": (Target(gate_up, rows=GATE, tinker=True),),
        f"{at}.w3": (Target(gate_up, rows=UP, tinker=True),),
        f"{at}.w2": (Target(down, tinker=True),),
    }
    for e in range(config.experts_of(n)):
        for canonical, which in ((gate_up, "gate_up"), (down, "down")):
            for name in (f"{which}_projs.{e}", f"{e}.{which}_proj"):
                out[f"{at}.{name}"] = (Target(canonical, e),)
        for rows in (GATE, UP):
            out[f"{at}.{e}.{rows.word}_proj"] = (Target(gate_up, e, rows),)
    return out


def list_parameters(config: GptOssConfig) -> dict[str, str]:
    """Every parameter of transformers' model -> its canonical name."""
    return {parts[0].name: name for name, parts in layouts.parts(Kind.HF_BF16, config).items()}
