"""Checkpoints unlike the published ones that say all that is needed: read; and those of something else: one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_metal import plan_metal
from gptoss_converters.to_mlx import plan_mlx
from helpers.crafted import MODEL, Tensors, copy, read_safetensors, write_safetensors

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.formats.safetensors import INDEX
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import BadInput
from gptoss_adapters.reference.model import GptOss

L1 = "model.layers.1."


def edit(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = read_safetensors(folder / MODEL)
    change(tensors)
    write_safetensors(folder / MODEL, tensors)
    return folder


def configure(folder: Path, **changes: Any) -> Path:
    """Changes keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def assert_equal_to_source(folder: Path, source: str = "tiny-mxfp4", *, base: Path) -> None:
    report = compare(open_checkpoint(copy(base, source)), open_checkpoint(folder))
    assert report.ok and report.counts["BYTES EQUAL"] == len(report.results), report.counts


# Read, since the files say it ----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tiny-mxfp4", "tiny-bf16"])
def test_the_router_may_be_a_layer_inside_a_layer(source: str, tmp_path: Path) -> None:
    folder = edit(copy(tmp_path / "x", source), rename("mlp.router.", "mlp.router.linear."))
    assert_equal_to_source(folder, source, base=tmp_path / "b")


def test_one_layer_may_have_the_other_router(tmp_path: Path) -> None:
    folder = edit(copy(tmp_path / "x"), rename(L1 + "mlp.router.", L1 + "mlp.router.linear."))
    assert_equal_to_source(folder, base=tmp_path / "b")


