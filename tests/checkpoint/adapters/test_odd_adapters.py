"""Adapters that are damaged, odd, or of a method that is no sum: named in one line, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapters import fused, made, rand
from helpers.foreign_adapters import (
    HF,
    INNER,
    Arrays,
    E,
    H,
    V,
    gguf_tensors,
    made_by_llama_cpp,
    made_by_mlx,
    mlx_tensors,
    peft_tensors,
    split,
)
from helpers.peft_cases import TINY, write_tiny

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.lora import with_adapters
from gptoss_adapters.errors import BadInput


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("odd") / "base")


def merged(base: Path, *adapters: Path) -> Checkpoint:
    return with_adapters(open_checkpoint(base), [(path, 1.0) for path in adapters])


Change = Callable[[Path, Path], Path]
BAD_FILES: dict[str, tuple[Change, str]] = {
    "a missing shard": (
        lambda b, t: _without(
            split(made(b, t / "a", peft_tensors()), False), "adapter_model-00001-of-00002.safetensors"
        ),
        "a shard of the adapter is missing",
    ),
    "no adapter at all": (lambda b, t: _folder(t / "empty"), "holds no adapter.*adapter_config.json"),
    "a config alone": (
        lambda b, t: _without(made(b, t / "a", peft_tensors()), "adapter_model.safetensors"),
        "holds no adapter.*adapter_config.json alone",
    ),
    "several in subfolders": (
        lambda b, t: _two_runs(b, t / "run"),
        "which adapter is meant is unclear.*a, b.*name one",
    ),
    "a model": (lambda b, t: b, "holds a model, not an adapter.*--lora names an adapter"),
    "mlx DoRA": (lambda b, t: made_by_mlx(t / "a", mlx_tensors(), fine_tune_type="dora"), "DoRA.*mlx_lm.fuse"),
    "mlx full": (lambda b, t: made_by_mlx(t / "a", mlx_tensors(), fine_tune_type="full"), "whole layers.*mlx_lm.fuse"),
    "mlx rank": (lambda b, t: made_by_mlx(t / "a", mlx_tensors(), rank=4), r"rank is not the one.*expected 4"),
    "mlx scale": (
        lambda b, t: made_by_mlx(t / "a", mlx_tensors(), lora_parameters={"rank": 2}),
        "lora_parameters.scale must be a number",
    ),
    "mlx alpha": (
        lambda b, t: made_by_mlx(t / "a", mlx_tensors(), lora_parameters={"rank": 2, "scale": 1, "alpha": 3}),
        "holds alpha, which mlx-lm no longer knows",
    ),
    "mlx magnitudes": (
        lambda b, t: made_by_mlx(t / "a", {"model.layers.0.self_attn.q_proj.m": rand(64)}),
        "DoRA's magnitudes",
    ),
    "mlx half": (
        lambda b, t: made_by_mlx(t / "a", {"lm_head.lora_a": rand(H, 2)}),
        "other half of the pair is missing.*lora_a and lora_b",
    ),
    "mlx shape": (
        lambda b, t: made_by_mlx(t / "a", {"lm_head.lora_a": rand(H + 32, 2), "lm_head.lora_b": rand(2, V)}),
        "shapes do not fit the base",
    ),
    "gguf of another model": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", gguf_tensors(), arch="llama"),
        "general.architecture.*expected gpt-oss, got llama",
    ),
    "gguf control vector": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", gguf_tensors(), adapter_type="control_vector"),
        "adapter.type.*expected lora, got control_vector",
    ),
    "a GGUF model": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", gguf_tensors(), type="model"),
        "general.type.*--lora names an adapter",
    ),
    "gguf aLoRA": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", gguf_tensors(), adapter__alora__invocation_tokens=[1, 2]),
        "aLoRA",
    ),
    "gguf unknown key": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", gguf_tensors(), adapter__lora__alphas=[1.0]),
        "adapter.lora.alphas is unknown",
    ),
    "gguf tensor": (
        lambda b, t: made_by_llama_cpp(t / "a.gguf", {"blk.0.attn_q.weight": rand(2, H)}),
        "not a half of a pair",
    ),
    "gguf layer": (
        lambda b, t: made_by_llama_cpp(
            t / "a.gguf", {"blk.9.attn_q.weight.lora_a": rand(2, H), "blk.9.attn_q.weight.lora_b": rand(64, 2)}
        ),
        "no place in this model.*another base",
    ),
    "gguf NaN": (
        lambda b, t: made_by_llama_cpp(
            t / "a.gguf",
            {"output.weight.lora_a": rand(2, H) * np.float32(np.nan), "output.weight.lora_b": rand(V, 2)},
        ),
        "NaN or Inf",
    ),
}


def _two_runs(base: Path, folder: Path) -> Path:
    for name in ("a", "b"):
        made(base, folder / name, peft_tensors())
    return folder


def _without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", BAD_FILES)
def test_odd_files_are_named_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    change, said = BAD_FILES[name]
    with pytest.raises(BadInput, match=said) as e:
        merged(base, change(base, tmp_path))
    assert "\n" not in str(e.value) and str(e.value).startswith("/")


# The config -----------------------------------------------------------------------------------------------------------

BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa: PiSSA changed the base"),
    "pissa fast": ({"init_lora_weights": "pissa_niter_16"}, "PiSSA changed the base"),
    "olora": ({"init_lora_weights": "OLoRA"}, "OLoRA changed the base"),
    "corda": ({"init_lora_weights": "corda"}, "CorDA changed the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "LoftQ changed the base"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "LoRA-GA changed the base"),
    "unknown start": ({"init_lora_weights": "fisher"}, "a start that we do not know.*fisher"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    "old aLoRA": ({"invocation_string": "go"}, "aLoRA"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "KaSA": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "VeLoRA": ({"velora_config": {"a": 1}}, "VeLoRA"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    "MonteCLoRA": ({"monteclora_config": {"a": 1}}, "MonteCLoRA"),
    "Arrow": ({"arrow_config": {"top_k": 1}}, "Arrow"),
    "QALoRA": ({"use_qalora": True}, "QALoRA"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "Megatron": ({"megatron_config": {"tp": 2}}, "Megatron"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "unknown key": ({"use_tomorrows_lora": True}, "use_tomorrows_lora is a key that we do not know"),
    "VeRA": ({"peft_type": "VERA"}, "not LoRA, but VeRA.*got VERA"),
    "LoHa": ({"peft_type": "LOHA"}, "not LoRA, but LoHa"),
    "unknown method": ({"peft_type": "TOMORROW"}, "not LoRA, but unknown to us"),
    "rank_pattern": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern must be an object of positive integers"),
    "alpha_pattern": ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must be an object of numbers"),
    "no pattern": ({"alpha_pattern": {"(q_proj": 2}}, "alpha_pattern holds what is not a pattern"),
    "endless pattern": ({"alpha_pattern": {r"((\w|\w\w|.)+)+m": 2}}, "takes too long to match"),
    "rslora": ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    "not targeted": ({"target_modules": ["k_proj", "o_proj"]}, "PEFT would load the adapter without the tensor"),
    "excluded": ({"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["q_proj"]}, "without the tensor"),
    "other layers": ({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0]}, "without the tensor"),
    "saved whole too": ({"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["o_proj"]}, "without the tensor"),
    "target_modules": ({"target_modules": 3}, "target_modules must be a list of names or a pattern"),
    "tokens": ({"trainable_token_indices": [1, 1]}, "trainable_token_indices must be a list of different token ids"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_odd_configs_are_named_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    config, said = BAD_CONFIGS[name]
    adapter = made(base, tmp_path / "a", peft_tensors(), **config)
    with pytest.raises(BadInput, match=said) as e:
        merged(base, adapter)
    assert str(e.value).startswith(str(adapter)) and "\n" not in str(e.value)


ODD_TENSORS: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "rows without indices": (
        {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": rand(2, H)},
        {},
        "do not fit trainable_token_indices",
    ),
    "a token outside": (
        {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": rand(1, H)},
        {"trainable_token_indices": [V]},
        "a trained token is not in the vocabulary",
    ),
    "one table resized": (
        {"base_model.model.lm_head.weight": rand(V + 8, H)},
        {},
        "resizes the vocabulary of one of embedding and head only",
    ),
    "a module of another width": (
        {f"{HF}.0.mlp.router.weight": rand(E, H + 32)},
        {},
        "the saved module does not fit the base",
    ),
    "qkv of another size": (
        {
            f"{HF}.0.self_attn.qkv_proj.lora_A.weight": rand(2, H),
            f"{HF}.0.self_attn.qkv_proj.lora_B.weight": rand(TINY.q_rows + 2 * TINY.kv_rows + 8, 2),
        },
        {},
        "shapes do not fit the base",
    ),
    "experts of another number": (
        {
            f"{HF}.0.mlp.experts.w2.lora_A.weight": rand(E + 1, 2, INNER),
            f"{HF}.0.mlp.experts.w2.lora_B.weight": rand(E + 1, H, 2),
        },
        {},
        "shapes do not fit the base",
    ),
    "nothing says which parameter": (
        {
            f"{HF}.0.mlp.experts.lora_A.weight": rand(E * 2, H),
            f"{HF}.0.mlp.experts.lora_B.weight": rand(2 * INNER, E * 2),
        },
        {},
        "which of the experts' parameters it is for is not said",
    ),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_odd_tensors_are_named_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    tensors, config, said = ODD_TENSORS[name]
    with pytest.raises(BadInput, match=said) as e:
        merged(base, made(base, tmp_path / "a", tensors, **config))
    assert str(e.value).startswith(str(tmp_path)) and "\n" not in str(e.value)


def test_two_adapters_do_not_contradict_each_other(base: Path, tmp_path: Path) -> None:
    whole = made(base, tmp_path / "w", {f"{HF}.0.self_attn.q_proj.weight": rand(TINY.q_rows, H)})
    pair = made(base, tmp_path / "p", peft_tensors())
    for order in ((whole, pair), (pair, whole)):
        with pytest.raises(BadInput, match=r"saved whole.*earlier adapter.*merge one of them first"):
            merged(base, *order)


def test_a_harmless_key_is_harmless(base: Path, tmp_path: Path) -> None:
    plain = made(base, tmp_path / "p", peft_tensors())
    extra = {"lora_dropout": 0.1, "megatron_core": "x", "eva_config": {"rho": 2.0}, "qalora_group_size": 8}
    noisy = made(base, tmp_path / "n", peft_tensors(), unknown_but_empty=None, **extra)
    name = "layers.1.o_proj.weight"
    assert np.array_equal(merged(base, plain).array(name), merged(base, noisy).array(name))


def test_fused_adapters_of_the_odd_shape_do_not_fit_here(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="number of experts does not fit"):
        merged(base, made(base, tmp_path / "a", fused()))
