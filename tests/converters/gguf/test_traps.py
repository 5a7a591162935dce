"""What the upstream converter gets wrong without a word; each trap once. (Logits in llama.cpp:
test_gguf_in_llama_cpp.py.)
"""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.crafted import GOLD, copy, sharded, with_config, with_tensors
from test_to_gguf import convert, metadata, tensors

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.errors import BadInput

UPSTREAM = GOLD / "gguf" / "tiny-mxfp4.gguf"


def is_kind(name: str, kind: str) -> bool:
    return name.endswith(f"{kind}_blocks") or name.endswith(f"{kind}_scales")


# Which shard a tensor goes to. Upstream writes wrong experts with exit 0 for the second and third, and crashes on the
# first.
LAYOUTS = {
    "scales in a later shard": lambda n: 1 if n.endswith("_scales") else 0,
    "down blocks, down scales, the rest": lambda n: (
        0 if n.endswith("down_proj_blocks") else 1 if n.endswith("down_proj_scales") else 2
    ),
    "gate_up blocks, gate_up scales, the rest": lambda n: (
        0 if n.endswith("up_proj_blocks") else 1 if n.endswith("up_proj_scales") else 2
    ),
    "scales before blocks": lambda n: 0 if n.endswith("_scales") else 1,
    "one tensor to one shard": lambda n: tensor_names().index(n) * 37 % 79,
}


@cache
def tensor_names() -> list[str]:
    checkpoint = open_checkpoint(GOLD / "src" / "tiny-mxfp4")
    return sorted(s.name for t in checkpoint.tensors.values() for s in t.sources)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_and_scales_in_any_shard_and_order(layout: str, tmp_path: Path) -> None:
    folder = sharded(copy(tmp_path / "c"), LAYOUTS[layout])
    assert tensors(convert(folder, tmp_path / "out.gguf")) == tensors(UPSTREAM)


def test_tensor_order_within_a_file_does_not_matter(tmp_path: Path) -> None:
    def reverse(t: dict[str, Any]) -> None:
        items = list(t.items())[::-1]
        t.clear()
        t.update(items)

    folder = with_tensors(copy(tmp_path / "c"), reverse)
    assert tensors(convert(folder, tmp_path / "out.gguf")) == tensors(UPSTREAM)


@pytest.mark.parametrize("which", ["gate_up_proj_scales", "down_proj_scales", "down_proj_blocks"])
def test_a_missing_partner_is_refused(which: str, tmp_path: Path) -> None:
    name = f"model.layers.2.mlp.experts.{which}"
    folder = with_tensors(copy(tmp_path / "c"), lambda t: t.pop(name))
    with pytest.raises(BadInput, match=name):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def keys_of(tmp_path: Path, change: Any, options: GgufOptions = GgufOptions()) -> dict[str, Any]:  # noqa: B008
    folder = with_config(copy(tmp_path / "c"), change)
    out = convert(folder, tmp_path / "out.gguf", options)
    report = compare(open_checkpoint(folder), open_checkpoint(out))
    assert not report.config, report.config
    return {k: v for k, (_, v) in metadata(out).items()}