def test_scales_may_be_called_floats_of_eight_exponent_bits(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name, (dtype, shape, data) in tensors.items():
            tensors[name] = ("F8_E8M0" if name.endswith("_scales") else dtype, shape, data)

    assert_equal_to_source(edit(copy(tmp_path / "x"), change), base=tmp_path / "b")


def shard(folder: Path, *, twice: str | None = None, orphan: str | None = None, other: bool = False) -> Path:
    """Two files and an index: `twice` stands in both (with `other` bytes), `orphan` in one and not in the index."""
    tensors = read_safetensors(folder / MODEL)
    names = list(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    where = {name: file for file, held in files.items() for name in held if name != orphan}
    parts = {file: {name: tensors[name] for name in held} for file, held in files.items()}
    if orphan and orphan not in tensors:
        parts["a.safetensors"][orphan] = ("F32", [2], bytes(8))
    if twice:
        dtype, shape, data = tensors[twice]
        changed = (dtype, shape, bytes([data[0] ^ 1]) + data[1:] if other else data)
        parts["a.safetensors" if twice in files["b.safetensors"] else "b.safetensors"][twice] = changed
    for file, held in parts.items():
        write_safetensors(folder / file, held)
    (folder / MODEL).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("twice", ["model.norm.weight", "lm_head.weight"])
def test_a_tensor_may_stand_in_two_files_if_it_is_the_same(twice: str, tmp_path: Path) -> None:
    folder = shard(copy(tmp_path / "x"), twice=twice)
    assert any(f"{twice} stands in" in line for line in open_checkpoint(folder).oddities)
    assert_equal_to_source(folder, base=tmp_path / "b")
    with pytest.raises(BadInput, match=rf"{twice}: the tensor stands in two files, which differ"):
        open_checkpoint(shard(copy(tmp_path / "y"), twice=twice, other=True))


@pytest.mark.parametrize(
    ("orphan", "words"),
    [("rotary_emb.inv_freq", "no part of the model, and left out"), ("model.norm.weight", "read all the same")],
)
def test_a_tensor_that_the_index_does_not_name_is_said(orphan: str, words: str, tmp_path: Path) -> None:
    folder = shard(copy(tmp_path / "x"), orphan=orphan)
    assert any(orphan in line and words in line for line in open_checkpoint(folder).unheeded)
    assert_equal_to_source(folder, base=tmp_path / "b")


def test_layers_of_two_kinds_are_read_and_written(tmp_path: Path) -> None:
    """One layer in bf16 beside others in MXFP4, as transformers leaves a model that was tuned in part."""
    dense = read_safetensors(copy(tmp_path / "dense", "tiny-bf16") / MODEL)

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(L1 + "mlp.experts") and not name.endswith("_bias")]:
            del tensors[name]
        tensors.update({name: t for name, t in dense.items() if name.startswith(L1 + "mlp.experts")})

    c = open_checkpoint(edit(copy(tmp_path / "x"), change))
    assert c.kind is Kind.HF_MXFP4 and c.expert_encodings() == {"mxfp4", "bf16"}
    packed, bf16 = (open_checkpoint(copy(tmp_path / n, n)) for n in ("tiny-mxfp4", "tiny-bf16"))
    for name in c.tensors:
        right = bf16 if name.startswith("layers.1.experts") else packed
        assert np.array_equal(c.read(name), right.read(name)), name
    for plan in (
        plan_gguf(c, tmp_path / "o.gguf", GgufOptions(tokenizer="none")),
        plan_hf(c, tmp_path / "o", HfOptions()),
    ):
        assert {t.dtype for f in plan.plan.files for t in f.tensors if "experts.gate_up_proj_blocks" in t.name} <= {
            "U8"
        }


# Layers that differ ----------------------------------------------------------------------------


def prune(folder: Path, counts: dict[int, int], **spelled: Any) -> Path:
    """Keeps the first experts of some layers."""

    def change(tensors: Tensors) -> None:
        for layer, keep in counts.items():
            for name, (dtype, shape, data) in tensors.items():
                if name.startswith(f"model.layers.{layer}.mlp."):
                    each = len(data) // shape[0]
                    tensors[name] = (dtype, [keep, *shape[1:]], data[: keep * each])

    return configure(edit(folder, change), **spelled)


def differing(folder: Path) -> Path:
    windows = [4, None, 8, None]
    blocks = [{"num_local_experts": e, "sliding_window": w} for e, w in zip((8, 6, 8, 5), windows, strict=True)]
    puzzle: dict[str, Any] = {"model_type": "gpt_oss_puzzle", "num_local_experts": None, "sliding_window": None}
    return prune(folder, {1: 6, 3: 5}, block_configs=blocks, layer_types=None, **puzzle)


def test_layers_that_differ_are_computed_each_by_its_own(tmp_path: Path) -> None:
    """The same model with all experts, those that are missing kept from being chosen, gives the same logits."""
    c = open_checkpoint(differing(copy(tmp_path / "x")))
    assert [c.tensors[f"layers.{n}.router.weight"].shape[0] for n in range(4)] == [8, 6, 8, 5]

    def forbid(tensors: Tensors) -> None:
        for layer, keep in {1: 6, 3: 5}.items():
            name = f"model.layers.{layer}.mlp.router.bias"
            dtype, shape, data = tensors[name]
            bias = np.frombuffer(data, ml_dtypes.bfloat16).copy()
            bias[keep:] = -1e30
            tensors[name] = (dtype, shape, bias.tobytes())

    whole = edit(copy(tmp_path / "whole"), forbid)
    ids = torch.tensor([[3, 17, 99, 200, 5, 42, 42, 7, 250, 31, 8, 120, 64, 77, 90, 2]])
    model = GptOss.from_checkpoint(open_checkpoint(whole), experts="oracle")
    for n, window in enumerate((4, None, 8, None)):
        model.layers[n].attention.window = window
    pruned = GptOss.from_checkpoint(c, experts="oracle")
    assert torch.equal(pruned(ids), model(ids))
    assert not torch.equal(pruned(ids), GptOss.from_checkpoint(open_checkpoint(whole), experts="oracle")(ids))


def test_layers_that_differ_survive_to_hf_and_are_refused_where_one_number_stands_for_all(tmp_path: Path) -> None:
    c = open_checkpoint(differing(copy(tmp_path / "x")))
    out = plan_hf(c, tmp_path / "o", HfOptions()).plan
    (config,) = (f for f in out.files if f.path.name == "config.json")
    assert json.loads(config.header)["block_configs"][3] == {"num_local_experts": 5, "sliding_window": None}
    for plan in (
        lambda: plan_gguf(c, tmp_path / "o.gguf", GgufOptions(tokenizer="none")),
        lambda: plan_mlx(c, tmp_path / "m", HfOptions(Kind.MLX)),
        lambda: plan_metal(c, tmp_path / "o.bin"),
        lambda: plan_hf(c, tmp_path / "p", HfOptions(Kind.OPENAI)),
    ):
        with pytest.raises(BadInput, match=r"the number of experts differs from layer to layer: .* has one for all"):
            plan()
    windows = dataclasses.replace(c.config, experts_per_layer=())
    with pytest.raises(BadInput, match="the sliding window differs from layer to layer"):
        plan_gguf(dataclasses.replace(c, config=windows), tmp_path / "o.gguf", GgufOptions(tokenizer="none"))


def test_a_list_of_expert_counts_is_read(tmp_path: Path) -> None:
    c = open_checkpoint(prune(copy(tmp_path / "x"), {2: 7}, num_local_experts=[8, 8, 7, 8]))
    assert c.config.experts_per_layer == (8, 8, 7, 8)
    with pytest.raises(BadInput, match=r"another number of experts than the config .*said by a list"):
        open_checkpoint(prune(copy(tmp_path / "y"), {2: 7}))


# Links, indexes, and what is not obeyed ---------------


def test_weights_on_another_disk_are_taken_when_links_are_followed(tmp_path: Path) -> None:
    folder = copy(tmp_path / "x")
    (folder / MODEL).rename(tmp_path / "elsewhere.safetensors")
    (folder / MODEL).symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BadInput, match=r"a link that leaves its folder .*--follow-links"):
        open_checkpoint(folder)
    assert len(open_checkpoint(folder, follow_links=True).tensors) == 71
    with pytest.raises(BadInput, match="leaves its folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_an_index_or_a_config_stands_for_its_folder(name: str, tmp_path: Path) -> None:
    folder = shard(copy(tmp_path / "x"))
    assert open_checkpoint(folder / name).path == folder


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "notes.txt", "chat_template.jinja"])
def test_another_file_without_weights_names_the_folder(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "x")
    (folder / name).write_text("{}")
    with pytest.raises(BadInput, match=f"{name}: is no file of weights .*name the folder"):
        open_checkpoint(folder / name)


