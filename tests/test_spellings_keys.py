"""The list of config keys against transformers' own class, both ways, and what becomes of a key that is on no list."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
from typing import Any

import pytest

from gptoss_adapters import spellings
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import FULL, GPT_OSS_20B, SLIDING, GptOssConfig
from gptoss_adapters.spellings import hf_keys

RAW = spellings.to_hf(GPT_OSS_20B, mxfp4=True)
OTHER_WRITERS = {  # keys that no class of transformers has, and who writes them
    "initial_context_length": "the published files",
    "experts_per_token": "the published files",
    "quantization": "mlx-lm",
    "block_configs": "gpt_oss_puzzle",
    "unsloth_version": "Unsloth",
    "unsloth_fixed": "Unsloth",
    "_name_or_path": "transformers 4",
    "is_decoder": "transformers 4",
    "add_cross_attention": "transformers 4",
    "auto_map": "checkpoints with code",
    "original_max_position_embeddings": "transformers' RoPE, as an attribute",
    "model_type": "transformers, as an attribute of the class",
    "quantization_config": "transformers' quantisers",
}


def keys_of_transformers() -> set[str]:
    """Fields of the class, its other names for them, and what its base takes out of the file's other keys."""
    from transformers import GenerationConfig, PreTrainedConfig
    from transformers import GptOssConfig as Theirs

    taken = inspect.getsource(PreTrainedConfig.__post_init__) + inspect.getsource(Theirs.convert_rope_params_to_dict)
    popped = set(re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", taken))
    fields = {field.name for field in dataclasses.fields(Theirs)}
    return fields | set(Theirs.attribute_map) | popped | set(GenerationConfig._get_default_generation_params())


def test_every_key_of_transformers_is_on_a_list_and_no_other() -> None:
    theirs = keys_of_transformers()
    assert {"rope_scaling", "per_layer_config", "torch_dtype", "swiglu_alpha"} <= theirs
    assert theirs - hf_keys.KNOWN == set(), sorted(theirs - hf_keys.KNOWN)
    assert hf_keys.KNOWN - theirs - OTHER_WRITERS.keys() == set()
    assert OTHER_WRITERS.keys() - hf_keys.KNOWN == set()


def test_no_key_is_on_two_lists() -> None:
    lists = (hf_keys.READ, hf_keys.ONLY, hf_keys.NEUTRAL, hf_keys.HARMLESS, hf_keys.GENERATION)
    assert sum(map(len, lists)) == len(hf_keys.KNOWN)


def test_the_published_config_and_one_saved_by_transformers_are_obeyed_whole() -> None:
    from transformers import GptOssConfig as Theirs

    assert hf_keys.name_odd_keys(RAW) == []
    assert hf_keys.name_odd_keys(json.loads(Theirs(**copy.deepcopy(RAW)).to_json_string())) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_bias": False}, "attention_bias is false"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"moe_sizes": [1] * 24}, "moe_sizes has one entry for each layer"),
        ({"router_map": {str(n): {} for n in range(24)}}, "router_map has one entry for each layer"),
        ({"block_configs": [{"num_local_experts": 4}] * 3}, "block_configs must have 24 entries"),
        ({"block_configs": [{"num_local_experts": 4, "ffn": 1}] * 24}, "block_configs[0].ffn is not known"),
        ({"block_configs": [{"num_local_experts": 4, "sliding_window": 0}] * 24}, "must be positive"),
        ({"block_configs": [4] * 24}, "block_configs[0] must be an object"),
        ({"per_layer_config": {"24": {}}}, "per_layer_config.24 is no layer"),
        ({"per_layer_config": {"-1": {}}}, "per_layer_config.-1 is no layer"),
        ({"per_layer_config": {"0": {"skip": ["mlp"]}}}, "per_layer_config.0.skip is not known"),
        ({"per_layer_config": {"0": {"intermediate_size": 64}}}, "intermediate_size is not known"),
        ({"per_layer_config": {"3": {"num_local_experts": 2}}}, "experts_per_layer must lie in 4 to 32"),
        ({"per_layer_config": [1]}, "per_layer_config must be an object"),
        ({"num_local_experts": [32] * 23}, "one for each of 24 layers"),
        ({"num_local_experts": [32] * 23 + ["8"]}, "num_local_experts must be an integer"),
        ({"num_experts_per_tok": [4] * 24}, "experts_per_token must be a positive integer"),
        ({"intermediate_size": [2880] * 24}, "intermediate_size must be a positive integer"),
        ({"num_key_value_heads": [8] * 24}, "num_key_value_heads must be a positive integer"),
    ],
)
def test_another_architecture_is_refused_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as e:
        spellings.from_hf(RAW | change, "config.json")
    assert words in str(e.value) and str(e.value).startswith("config.json: config field")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu is without effect"),
        ({"my_key": 1, "n_shared_experts": 2}, "my_key, n_shared_experts"),
        ({f"k{n:02}": n for n in range(12)}, "and 4 more"),
        ({"architectures": ["MyGptOssForCausalLM"]}, "names MyGptOssForCausalLM"),
    ],
)
def test_a_key_without_effect_is_named(change: dict[str, Any], words: str) -> None:
    spellings.from_hf(RAW | change)
    (line,) = hf_keys.name_odd_keys(RAW | change)
    assert words in line


