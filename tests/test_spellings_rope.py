"""RoPE of an HF config against transformers' own rotary class, on configs that are made from a seed."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any, get_type_hints

import numpy as np
import pytest

from gptoss_adapters import spellings
from gptoss_adapters.errors import BadInput
from gptoss_adapters.reference.model import yarn_inverse_frequencies
from gptoss_adapters.spellings.hf_keys import name_odd_keys
from gptoss_adapters.spellings.hf_rope import COMMON_KEYS, OTHER_TYPES, YARN_KEYS

CONFIGS = 500
MISSING = object()
LOWERED = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
CHOICES: dict[str, list[Any]] = {  # of a rope object; the first ones come often
    "rope_type": ["yarn", "yarn", "yarn", "yarn", MISSING, "default", *OTHER_TYPES],
    "type": [MISSING, MISSING, MISSING, "yarn", "default"],
    "rope_theta": [MISSING, MISSING, 10000.0, 150000, 500000.0, 1234.5],
    "factor": [32.0, 8, 1.0, 4.5, MISSING, None, 0.5],
    "original_max_position_embeddings": [4096, 4096, MISSING, 2048, 8192, 512],
    "attention_factor": [MISSING, MISSING, MISSING, None, 1.0, 1.25, 0.0],
    "beta_fast": [MISSING, 32.0, 32, 24.0, 0, None, 1.0],
    "beta_slow": [MISSING, 1.0, 2, 0, None, 40.0],
    "truncate": [MISSING, False, True, None],
    "mscale": [MISSING, MISSING, MISSING, 1.0, 0.707, 0, None],
    "mscale_all_dim": [MISSING, MISSING, MISSING, 1.0, 0.5, 0, None],
    "partial_rotary_factor": [MISSING] * 12 + [1.0, None, 0.5],
    "low_freq_factor": [MISSING] * 14 + [1.0],
    "full_attention": [MISSING] * 40 + [{"rope_type": "default"}],
}
BESIDE: dict[str, list[Any]] = {
    "rope_theta": [MISSING, MISSING, 150000, 10000.0, 25000.0],
    "partial_rotary_factor": [MISSING] * 12 + [1.0, None, 0.25],
    "original_max_position_embeddings": [MISSING] * 6 + [4096, 1024],
    "initial_context_length": [MISSING, 4096, 2048],
    "max_position_embeddings": [MISSING, 131072, 16384, 4096],
    "head_dim": [64, 64, 32, 16],
}


def make_config(rng: random.Random) -> dict[str, Any]:
    raw: dict[str, Any] = LOWERED | pick(rng, BESIDE)
    for key in rng.choice((["rope_scaling"], ["rope_parameters"], ["rope_scaling", "rope_parameters"], [])):
        raw[key] = rng.choice((None, {})) if rng.random() < 0.1 else pick(rng, CHOICES)
    return raw


def pick(rng: random.Random, choices: dict[str, list[Any]]) -> dict[str, Any]:
    chosen = {key: rng.choice(values) for key, values in choices.items()}
    return {key: value for key, value in chosen.items() if value is not MISSING}


def ask_transformers(raw: dict[str, Any]) -> tuple[np.ndarray, float] | str:
    """(frequencies of half a head, attention factor), or what it fails with."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    try:
        config = GptOssConfig.from_dict(raw)
        rotary = GptOssRotaryEmbedding(config)
    except Exception as e:  # whatever it raises: that it does not compute is what counts
        return type(e).__name__
    if rotary.inv_freq.numel() != config.head_dim // 2:
        return "another width than the head's: the model fails on it"
    return rotary.inv_freq.double().numpy(), float(rotary.attention_scaling)


def allow_refusal(raw: dict[str, Any], error: str) -> str | None:
    """Which of our own limits a refusal is, of what transformers computes; None: none that we state."""
    limits = {
        "rope_type is not one of gpt-oss": "another type",
        "rope_scaling_factor must be at least 1": "shrinks the context",
        "invalid YaRN ramp": "ramp upside down",
        "attention_factor must be a positive number": "attention switched off",
        "by the type of layer": "one for a type of layer, beside one for all",
    }
    return next((name for words, name in limits.items() if words in error), None)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("transformers").setLevel(logging.WARNING)