def test_what_a_config_says_in_vain_is_said(tmp_path: Path) -> None:
    c = open_checkpoint(configure(copy(tmp_path / "x"), my_key=1, hidden_act="gelu"))
    assert c.unheeded == (
        "config.json: hidden_act gelu is without effect: the experts compute their own clamped SwiGLU",
        "config.json: keys that are not of gpt-oss are without effect here: my_key",
    )
    assert set(c.unheeded) <= set(c.oddities)


# Other models, and other quantisations ---------------

RELATIVES: dict[str, tuple[dict[str, Any], str]] = {
    "privacy filter": (
        {
            "model_type": "openai_privacy_filter",
            "architectures": ["OpenAIPrivacyFilterForTokenClassification"],
        },
        "is OpenAI's privacy filter.*use transformers' OpenAIPrivacyFilter",
    ),
    "EAGLE3 draft": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000},
        "EAGLE draft.*speculative-config",
    ),
    "EAGLE3 draft of NVIDIA": ({"model_type": "llama", "draft_vocab_size": 32000}, "EAGLE draft.*speculative-config"),
    "speculators": (
        {"model_type": "speculator_model", "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"]},
        "draft",
    ),
    "Medusa": ({"architectures": ["GptOssForCausalLMMedusa"]}, "Medusa heads"),
    "classifier": ({"architectures": ["GptOssForSequenceClassification"]}, "is a classifier"),
    "labels tokens": ({"architectures": ["GptOssForTokenClassification"]}, "is a classifier"),
    "puzzle without blocks": ({"model_type": "gpt_oss_puzzle"}, "without block_configs"),
    "another family": ({"model_type": "qwen3_moe"}, "model_type is not one of gpt-oss .*got qwen3_moe"),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_refused_by_name_with_what_to_use(name: str, tmp_path: Path) -> None:
    changes, words = RELATIVES[name]
    with pytest.raises(BadInput, match=words) as e:
        open_checkpoint(configure(copy(tmp_path / "x"), **changes))
    assert "\n" not in str(e.value)


