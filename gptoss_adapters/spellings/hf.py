"""Hugging Face's `config.json` of gpt-oss, both ways: transformers 4.x and 5.x. Source: the published files,
transformers' GptOssConfig. Which keys there are: hf_keys.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields, plain, without_none
from gptoss_adapters.spec import GPT_OSS_20B as PUBLISHED  # what an absent key mostly means
from gptoss_adapters.spec import GptOssConfig
from gptoss_adapters.spellings.hf_keys import READ, SAME, check_keys
from gptoss_adapters.spellings.hf_layers import take_layers, to_hf_layers
from gptoss_adapters.spellings.hf_rope import take_rope, to_hf_rope

NOT_QUANTISED = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
_FIXED = {  # of every published config
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
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "model_type", "block_configs")  # as a source spells them
_TYPES = ("dtype", "torch_dtype")


def from_hf(raw: Mapping[str, Any], file: str | None = None) -> GptOssConfig:
    """From an HF `config.json`, with RoPE as transformers reads it (see hf_rope.py).

    Raises BadInput naming the key: a wrong type, a value that gpt-oss cannot have, an architecture that is not its.
    """
    check_keys(raw, file)
    take = JsonFields(raw, file)
    null = next((key for key in SAME if key in raw and raw[key] is None and not _in_blocks(raw, key)), None)
    if null:
        raise BadInput(f"config field {null} is null", file=file)
    values = {key: take(key) for key in SAME} | take_rope(take) | take_layers(take)
    values["num_hidden_layers"] = take.integer("num_hidden_layers")
    values["experts_per_token"] = take("num_experts_per_tok", take("experts_per_token"))
    eos = take("eos_token_id")
    return GptOssConfig(
        **without_none(values),
        bos_token_id=take("bos_token_id"),
        eos_token_id=eos[0] if isinstance(eos, list) and eos else eos,
        pad_token_id=take("pad_token_id"),
    ).validate(file)


def to_hf(
    config: GptOssConfig, *, mxfp4: bool, spelling: int = 4, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An HF `config.json` as published (spelling 4: `rope_scaling`) or as transformers 5 saves it (spelling 5).

    `source`: the HF config that the model came with. Its keys that say nothing about what this file states anew are
    kept: lists of end tokens, unknown keys, what training needs. The tensors are bfloat16, and `dtype` says so.
    """
    rope, theta = to_hf_rope(config.as_dict()), plain(config.rope_theta)
    out = _FIXED | _list_kept(source or {}) | {key: getattr(config, key) for key in SAME}
    out |= {
        "experts_per_token": config.experts_per_token,
        "initial_context_length": config.initial_context_length,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "num_experts_per_tok": config.experts_per_token,
        "num_local_experts": config.num_experts,
        "swiglu_limit": float(config.swiglu_limit),
    }
    for key in ("eos_token_id", "pad_token_id"):
        out.setdefault(key, getattr(config, key))
    if "block_configs" not in out:
        out |= to_hf_layers(config)
    if config.swiglu_alpha == PUBLISHED.swiglu_alpha and spelling == 4 and "swiglu_alpha" not in (source or {}):
        del out["swiglu_alpha"]
    if mxfp4:
        out["quantization_config"] = {"modules_to_not_convert": list(NOT_QUANTISED), "quant_method": "mxfp4"}
    if spelling == 5:
        out |= {"rope_parameters": rope | {"rope_theta": theta}, "dtype": "bfloat16"}
    else:
        out |= {"rope_scaling": rope, "rope_theta": theta}
        out.setdefault("transformers_version", "4.55.0.dev0")
    return dict(sorted(out.items()))


def _list_kept(source: Mapping[str, Any]) -> dict[str, Any]:
    """What of a source's config stays as it stands there."""
    kept = {key: value for key, value in source.items() if key not in READ or key in _KEPT}
    return kept | {key: "bfloat16" for key in _TYPES if source.get(key) is not None}


def _in_blocks(raw: Mapping[str, Any], key: str) -> bool:
    """Whether the layers say it one by one."""
    return key == "sliding_window" and raw.get("block_configs") is not None
