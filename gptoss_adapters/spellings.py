"""How a gpt-oss config is spelled: OpenAI's `config.json`, Hugging Face's (transformers 4.x and 5.x), GGUF metadata.

One reader and one writer a spelling, below its table of one row a field. Readers raise BadInput naming the key or the
field; a writer raises it for a field that its spelling cannot express.

Sources: openai/gpt-oss `torch/model.py`, the published HF `config.json`, llama.cpp's gpt-oss keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields
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

# OpenAI ---------------------------------------------------------------------------------------------------------------

_OPENAI = {  # its key -> our field, in the order of the published file
    "num_hidden_layers": "num_hidden_layers",
    "num_experts": "num_experts",
    "experts_per_token": "experts_per_token",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "initial_context_length": "initial_context_length",
    "rope_theta": "rope_theta",
    "rope_scaling_factor": "rope_scaling_factor",
    "rope_ntk_alpha": "yarn_beta_slow",
    "rope_ntk_beta": "yarn_beta_fast",
}
_OPENAI_FLOATS = ("swiglu_limit", "rope_scaling_factor")  # 7.0 there, where the others are 150000 and 32
_OPENAI_LACKS = ("rms_norm_eps", "swiglu_alpha", "yarn_truncate", "attention_factor")


def from_openai(raw: Mapping[str, Any], file: str | None = None) -> GptOssConfig:
    """From OpenAI's `original/config.json`. YaRN bounds are never rounded there; eps and alpha are fixed."""
    take = JsonFields(raw, file)
    values = {field: take(key) for key, field in _OPENAI.items()}
    values["num_hidden_layers"] = take.integer("num_hidden_layers")
    scaling = values["rope_scaling_factor"] = take.number("rope_scaling_factor", PUBLISHED.rope_scaling_factor)
    context = values["initial_context_length"] = take.integer(
        "initial_context_length", PUBLISHED.initial_context_length
    )
    values["max_position_embeddings"] = round(context * scaling)
    return GptOssConfig(**_without_none(values)).validate(file)


def to_openai(config: GptOssConfig) -> dict[str, Any]:
    """The keys of OpenAI's `config.json`, in the published order. Its loader raises on any other key.

    Raises BadInput for a field that this spelling cannot express (eps, alpha, layer_types, rounded YaRN).
    """
    fixed = {field: getattr(PUBLISHED, field) for field in _OPENAI_LACKS}
    fixed["layer_types"] = alternating(config.num_hidden_layers)
    for field, value in fixed.items():
        got = getattr(config, field)
        if got != value:
            line = f"config field {field} cannot be expressed in OpenAI's config.json"
            raise BadInput(line, expected=value, got=got)
    out = {key: _plain(getattr(config, field)) for key, field in _OPENAI.items()}
    return out | {key: getattr(config, key) for key in _OPENAI_FLOATS}


# Hugging Face ---------------------------------------------------------------------------------------------------------

