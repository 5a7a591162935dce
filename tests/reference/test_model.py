"""The reference model against gold fp64 logits, against transformers on changed configs, and against itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.reference.experts import decode
from gptoss_adapters.reference.model import GptOss, attend, yarn_inverse_frequencies
from gptoss_adapters.reference.taps import Taps
from gptoss_adapters.spec import GPT_OSS_20B

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
NAMES = ("tiny", "tiny-margin")
LAYOUTS = ("original", "hf-mxfp4", "hf-bf16")


def gold(name: str) -> dict[str, torch.Tensor]:
    return load_file(CHECKPOINTS / name / "gold_logits.safetensors")


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def logits(name: str, layout: str, **options: object) -> torch.Tensor:
    model = GptOss.from_checkpoint(CHECKPOINTS / name / layout, **options)  # type: ignore[arg-type]
    return model(gold(name)["input_ids"][None])[0]


@pytest.mark.parametrize("experts", ["oracle", "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_within_1e5_of_the_fp64_truth(name: str, layout: str, experts: str) -> None:
    got, want = logits(name, layout, experts=experts), gold(name)["logits_f64"]
    assert relative(got, want) < 1e-5
    assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_triton_experts_are_within_1e5_of_the_truth() -> None:
    """In the interpreter without a GPU (conftest.py), so on a few tokens only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, n = gold("tiny"), 2
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4", device=device, experts="triton")
    assert relative(model(data["input_ids"][None, :n])[0].cpu(), data["logits_f64"][:n]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_layouts_give_bit_identical_logits_on_the_oracle_path(name: str) -> None:
    first, *others = (logits(name, layout, experts="oracle") for layout in LAYOUTS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_fp64_is_the_truth_and_routes_as_it_does(name: str) -> None:
    data = gold(name)
    model, taps = GptOss.from_checkpoint(CHECKPOINTS / name / "original", dtype=torch.float64), Taps()
    got = model(data["input_ids"][None], taps=taps)[0]
    assert relative(got, data["logits_f64"]) < 5e-8  # the file holds float32
    for layer, experts in enumerate(data.get("router_idx", ())):
        assert torch.equal(taps.experts[layer][0], experts)


@pytest.mark.parametrize("experts", ["oracle", "auto"])
@pytest.mark.parametrize(("name", "oracle"), [("tiny", "openai_torch_bf16"), ("tiny-margin", "openai_bf16")])
def test_bf16_error_is_at_most_1_2_of_openais_own(name: str, oracle: str, experts: str) -> None:
    data = gold(name)
    got = relative(logits(name, "original", dtype=torch.bfloat16, experts=experts), data["logits_f64"])
    assert got <= 1.2 * relative(data[oracle], data["logits_f64"])


@pytest.mark.parametrize("chunks", [[1] * 48, [7, 11, 13, 17], [47, 1], [1, 47], [9] * 5 + [3]])
def test_prefill_in_chunks_equals_one_piece(chunks: list[int]) -> None:
    ids = gold("tiny")["input_ids"][None]
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4", dtype=torch.float64)
    cache = model.new_cache()
    parts = [model(part, cache=cache) for part in ids.split(chunks, 1)]
    assert relative(torch.cat(parts, 1), model(ids)) < 1e-13


def test_ragged_rows_equal_single_rows_in_prefill_and_decode() -> None:
    ids = gold("tiny")["input_ids"]
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4", dtype=torch.float64)
    whole, lengths = model(ids[None])[0], [40, 20, 5]
    batch = torch.zeros(3, 40, dtype=torch.int64)
    positions = torch.full((3, 40), -1)
    for row, n in enumerate(lengths):
        batch[row, 40 - n :], positions[row, 40 - n :] = ids[:n], torch.arange(n)
    cache = model.new_cache()
    got = model(batch, cache=cache, positions=positions)
    for row, n in enumerate(lengths):
        assert relative(got[row, 40 - n :], whole[:n]) < 1e-13
    for step in range(4):
        where = torch.tensor([[n + step] for n in lengths])
        got = model(ids[where[:, 0]][:, None], cache=cache, positions=where)
        for row, n in enumerate(lengths):
            assert relative(got[row, 0], whole[n + step]) < 1e-13


def test_a_sliding_layers_cache_keeps_its_window_and_a_full_ones_everything() -> None:
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4")
    cache = model.new_cache()
    model(gold("tiny")["input_ids"][None], cache=cache)
    assert [len(c) for c in cache] == [7, 48, 7, 48]


def test_attention_by_definition_at_the_windows_edge() -> None:
    rng = torch.Generator().manual_seed(1)
    t, n, n_kv, hd, window = 11, 6, 2, 4, 3
    q, k, v = (torch.randn(1, t, heads, hd, generator=rng, dtype=torch.float64) for heads in (n, n_kv, n_kv))
    sinks, pos = torch.randn(n, generator=rng, dtype=torch.float64), torch.arange(t)[None]
    got = attend(q, k, v, sinks, pos, pos, window).view(t, n, hd)
    for query in range(t):
        for head in range(n):
            seen = range(max(0, query - window + 1), query + 1)
            scores = torch.stack([q[0, query, head] @ k[0, s, head // 3] / 2 for s in seen] + [sinks[head]]).softmax(0)
            want = sum(weight * v[0, s, head // 3] for weight, s in zip(scores, seen, strict=False))
            torch.testing.assert_close(got[query, head], want)


def test_yarn_frequencies_are_the_published_ones() -> None:
    inverse = yarn_inverse_frequencies(GPT_OSS_20B)
    want = {
        0: 1.0,
        8: 5.081327e-02,
        9: 3.170570e-02,
        12: 6.794959e-03,
        16: 4.564839e-04,
        17: 1.293187e-04,
        31: 3.023511e-07,
    }
    for pair, value in want.items():
        assert float(inverse[pair]) == pytest.approx(value, rel=1e-6)
    rounded = yarn_inverse_frequencies(dataclasses.replace(GPT_OSS_20B, yarn_truncate=True))
    assert float(rounded[17] / inverse[17]) == pytest.approx(1.763, abs=1e-3)


CHANGES = {
    "eps": {"rms_norm_eps": 1e-2},
    "limit": {"swiglu_limit": 0.7},
    "alpha": {"swiglu_alpha": 0.9},
    "window": {"sliding_window": 5},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    "topk": {"num_experts_per_tok": 2, "experts_per_token": 2},
    "truncate": {"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}},
    "betas": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "original_max_position_embeddings": 2048,
            "truncate": False,
        }
    },
    "attention_factor": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
            "attention_factor": 1.1,
        }
    },
}


@pytest.mark.backend("transformers")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_config_is_obeyed_as_transformers_obeys_it(change: str, tmp_path: Path) -> None:
    from transformers import GptOssForCausalLM

    shutil.copytree(CHECKPOINTS / "tiny-margin" / "hf-bf16", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | CHANGES[change]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = gold("tiny-margin")["input_ids"][None]
    theirs = GptOssForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        want = theirs(ids).logits
    assert relative(GptOss.from_checkpoint(tmp_path)(ids), want) < 5e-6
    assert relative(gold("tiny-margin")["logits_f64"], want[0]) > 1e-4  # the change is felt


def test_forcing_the_chosen_experts_changes_nothing_and_others_do() -> None:
    ids = gold("tiny")["input_ids"][None]
    model, taps = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4"), Taps()
    free = model(ids, taps=taps)
    assert [tuple(t.shape) for t in (taps.hidden[0], taps.router_scores[0], taps.experts[0])] == [
        (1, 48, 96),
        (1, 48, 8),
        (1, 48, 4),
    ]
    assert len(taps.hidden) == 4
    assert torch.equal(model(ids, taps=Taps(forced=taps.experts)), free)
    others = [(experts + 1) % 8 for experts in taps.experts]
    assert relative(model(ids, taps=Taps(forced=others)), free) > 0.1


def test_decoding_in_torch_equals_the_codec_for_every_code_and_scale() -> None:
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.tile(codes | (codes[::-1] << 4), (255, 1, 1))
    scales = np.arange(255, dtype=np.uint8)[:, None]
    for dtype, theirs in ((torch.float32, np.float32), (torch.float64, np.float64)):
        got = decode(torch.from_numpy(blocks), torch.from_numpy(scales), dtype)
        want = mxfp4.decode(blocks, scales, np.float32).astype(theirs)
        finite = np.isfinite(want)
        assert np.array_equal(got.numpy()[finite], want[finite])


@pytest.mark.parametrize(
    ("ids", "options", "line"),
    [
        ([[320]], {}, "outside the vocabulary (expected 0..319, got 320)"),
        ([[-1]], {}, "outside the vocabulary"),
        ([1, 2], {}, r"shape \[B, T\]"),
        ([[]], {}, "not empty"),
        ([[True]], {}, "int64"),
        ([[1, 2]], {"positions": torch.tensor([[0]])}, "shape of input_ids"),
        ([[1, 2]], {"positions": torch.tensor([[5, 4]])}, "positions must ascend"),
        ([[1]], {"positions": torch.tensor([[131072]])}, "longer than the context"),
    ],
)
def test_bad_arguments_are_named(ids: list[list[int]], options: dict[str, torch.Tensor], line: str) -> None:
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4")
    with pytest.raises(UsageError, match=line.replace("(", r"\(").replace(")", r"\)")):
        model(torch.tensor(ids), **options)


@pytest.mark.parametrize("experts", ["oracle", "auto"])
def test_a_scale_of_255_is_refused_with_the_tensors_name(experts: str, tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "tiny" / "hf-mxfp4", tmp_path, dirs_exist_ok=True)
    source = open_checkpoint(tmp_path).tensors["layers.2.experts.down.weight"].sources[1]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(source.offset + 5)
        file.write(b"\xff")
    with pytest.raises(BadInput, match=r"model\.safetensors: model\.layers\.2\.mlp\.experts\.down_proj_scales: .*255"):
        GptOss.from_checkpoint(tmp_path, experts=experts)


def test_a_mode_that_cannot_serve_is_refused() -> None:
    for layout, options in (("hf-bf16", {"experts": "q24"}), ("hf-mxfp4", {"experts": "q16", "dtype": torch.float64})):
        with pytest.raises(UsageError, match="needs MXFP4 weights"):
            GptOss.from_checkpoint(CHECKPOINTS / "tiny" / layout, **options)


def test_rows_of_different_lengths_in_the_cache_need_positions() -> None:
    model = GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4")
    cache = model.new_cache()
    model(torch.tensor([[1, 2], [0, 2]]), cache=cache, positions=torch.tensor([[0, 1], [-1, 0]]))
    with pytest.raises(UsageError, match="give their positions"):
        model(torch.tensor([[3], [3]]), cache=cache)


def test_dtype_and_experts_mode_are_checked() -> None:
    for options in ({"dtype": torch.float16}, {"experts": "q8"}):
        with pytest.raises(UsageError):
            GptOss.from_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4", **options)


def test_the_models_parameters_see_no_copy_of_the_experts() -> None:
    checkpoint = open_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4")
    blocks, _ = checkpoint.mxfp4("layers.0.experts.gate_up.weight")
    assert blocks.base is not None and not blocks.flags.writeable