def test_layer_types_become_a_pattern(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    keys = keys_of(tmp_path, lambda c: c.update(layer_types=types))
    assert keys["gpt-oss.attention.sliding_window_pattern"] == [False, True, True, False]
    assert keys["gpt-oss.attention.sliding_window"] == 8


def test_all_sliding_is_a_pattern_too(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, lambda c: c.update(layer_types=["sliding_attention"] * 4))
    assert keys["gpt-oss.attention.sliding_window_pattern"] == [True] * 4


def test_the_default_pattern_is_not_written(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, lambda c: c.pop("layer_types"))
    assert "gpt-oss.attention.sliding_window_pattern" not in keys


def test_all_full_is_a_window_that_hides_nothing(tmp_path: Path) -> None:
    """A pattern without a sliding layer aborts llama.cpp."""
    keys = keys_of(tmp_path, lambda c: c.update(layer_types=["full_attention"] * 4))
    assert "gpt-oss.attention.sliding_window_pattern" not in keys
    assert keys["gpt-oss.attention.sliding_window"] >= keys["gpt-oss.context_length"]
    assert keys["gptoss_adapters.sliding_window_pattern"] == [False] * 4
    assert (
        open_checkpoint(tmp_path / "out.gguf").config.layer_types == ("full_attention",) * 4
    )  # what the source says, not what llama.cpp is told


def test_eps_is_written(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, lambda c: c.update(rms_norm_eps=3e-4))
    assert keys["gpt-oss.attention.layer_norm_rms_epsilon"] == pytest.approx(3e-4, rel=1e-6)


def test_attention_factor_is_written_as_llama_cpp_s_multiplier(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, lambda c: c["rope_scaling"].update(attention_factor=2.0))
    assert keys["gpt-oss.rope.scaling.attn_factor"] == pytest.approx(2.0 / 1.3465735902799727, rel=1e-6)


def test_a_model_without_yarn(tmp_path: Path) -> None:
    def plain(c: dict[str, Any]) -> None:
        c["rope_scaling"] = {"rope_type": "default"}

    keys = keys_of(tmp_path, plain)
    assert keys["gpt-oss.rope.scaling.type"] == "none" and "gpt-oss.rope.scaling.factor" not in keys


LOSSY = {
    "swiglu_limit": (lambda c: c.update(swiglu_limit=5.0), 5.0, "7"),
    "swiglu_alpha": (lambda c: c.update(swiglu_alpha=1.5), 1.5, "1.702"),
    "yarn_beta_fast": (lambda c: c["rope_scaling"].update(beta_fast=8.0), 8.0, "32"),
    "yarn_beta_slow": (lambda c: c["rope_scaling"].update(beta_slow=2.0), 2.0, "1"),
}


@pytest.mark.parametrize("field", LOSSY)
def test_what_has_no_key_is_refused_or_declared(field: str, tmp_path: Path) -> None:
    change, value, instead = LOSSY[field]
    checkpoint = open_checkpoint(with_config(copy(tmp_path / "c"), change))
    with pytest.raises(BadInput, match=rf"{field} is {value:g}.*computes with {instead}.*--allow-lossy") as refused:
        plan_gguf(checkpoint, tmp_path / "out.gguf", GgufOptions())
    assert refused.value.exit_code == 3
    made = plan_gguf(checkpoint, tmp_path / "out.gguf", GgufOptions(allow_lossy=True))
    assert any(field in notice and instead in notice for notice in made.notices)
    out = convert(tmp_path / "c", tmp_path / "out.gguf", GgufOptions(allow_lossy=True))
    assert metadata(out)[f"gptoss_adapters.{field}"][1] == pytest.approx(value)


def test_unrounded_yarn_is_a_notice_and_a_key(tmp_path: Path) -> None:
    made = plan_gguf(open_checkpoint(GOLD / "src" / "tiny-mxfp4"), tmp_path / "out.gguf", GgufOptions())
    assert len(made.notices) == 1 and "YaRN" in made.notices[0] and "\n" not in made.notices[0]
    keys = keys_of(tmp_path, lambda c: c["rope_scaling"].update(truncate=True))
    assert keys["gptoss_adapters.yarn_truncate"] is True
    rounded = plan_gguf(open_checkpoint(tmp_path / "c"), tmp_path / "b.gguf", GgufOptions())
    assert rounded.notices == []


def test_f16_refuses_experts_that_it_cannot_hold(tmp_path: Path) -> None:
    """float16 holds MXFP4 exactly for scale bytes 104..140 only."""
    name = "model.layers.1.mlp.experts.down_proj_scales"

    def with_scale(byte: int) -> Path:
        def change(t: dict[str, Any]) -> None:
            dtype, shape, data = t[name]
            t[name] = (dtype, shape, bytes([byte]) + data[1:])

        return with_tensors(copy(tmp_path / f"c{byte}"), change)

    for byte in (104, 140):
        convert(with_scale(byte), tmp_path / f"{byte}.gguf", GgufOptions(experts="f16"))
    for byte in (90, 150):
        with pytest.raises(BadInput, match="float16"):
            convert(with_scale(byte), tmp_path / f"{byte}.gguf", GgufOptions(experts="f16"))
        assert not (tmp_path / f"{byte}.gguf").exists()


def test_no_vocabulary(tmp_path: Path) -> None:
    out = convert(GOLD / "src" / "tiny-mxfp4", tmp_path / "out.gguf", GgufOptions(tokenizer="none"))
    keys = gguf.GGUFReader(out).fields
    assert keys["tokenizer.ggml.model"].contents() == "no_vocab" and keys["gpt-oss.vocab_size"].contents() == 512
    assert "tokenizer.ggml.tokens" not in keys


def test_f16_refuses_weights_beyond_its_range(tmp_path: Path) -> None:
    name = "model.layers.3.self_attn.o_proj.weight"

    def change(t: dict[str, Any]) -> None:
        dtype, shape, data = t[name]
        t[name] = (dtype, shape, data[:-2] + b"\x80\x47")  # 65536

    folder = with_tensors(copy(tmp_path / "c"), change)
    with pytest.raises(BadInput, match=rf"{name}: values beyond the range of float16 \(got 65536"):
        convert(folder, tmp_path / "out.gguf", GgufOptions(dense="f16"))
    convert(folder, tmp_path / "out.gguf")
