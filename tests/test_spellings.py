"""Every spelling both ways, the published bytes, and complaints that name the key."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_adapters import spellings
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import FULL, GPT_OSS_20B, GPT_OSS_120B, SLIDING, GptOssConfig, alternating

DATA = Path(__file__).parent / "data"
VARIANT = dataclasses.replace(
    GPT_OSS_20B,
    num_hidden_layers=3,
    layer_types=(FULL, SLIDING, SLIDING),
    rms_norm_eps=1e-6,
    swiglu_limit=6.5,
    rope_theta=123456.0,
    rope_scaling_factor=8.0,
    initial_context_length=2048,
    max_position_embeddings=16384,
    yarn_beta_fast=24.0,
    yarn_truncate=True,
    attention_factor=1.25,
    sliding_window=64,
    eos_token_id=7,
    pad_token_id=None,
    bos_token_id=None,
)


def gguf_metadata(c: GptOssConfig) -> dict[str, Any]:
    """What a GGUF of this config carries, as its reader gives it: float32 values, arrays as numpy."""
    keys: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "expert_feed_forward_length": c.intermediate_size,
        "expert_count": c.num_experts,
        "expert_used_count": c.experts_per_token,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.sliding_window": c.sliding_window,
        "attention.layer_norm_rms_epsilon": float(np.float32(c.rms_norm_eps)),
        "attention.sliding_window_pattern": np.array([t == SLIDING for t in c.layer_types]),
        "rope.freq_base": float(np.float32(c.rope_theta)),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": c.rope_scaling_factor,
        "rope.scaling.original_context_length": c.initial_context_length,
        "rope.scaling.yarn_beta_fast": c.yarn_beta_fast,
        "rope.scaling.yarn_beta_slow": c.yarn_beta_slow,
    }
    return {"general.architecture": "gpt-oss", **{f"gpt-oss.{k}": v for k, v in keys.items()}}


def test_published_openai_config_is_376_bytes() -> None:
    text = json.dumps(spellings.to_openai(GPT_OSS_20B))
    assert len(text) == 376
    assert spellings.from_openai(json.loads(text)) == dataclasses.replace(GPT_OSS_20B)


def test_published_hf_config_is_1806_bytes() -> None:
    text = json.dumps(spellings.to_hf(GPT_OSS_20B, mxfp4=True), indent=2) + "\n"
    assert len(text) == 1806
    back = spellings.from_hf(json.loads(text))
    assert back == dataclasses.replace(GPT_OSS_20B, bos_token_id=None)  # published configs have no bos


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, VARIANT])
@pytest.mark.parametrize("spelling", [4, 5])
@pytest.mark.parametrize("mxfp4", [True, False])
def test_hf_spellings_go_there_and_back(config: GptOssConfig, spelling: int, mxfp4: bool) -> None:
    raw = json.loads(json.dumps(spellings.to_hf(config, mxfp4=mxfp4, spelling=spelling)))
    assert ("rope_parameters" in raw, "rope_scaling" in raw) == (spelling == 5, spelling == 4)
    assert ("quantization_config" in raw) == mxfp4
    assert spellings.from_hf(raw) == dataclasses.replace(config, bos_token_id=None)


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B])
def test_openai_spelling_goes_there_and_back(config: GptOssConfig) -> None:
    assert spellings.from_openai(json.loads(json.dumps(spellings.to_openai(config)))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 1e-6),
        ("swiglu_alpha", 1.5),
        ("yarn_truncate", True),
        ("attention_factor", 1.0),
        ("layer_types", (FULL,) * 24),
    ],
)
def test_openai_spelling_refuses_what_it_cannot_say(field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=field):
        spellings.to_openai(dataclasses.replace(GPT_OSS_20B, **{field: value}))


def test_transformers_reads_both_spellings_alike() -> None:
    from transformers import GptOssConfig as Theirs

    for config in (GPT_OSS_20B, VARIANT):
        for spelling in (4, 5):
            theirs = Theirs(**spellings.to_hf(config, mxfp4=False, spelling=spelling))
            again = spellings.from_hf(json.loads(theirs.to_json_string()))
            assert again == dataclasses.replace(config, bos_token_id=again.bos_token_id)


@pytest.mark.parametrize("folder", sorted((DATA / "gguf" / "src").iterdir()), ids=lambda p: p.name)
def test_gold_configs_of_both_spellings_agree(folder: Path) -> None:
    config = spellings.from_hf(json.loads((folder / "config.json").read_text()))
    assert (config.hidden_size, config.intermediate_size, config.rope_scaling_factor, config.yarn_truncate) == (
        96,
        64,
        32.0,
        False,
    )
    assert config.rope_theta == 150000 and config.initial_context_length == 4096 and config.experts_per_token == 4


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, VARIANT])
def test_gguf_spelling_goes_there_and_back(config: GptOssConfig) -> None:
    """All but what it has no key for; a file holds numbers as float32 and flags as an array."""
    metadata: dict[str, Any] = {
        "general.architecture": "gpt-oss",
        "gptoss_adapters.yarn_truncate": config.yarn_truncate,
    }
    for key, value in spellings.to_gguf(config).items():
        stored = {float: lambda x: float(np.float32(x)), list: np.array}.get(type(value), lambda x: x)
        metadata[f"gpt-oss.{key}"] = stored(value)
    unsaid = {"swiglu_limit": 7.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    assert spellings.from_gguf(metadata, config.vocab_size) == dataclasses.replace(config, **unsaid)


def test_gguf_keys_are_those_of_upstream() -> None:
    theirs = [key for key in gguf_metadata(GPT_OSS_20B) if not key.endswith(("architecture", "pattern"))]
    assert sorted(f"gpt-oss.{key}" for key in spellings.to_gguf(GPT_OSS_20B)) == sorted(theirs)


def test_gguf_without_yarn_or_windows() -> None:
    plain = dataclasses.replace(GPT_OSS_20B, rope_scaling_factor=1.0, layer_types=(FULL,) * 24)
    keys = spellings.to_gguf(plain)
    assert keys["rope.scaling.type"] == "none" and not any("yarn" in key or "factor" in key for key in keys)
    assert keys["attention.sliding_window"] == 131072 and "attention.sliding_window_pattern" not in keys


@pytest.mark.parametrize("config", [GPT_OSS_20B, VARIANT])
def test_gguf_metadata(config: GptOssConfig) -> None:
    """What has no key comes back as what llama.cpp computes: rounded YaRN bounds, limit 7, alpha 1.702."""
    back = spellings.from_gguf(gguf_metadata(config), config.vocab_size)
    unsaid = {
        "yarn_truncate": True,
        "swiglu_limit": 7.0,
        "attention_factor": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    assert back == dataclasses.replace(config, **unsaid)


def test_gguf_provenance_keys_are_obeyed() -> None:
    extra = {
        "gptoss_adapters.yarn_truncate": False,
        "gptoss_adapters.swiglu_limit": 6.5,
        "gptoss_adapters.swiglu_alpha": float(np.float32(1.6)),
    }
    back = spellings.from_gguf(gguf_metadata(GPT_OSS_20B) | extra, 201088)
    assert (back.yarn_truncate, back.swiglu_limit, back.swiglu_alpha) == (False, 6.5, 1.6)


@pytest.mark.parametrize(
    ("period", "types"),
    [(2, alternating(4)), (0, (SLIDING,) * 4), (3, (SLIDING, SLIDING, FULL, SLIDING)), (1, (FULL,) * 4)],
)
def test_gguf_pattern_as_period(period: int, types: tuple[str, ...]) -> None:
    metadata = gguf_metadata(dataclasses.replace(GPT_OSS_20B, num_hidden_layers=4, layer_types=()))
    metadata["gpt-oss.attention.sliding_window_pattern"] = period
    assert spellings.from_gguf(metadata, 100).layer_types == types


@pytest.mark.parametrize(
    "key",
    [
        "attention.sliding_window",
        "expert_feed_forward_length",
        "attention.layer_norm_rms_epsilon",
        "context_length",
        "expert_used_count",
        "block_count",
        "expert_count",
    ],
)
def test_gguf_keys_without_which_llama_cpp_does_not_load(key: str) -> None:
    metadata = gguf_metadata(GPT_OSS_20B)
    del metadata[f"gpt-oss.{key}"]
    with pytest.raises(BadInput, match=key):
        spellings.from_gguf(metadata, 201088)


def test_gguf_without_scaling_type_is_refused() -> None:
    metadata = gguf_metadata(GPT_OSS_20B)
    del metadata["gpt-oss.rope.scaling.type"]  # llama.cpp would silently scale linearly
    with pytest.raises(BadInput, match=r"rope\.scaling\.type"):
        spellings.from_gguf(metadata, 201088)


def test_safeguard_is_the_base_architecture() -> None:
    """gpt-oss-safeguard differs in its prompt policy only: the same architecture name, model type and sizes."""
    raw = spellings.to_hf(GPT_OSS_20B, mxfp4=True) | {"_name_or_path": "openai/gpt-oss-safeguard-20b"}
    assert spellings.from_hf(raw) == dataclasses.replace(GPT_OSS_20B, bos_token_id=None)


YARN = (
    "rope_theta",
    "rope_scaling_factor",
    "initial_context_length",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_truncate",
    "attention_factor",
)


@pytest.mark.parametrize(
    "rope", [{}, {"rope_scaling": None}, {"rope_scaling": {}}, {"rope_parameters": None}, {"rope_theta": 10000.0}]
)
def test_a_config_that_says_nothing_of_rope_is_what_transformers_makes_of_it(rope: dict[str, Any]) -> None:
    """YaRN as published, not plain RoPE."""
    from transformers import GptOssConfig as Theirs

    raw = {
        k: v for k, v in spellings.to_hf(GPT_OSS_20B, mxfp4=False).items() if k not in ("rope_scaling", "rope_theta")
    } | rope
    ours, theirs = spellings.from_hf(raw), spellings.from_hf(Theirs.from_dict(raw).to_dict())
    assert ours.uses_yarn and ours == dataclasses.replace(
        GPT_OSS_20B, bos_token_id=None, rope_theta=rope.get("rope_theta", 150000.0)
    )
    assert {k: getattr(theirs, k) for k in YARN} == {k: getattr(ours, k) for k in YARN}


@pytest.mark.parametrize(
    "rope", [{"rope_scaling": {"rope_type": "default"}}, {"rope_parameters": {"rope_theta": 150000.0}}]
)
def test_plain_rope_is_said_outright(rope: dict[str, Any]) -> None:
    from transformers import GptOssConfig as Theirs

    raw = {
        k: v for k, v in spellings.to_hf(GPT_OSS_20B, mxfp4=False).items() if k not in ("rope_scaling", "rope_theta")
    } | rope
    assert not spellings.from_hf(raw).uses_yarn and Theirs.from_dict(raw).rope_parameters["rope_type"] == "default"


BAD_HF: list[tuple[str, Any]] = [
    ("num_hidden_layers", 0),
    ("num_hidden_layers", "24"),
    ("num_hidden_layers", 10**9),
    ("num_local_experts", 0),
    ("num_local_experts", None),
    ("num_experts_per_tok", 33),
    ("hidden_size", -1),
    ("hidden_size", 2880.0),
    ("head_dim", 63),
    ("num_key_value_heads", 7),
    ("sliding_window", 0),
    ("sliding_window", -4),
    ("sliding_window", None),
    ("layer_types", ["full_attention"] * 23),
    ("layer_types", "full_attention"),
    ("layer_types", ["full_attention"] * 23 + ["chunked_attention"]),
    ("layer_types", [{}] * 24),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", "1e-5"),
    ("swiglu_limit", float("inf")),
    ("rms_norm_eps", 1e-60),
    ("rope_theta", 1e300),
    ("rope_theta", 1 + 1e-12),
    ("rope_theta", 0),
    ("rope_theta", "150000"),
    ("rope_theta", 1),
    ("vocab_size", True),
    ("tie_word_embeddings", True),
    ("eos_token_id", "200002"),
    ("rope_scaling", []),
    ("max_position_embeddings", 1.5),
]


@pytest.mark.parametrize(("field", "value"), BAD_HF)
def test_validation_names_the_field(field: str, value: Any) -> None:
    ours = {
        "num_local_experts": "num_(local_)?experts",
        "num_experts_per_tok": "experts_per_token",
        "num_key_value_heads": "num_attention_heads",
    }
    with pytest.raises(BadInput, match=ours.get(field, field)) as e:
        spellings.from_hf(spellings.to_hf(GPT_OSS_20B, mxfp4=True) | {field: value}, "config.json")
    assert str(e.value).startswith("config.json: ") and e.value.exit_code == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_type", "llama3"),
        ("factor", "x"),
        ("factor", 0),
        ("factor", 0.5),
        ("factor", 4.54e-05),
        ("beta_fast", -1),
        ("beta_slow", 5e-324),
        ("truncate", "no"),
        ("original_max_position_embeddings", 0),
        ("attention_factor", "x"),
    ],
)
def test_validation_of_rope(key: str, value: Any) -> None:
    raw = spellings.to_hf(GPT_OSS_20B, mxfp4=True)
    raw["rope_scaling"][key] = value
    with pytest.raises(BadInput, match="config field"):
        spellings.from_hf(raw)