COUNTS, WINDOWS = (8, 4, 8, 6), (16, 0, 64, 0)
DIFFERING = GptOssConfig(
    num_hidden_layers=4, num_experts=8, experts_per_layer=COUNTS, windows=WINDOWS, sliding_window=16, bos_token_id=None
)


@pytest.mark.parametrize(
    "said",
    [
        {
            "num_local_experts": None,
            "sliding_window": None,
            "layer_types": None,
            "block_configs": [
                {"num_local_experts": e, "sliding_window": w or None} for e, w in zip(COUNTS, WINDOWS, strict=True)
            ],
        },
        {
            "per_layer_config": {
                "1": {"num_local_experts": 4},
                "2": {"sliding_window": 64},
                "3": {"num_local_experts": 6},
            }
        },
        {"num_local_experts": list(COUNTS), "per_layer_config": {"2": {"sliding_window": 64}}},
    ],
)
def test_layers_that_differ_are_read_in_three_spellings(said: dict[str, Any]) -> None:
    alike = dataclasses.replace(DIFFERING, experts_per_layer=(), windows=())
    read = spellings.from_hf(spellings.to_hf(alike, mxfp4=False) | said)
    assert read == DIFFERING
    assert [read.experts_of(n) for n in range(4)] == list(COUNTS)
    assert [read.window_of(n) for n in range(4)] == [16, None, 64, None]
    kinds = dataclasses.replace(read, experts_per_layer=(), windows=())
    assert read.parameters()[0] < kinds.parameters()[0]


def test_layers_that_differ_are_written_as_transformers_reads_them() -> None:
    from transformers import GptOssConfig as Theirs

    raw = spellings.to_hf(DIFFERING, mxfp4=False)
    assert spellings.from_hf(raw) == DIFFERING
    theirs = Theirs(**raw)
    assert [theirs.per_layer_config[n].num_local_experts for n in range(4)] == list(COUNTS)
    assert [theirs.per_layer_config[n].sliding_window for n in (0, 2)] == [16, 64]


def test_a_config_is_kept_but_for_what_changed() -> None:
    own = {
        "eos_token_id": [200002, 199999],
        "bos_token_id": 199998,
        "torch_dtype": "float32",
        "id2label": {"0": "a"},
        "my_key": {"x": [1]},
        "router_aux_loss_coef": 0.001,
        "transformers_version": "4.57.0",
        "_name_or_path": "me/tune",
    }
    source = RAW | own | {"rope_parameters": {"rope_type": "default"}, "num_experts": 3}
    config = spellings.from_hf(source)
    kept = spellings.to_hf(config, mxfp4=False, source=source)
    assert kept == {
        **{k: v for k, v in RAW.items() if k != "quantization_config"},
        **own,
        "torch_dtype": "bfloat16",
    }
    assert spellings.from_hf(kept) == config
    assert (kept["layer_types"][1], kept["layer_types"][0]) == (FULL, SLIDING)
