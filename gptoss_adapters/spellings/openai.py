"""OpenAI's `original/config.json`, both ways. Source: openai/gpt-oss `torch/model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields, plain, without_none
from gptoss_adapters.spec import GPT_OSS_20B as PUBLISHED  # what an absent key mostly means
from gptoss_adapters.spec import GptOssConfig, alternating

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
_OPENAI_LACKS = ("rms_norm_eps", "swiglu_alpha", "yarn_truncate", "attention_factor", "experts_per_layer", "windows")


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
    return GptOssConfig(**without_none(values)).validate(file)


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
    out = {key: plain(getattr(config, field)) for key, field in _OPENAI.items()}
    return out | {key: getattr(config, key) for key in _OPENAI_FLOATS}