def test_rope_is_what_transformers_computes() -> None:
    rng = random.Random(19)
    seen: Counter[str] = Counter()
    for _ in range(CONFIGS):
        raw = make_config(rng)
        theirs = ask_transformers({k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()})
        try:
            config = spellings.from_hf(raw)
        except BadInput as e:
            limit = "also theirs" if isinstance(theirs, str) else allow_refusal(raw, str(e))
            assert limit, (raw, str(e))
            seen[limit] += 1
            continue
        assert not isinstance(theirs, str), (raw, theirs)
        name_odd_keys(raw)  # says what it can of every config that is taken
        ours = yarn_inverse_frequencies(config).numpy()
        np.testing.assert_allclose(ours, theirs[0], rtol=2e-5, err_msg=str(raw))
        assert config.concentration == pytest.approx(theirs[1], rel=1e-12), raw
        seen["equal"] += 1
    assert seen["equal"] >= 250, seen
    assert all(seen[kind] for kind in ("also theirs", "another type", "ramp upside down", "shrinks the context")), seen


@pytest.mark.parametrize(
    ("rope", "field", "value"),
    [  # what people have, by hand: a saved config with a scaling added, a theta beside, what is left out
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
                "rope_parameters": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
            },
            "rope_scaling_factor",
            32.0,
        ),
        ({"rope_theta": 10000, "rope_parameters": {"rope_type": "default"}}, "rope_theta", 10000.0),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "initial_context_length", 131072),
        ({"rope_parameters": {}}, "rope_scaling_factor", 1.0),
    ],
)
def test_rope_cases(rope: dict[str, Any], field: str, value: float) -> None:
    assert getattr(spellings.from_hf(LOWERED | rope), field) == value


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "low_freq_factor": 1}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"rope_scaling": {"rope_type": "default"}, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "yarn"}}, "taken whole"),
        ({"initial_context_length": 2048}, "initial_context_length 2048"),
    ],
)
def test_what_has_no_effect_is_named(rope: dict[str, Any], words: str) -> None:
    raw = LOWERED | rope
    spellings.from_hf(raw)
    assert any(words in line for line in name_odd_keys(raw)), name_odd_keys(raw)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        *(({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"{kind} ") for kind in OTHER_TYPES),
        ({"rope_scaling": {"rope_type": "ntk"}}, "got ntk"),
        ({"rope_scaling": {"rope_type": None, "factor": 2.0}}, "rope_type is not one of gpt-oss"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "by the type of layer"),
        ({"rope_parameters": {"rope_theta": None, "rope_type": "default"}}, "rope_theta must be a number"),
        ({"rope_theta": None}, "rope_theta must be a number"),
        ({"partial_rotary_factor": 0.5}, "turns whole heads"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor must be a number"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ],
)
def test_other_rope_is_refused_in_words(rope: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as e:
        spellings.from_hf(LOWERED | rope, "config.json")
    assert words in str(e.value) and str(e.value).startswith("config.json: config field")


def test_the_keys_and_types_of_rope_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

    of_other_types = {"short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mrope_section"}
    assert set(get_type_hints(RopeParameters)) == {*COMMON_KEYS, *YARN_KEYS} - {"type"} | of_other_types
    assert set(ROPE_INIT_FUNCTIONS) | {"axial"} == set(OTHER_TYPES) | {"yarn"}


def test_what_is_written_is_read_back_by_transformers() -> None:
    for raw in ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5}}, {}):
        config = spellings.from_hf(LOWERED | raw)
        for spelling in (4, 5):
            theirs = ask_transformers(spellings.to_hf(config, mxfp4=False, spelling=spelling))
            assert not isinstance(theirs, str)
            np.testing.assert_allclose(yarn_inverse_frequencies(config).numpy(), theirs[0], rtol=2e-5)
            assert config.concentration == pytest.approx(theirs[1], rel=1e-12)
