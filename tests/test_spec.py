"""GptOssConfig: derived sizes and validation by field name."""

import dataclasses
from typing import Any

import pytest

from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import FULL, GPT_OSS_20B, GPT_OSS_120B, SLIDING, GptOssConfig


def test_parameters_and_yarn_bounds_are_the_published_ones() -> None:
    assert GPT_OSS_20B.parameters() == (20_914_757_184, 3_608_307_264)  # the model card: 20.91 B and 3.61 B
    assert GPT_OSS_120B.parameters() == (116_829_156_672, 5_132_849_472)  # the model card: 116.83 B and 5.13 B
    assert GPT_OSS_20B.yarn_bounds() == pytest.approx((8.092779115512402, 17.39802450158856), rel=1e-15)
    assert dataclasses.replace(GPT_OSS_20B, yarn_truncate=True).yarn_bounds() == (8, 18)
    assert GPT_OSS_20B.concentration == pytest.approx(1.3465735902799727, rel=1e-15)


def test_layers_alternate_where_nothing_is_said() -> None:
    assert GptOssConfig(num_hidden_layers=3, num_experts=4).layer_types == (SLIDING, FULL, SLIDING)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 1025, "exceeds 1024"),
        ("hidden_size", True, "positive integer"),
        ("rms_norm_eps", float("nan"), "float32 holds"),
        ("experts_per_token", 33, "exceeds num_experts 32"),
        ("num_attention_heads", 63, "multiple of num_key_value_heads 8"),
        ("head_dim", 63, "even"),
        ("layer_types", (FULL,) * 23, "24 entries"),
        ("layer_types", ("none",) * 24, "only"),
        ("attention_factor", 0, "float32 holds"),
        ("pad_token_id", -1, "token id"),
        ("rope_theta", 1.0, "exceed 1"),
        ("rope_scaling_factor", 0.5, "at least 1"),
    ],
)
def test_validation_says_what_is_wrong_with_which_field(field: str, value: Any, words: str) -> None:
    with pytest.raises(BadInput, match=f"config field {field} .*{words}") as e:
        dataclasses.replace(GPT_OSS_20B, **{field: value}).validate("x.json")
    assert str(e.value).startswith("x.json: ")