def swap(*endings: str, dtype: str = "I32") -> Callable[[Tensors], None]:
    """Every q_proj weight as a quantiser leaves it: other names, and integers."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("q_proj.weight")]:
            del tensors[name]
            for ending in endings:
                tensors[name.removesuffix(".weight") + ending] = (dtype, [2], bytes(2 * {"I32": 4}.get(dtype, 1)))

    return change


QUANTISED: dict[str, tuple[dict[str, Any] | None, Callable[[Tensors], None], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, swap(".qweight", ".qzeros"), r"gptq \(4-bit\)"),
    "awq": ({"quant_method": "awq", "bits": 4}, swap(".qweight"), r"awq \(4-bit\)"),
    "auto-round": ({"quant_method": "auto-round", "bits": 4}, swap(".qweight"), r"auto-round \(4-bit\)"),
    "fp8": ({"quant_method": "fp8"}, swap(".weight", ".weight_scale_inv", dtype="F8_E4M3"), "by fp8"),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, swap(".weight.absmax"), "by bitsandbytes.*merged to 16 bits"),
    "NVFP4 of ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        swap(".weight", ".weight_scale_2", dtype="U8"),
        r"modelopt \(NVFP4\)",
    ),
    "W4A16": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        swap(".weight_packed", ".weight_shape"),
        r"compressed-tensors \(pack-quantized\)",
    ),
    "NVFP4 of llm-compressor": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        swap(".weight_packed", ".weight_global_scale"),
        r"compressed-tensors \(nvfp4-pack-quantized\)",
    ),
    "torchao": ({"quant_method": "torchao"}, swap(".weight_packed"), "by torchao"),
    "a method of tomorrow": ({"quant_method": "zeta9"}, swap(".zeta"), "by zeta9"),
    "gptq, unsaid": (None, swap(".qweight", ".qzeros", ".g_idx"), "gptq or awq, by its tensors' names"),
    "fp8, unsaid": (None, swap(".weight", ".weight_scale_inv", dtype="F8_E4M3"), "fp8, by its tensors' names"),
    "aqlm, unsaid": (None, swap(".codebooks"), "aqlm, by its tensors' names"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_an_unknown_quantisation_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    stated, change, words = QUANTISED[name]
    folder = configure(edit(copy(tmp_path / "x", "tiny-bf16"), change), quantization_config=stated)
    with pytest.raises(BadInput, match=words) as e:
        open_checkpoint(folder)
    assert "which is not read" in str(e.value) and "16" in str(e.value) and "\n" not in str(e.value)


def test_modelopt_says_its_method_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = configure(edit(copy(tmp_path / "x", "tiny-bf16"), swap(".weight_scale")), quantization_config=None)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    with pytest.raises(BadInput, match=r"quantised by modelopt \(FP8\), which is not read"):
        open_checkpoint(folder)


def test_a_damaged_checkpoint_is_not_called_quantised(tmp_path: Path) -> None:
    """A stale statement over dense tensors, and MXFP4 itself, keep the error about the tensor."""
    stale = configure(copy(tmp_path / "x", "tiny-bf16"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(BadInput, match=r"model\.norm\.weight: the tensor is missing"):
        open_checkpoint(edit(stale, lambda t: t.pop("model.norm.weight")))
    with pytest.raises(BadInput, match=r"model\.norm\.weight: the tensor is missing"):
        open_checkpoint(edit(copy(tmp_path / "y"), lambda t: t.pop("model.norm.weight")))