_HF = (  # spelled as ours, and never null
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "rms_norm_eps",
    "swiglu_limit",
    "swiglu_alpha",
)
HF_ROPE = {  # of transformers' GptOssConfig for a config that says nothing
    "rope_type": "yarn",
    "factor": PUBLISHED.rope_scaling_factor,
    "beta_fast": PUBLISHED.yarn_beta_fast,
    "beta_slow": PUBLISHED.yarn_beta_slow,
    "truncate": False,
    "original_max_position_embeddings": PUBLISHED.initial_context_length,
}
HF_NOT_QUANTISED = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
_HF_FIXED = {  # of every published config
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.9,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def from_hf(raw: Mapping[str, Any], file: str | None = None) -> GptOssConfig:
    """From an HF `config.json`: `rope_scaling` + `rope_theta` (transformers 4.x) or `rope_parameters` (5.x).

    A config with neither (absent, null or empty) has the published YaRN, as in transformers and vLLM, which fill it in:
    not plain RoPE. That is `rope_type` "default", or a `rope_parameters` that names no type.
    """
    if raw.get("tie_word_embeddings"):
        raise BadInput("config field tie_word_embeddings is true; gpt-oss has an output head of its own", file=file)
    take = JsonFields(raw, file)
    values = _take_hf_rope(take) | {key: take(key) for key in _HF}
    layer_types = take("layer_types")
    if layer_types is not None and not isinstance(layer_types, list | tuple):
        raise BadInput("config field layer_types must be a list", file=file, got=layer_types)
    null = next((key for key in _HF if key in raw and raw[key] is None), None)
    if null:
        raise BadInput(f"config field {null} is null", file=file)
    values["num_hidden_layers"] = take.integer("num_hidden_layers")
    values["num_experts"] = take.integer("num_local_experts" if "num_local_experts" in raw else "num_experts")
    values["experts_per_token"] = take("num_experts_per_tok", take("experts_per_token"))
    eos = take("eos_token_id")
    return GptOssConfig(
        **_without_none(values),
        layer_types=tuple(layer_types or ()),
        bos_token_id=take("bos_token_id"),
        eos_token_id=eos[0] if isinstance(eos, list) and eos else eos,
        pad_token_id=take("pad_token_id"),
    ).validate(file)


def _take_hf_rope(take: JsonFields) -> dict[str, Any]:
    """The fields of rotary embedding and context."""
    rope = take.mapping("rope_parameters")
    if not rope:
        rope = {"rope_theta": take("rope_theta"), **(take.mapping("rope_scaling") or HF_ROPE)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("yarn", "default"):
        raise BadInput("config field rope_type is not one of gpt-oss", file=take.file, expected="yarn", got=kind)
    yarn = kind == "yarn"
    max_positions = take.integer("max_position_embeddings", PUBLISHED.max_position_embeddings)
    context = take.integer("initial_context_length", PUBLISHED.initial_context_length if yarn else max_positions)
    inner = JsonFields(rope, take.file)
    return {
        "max_position_embeddings": max_positions,
        "initial_context_length": inner.integer("original_max_position_embeddings", context),
        "rope_theta": inner.number("rope_theta", PUBLISHED.rope_theta),
        "rope_scaling_factor": inner.number("factor") if yarn else 1.0,
        "yarn_beta_fast": inner.number("beta_fast", PUBLISHED.yarn_beta_fast),
        "yarn_beta_slow": inner.number("beta_slow", PUBLISHED.yarn_beta_slow),
        "yarn_truncate": inner.boolean("truncate", yarn),  # an absent key means rounding, as in transformers
        "attention_factor": inner("attention_factor"),
    }


def to_hf(config: GptOssConfig, *, mxfp4: bool, spelling: int = 4) -> dict[str, Any]:
    """An HF `config.json` as published (spelling 4: `rope_scaling`) or as transformers 5 saves it (spelling 5)."""
    rope, theta = _hf_rope(config), _plain(config.rope_theta)
    out = _HF_FIXED | {key: getattr(config, key) for key in _HF}
    out |= {
        "eos_token_id": config.eos_token_id,
        "experts_per_token": config.experts_per_token,
        "initial_context_length": config.initial_context_length,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "num_experts_per_tok": config.experts_per_token,
        "num_local_experts": config.num_experts,
        "pad_token_id": config.pad_token_id,
        "swiglu_limit": float(config.swiglu_limit),
    }
    if config.swiglu_alpha == PUBLISHED.swiglu_alpha and spelling == 4:
        del out["swiglu_alpha"]
    if mxfp4:
        out["quantization_config"] = {"modules_to_not_convert": list(HF_NOT_QUANTISED), "quant_method": "mxfp4"}
    if spelling == 5:
        out |= {"rope_parameters": rope | {"rope_theta": theta}, "dtype": "bfloat16"}
    else:
        out |= {"rope_scaling": rope, "rope_theta": theta, "transformers_version": "4.55.0.dev0"}
    return dict(sorted(out.items()))


def _hf_rope(config: GptOssConfig) -> dict[str, Any]:
    if not config.uses_yarn:
        return {"rope_type": "default"}
    rope = {
        "beta_fast": float(config.yarn_beta_fast),
        "beta_slow": float(config.yarn_beta_slow),
        "factor": float(config.rope_scaling_factor),
        "original_max_position_embeddings": config.initial_context_length,
        "rope_type": "yarn",
        "truncate": config.yarn_truncate,
    }
    return rope if config.attention_factor is None else rope | {"attention_factor": config.attention_factor}


# GGUF -----------------------------------------------------------------------------------------------------------------

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
        **_without_none(values),
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


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """150000.0 is spelled 150000 in the published configs."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
