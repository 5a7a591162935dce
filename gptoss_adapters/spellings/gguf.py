"""GGUF metadata of a config, both ways. Source: llama.cpp's gpt-oss keys."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields, without_none
from gptoss_adapters.spec import (
    FULL,
    GGUF_ARCH,
    MAX_F32,
    MAX_LAYERS,
    SLIDING,
    GptOssConfig,
    alternating,
    yarn_concentration,
)
from gptoss_adapters.spec import GPT_OSS_20B as PUBLISHED  # what an absent key mostly means

_REQUIRED, _OPTIONAL, _BY_HAND = "required", "may be missing", "read by hand"
_GGUF = (  # key after "gpt-oss.", our field, its type in the file, and how it is read; in llama.cpp's order of writing
    ("block_count", "num_hidden_layers", int, _REQUIRED),
    ("context_length", "max_position_embeddings", int, _REQUIRED),
    ("embedding_length", "hidden_size", int, _REQUIRED),
    ("feed_forward_length", "intermediate_size", int, _BY_HAND),
    ("attention.head_count", "num_attention_heads", int, _REQUIRED),
    ("attention.head_count_kv", "num_key_value_heads", int, _OPTIONAL),
    ("rope.scaling.type", None, str, _BY_HAND),
    ("rope.scaling.factor", "rope_scaling_factor", float, _BY_HAND),
    ("rope.scaling.original_context_length", "initial_context_length", int, _OPTIONAL),
    ("rope.scaling.yarn_beta_fast", "yarn_beta_fast", float, _OPTIONAL),
    ("rope.scaling.yarn_beta_slow", "yarn_beta_slow", float, _OPTIONAL),
    ("rope.scaling.attn_factor", None, float, _BY_HAND),
    ("rope.freq_base", "rope_theta", float, _OPTIONAL),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", float, _REQUIRED),
    ("expert_count", "num_experts", int, _REQUIRED),
    ("expert_used_count", "experts_per_token", int, _REQUIRED),
    ("attention.key_length", "head_dim", int, _OPTIONAL),
    ("attention.value_length", "head_dim", int, _BY_HAND),
    ("attention.sliding_window", "sliding_window", int, _REQUIRED),
    ("attention.sliding_window_pattern", None, list, _BY_HAND),
    ("expert_feed_forward_length", "intermediate_size", int, _REQUIRED),
)
_YARN_ONLY = ("rope.scaling.factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")


def from_gguf(metadata: Mapping[str, Any], vocab_size: int, file: str | None = None) -> GptOssConfig:
    """From GGUF metadata (keys with the architecture's prefix). What has no key is what llama.cpp computes."""
    ours = JsonFields({key: _shortest(value) for key, value in metadata.items()}, file)
    arch = ours.string("general.architecture", "")
    if arch != GGUF_ARCH:
        raise BadInput("general.architecture is not gpt-oss", file=file, expected=GGUF_ARCH, got=arch)
    take = JsonFields({k.removeprefix(f"{arch}."): v for k, v in ours.raw.items() if k.startswith(f"{arch}.")}, file)
    missing = next((key for key, _, _, how in _GGUF if how == _REQUIRED and key not in take.raw), None)
    if missing:
        hint = "llama.cpp does not load such a file"
        raise BadInput(f"metadata key {arch}.{missing} is missing", file=file, hint=hint)
    values = _take_gguf_fields(take) | _take_gguf_scaling(take)
    pattern = take.raw.get("attention.sliding_window_pattern")
    hides_nothing = take.integer("attention.sliding_window") >= take.integer("context_length")
    if pattern is None and hides_nothing:  # believe to-gguf's note that no layer slides: llama.cpp has no such pattern
        pattern = ours.raw.get("gptoss_adapters.sliding_window_pattern")
    return GptOssConfig(
        **without_none(values),
        vocab_size=vocab_size,
        layer_types=_types_from_pattern(pattern, values["num_hidden_layers"], file),
        yarn_truncate=ours.boolean("gptoss_adapters.yarn_truncate", True),
        swiglu_alpha=ours.number("gptoss_adapters.swiglu_alpha", PUBLISHED.swiglu_alpha),
        swiglu_limit=ours.number("gptoss_adapters.swiglu_limit", PUBLISHED.swiglu_limit),
        bos_token_id=ours("tokenizer.ggml.bos_token_id"),
        eos_token_id=ours("tokenizer.ggml.eos_token_id"),
        pad_token_id=ours("tokenizer.ggml.padding_token_id"),
    ).validate(file)


def _take_gguf_fields(take: JsonFields) -> dict[str, Any]:
    """What is one key of the file; the head's dimension must be the same wherever it stands."""
    heads, context = take.integer("attention.head_count"), take.integer("context_length")
    usual_head = take.integer("embedding_length") // max(heads, 1)
    defaults = {
        "attention.head_count_kv": heads,
        "attention.key_length": usual_head,
        "rope.freq_base": 10000.0,
        "rope.scaling.original_context_length": context,
    }
    values = {field: take(key, defaults.get(key)) for key, field, _, how in _GGUF if field and how != _BY_HAND}
    values["num_hidden_layers"] = take.integer("block_count")
    head_dim = take.integer("attention.key_length", usual_head)
    for key, usual in (("attention.value_length", usual_head), ("rope.dimension_count", head_dim)):
        if (got := take.integer(key, usual)) != head_dim:
            line = f"metadata key {GGUF_ARCH}.{key} differs from the head dimension"
            raise BadInput(line, file=take.file, expected=head_dim, got=got)
    return values


def _take_gguf_scaling(take: JsonFields) -> dict[str, Any]:
    kind = take.string("rope.scaling.type", "missing" if "rope.scaling.factor" in take.raw else "none")
    if kind not in ("yarn", "none"):
        key = f"{GGUF_ARCH}.rope.scaling.type"
        raise BadInput(f"metadata key {key} is not one of gpt-oss", file=take.file, expected="yarn", got=kind)
    factor = take.number("rope.scaling.factor", 1.0) if kind == "yarn" else 1.0
    multiplier = take.number("rope.scaling.attn_factor", 1.0)
    attention_factor = None  # which is multiplier 1
    if multiplier != 1.0:
        attention_factor = float(f"{multiplier * yarn_concentration(max(factor, 1.0)):.7g}")  # f32 in the file
    return {"rope_scaling_factor": factor, "attention_factor": attention_factor}


def to_gguf(config: GptOssConfig) -> dict[str, Any]:
    """The architecture's keys, without "gpt-oss.", in upstream's order; an int, float, str or list of bool each.

    llama.cpp obeys a pattern of windows, but aborts on one in which no layer slides: then every layer gets a window
    that hides nothing. What has no key (SwiGLU's limit and alpha, unrounded YaRN bounds) is not in it.
    """
    values = {key: kind(getattr(config, field)) for key, field, kind, _ in _GGUF if field}
    values["rope.scaling.type"] = "yarn" if config.uses_yarn else "none"
    if config.attention_factor is not None:
        values["rope.scaling.attn_factor"] = config.attention_factor / yarn_concentration(config.rope_scaling_factor)
    if all(kind == FULL for kind in config.layer_types):
        values["attention.sliding_window"] = max(config.sliding_window, config.max_position_embeddings)
    elif config.layer_types != alternating(config.num_hidden_layers):
        values["attention.sliding_window_pattern"] = [kind == SLIDING for kind in config.layer_types]
    unused = () if config.uses_yarn else _YARN_ONLY
    return {key: values[key] for key, *_ in _GGUF if key in values and key not in unused}


def _types_from_pattern(pattern: Any, layers: int, file: str | None) -> tuple[str, ...]:
    """llama.cpp's pattern: one flag per layer, or a period n (layer i slides iff i % n < n - 1; 0: all slide)."""
    if pattern is None or not 0 < layers <= MAX_LAYERS:
        return ()
    if isinstance(pattern, int):
        return tuple(SLIDING if not pattern or i % pattern < pattern - 1 else FULL for i in range(layers))
    if getattr(getattr(pattern, "dtype", None), "kind", "") not in ("b", "u", "i"):
        line = "metadata key attention.sliding_window_pattern must hold one flag per layer"
        raise BadInput(line, file=file, got=pattern)
    return tuple(SLIDING if flag else FULL for flag in pattern)


def _shortest(value: Any) -> Any:
    """The shortest decimal that rounds to the same float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > MAX_F32:
        return value
    f32 = struct.Struct("<f")
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((s for s in shorter if abs(s) <= MAX_F32 and f32.pack(s) == f32.pack(value)), value)
