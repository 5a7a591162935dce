"""LoRA adapters in the form that vLLM takes: from every tool's form the same matrices, and in words what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.lora_forms import AT, EXPERTS, RANK, SPOILT, as_unsloth, one_by_one, read, write
from helpers.lora_gold import ADAPTERS, BASE, MADE

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.lora import with_adapters
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.vllm_plugin.lora_reading import ORDER_SWITCH, ServedAdapter, read_adapter

base = open_checkpoint(BASE)


def serve(path: Path) -> ServedAdapter:
    return read_adapter(path, base.config, base)


def expand(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    """What vLLM adds to a module: [out, in], or [E, out, in] of an expert layer, by its loader's reshapes."""
    a, b = (tensors[f"base_model.model.{module}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    if not module.endswith((".experts", ".base_layer")):
        return b @ a
    a, b = a.reshape(EXPERTS, -1, a.shape[1]), b.reshape(len(b), -1, EXPERTS)
    return np.einsum("ore,eri->eoi", b, a)


@pytest.mark.parametrize("name", MADE)
def test_what_vllm_adds_is_what_we_would_merge(name: str) -> None:
    tensors = dict(serve(ADAPTERS / name).tensors())
    deltas = with_adapters(base, [(ADAPTERS / name, 1.0)]).deltas
    assert deltas
    for canonical, delta in deltas.items():
        layer = f"model.layers.{canonical.split('.')[1]}"
        if ".experts." in canonical:
            module = f"{layer}.mlp.experts{'.base_layer' if 'gate_up' in canonical else ''}"
        elif "router" in canonical:
            module = f"{layer}.mlp.router"
        else:
            module = f"{layer}.self_attn.{canonical.split('.')[2]}"
        got = expand(tensors, module)
        wanted = delta.rows(0, int(np.prod(got.shape[:-1]))).reshape(got.shape)
        assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max(), canonical


def test_experts_are_both_there_for_vllm() -> None:
    """Its loader stops at an adapter of only one of the two."""
    tensors = dict(serve(ADAPTERS / "down_alone").tensors())
    a, b = (tensors[f"{AT}.0.mlp.experts.base_layer.lora_{half}.weight"] for half in "AB")
    assert a.shape == (EXPERTS, 96) and b.shape == (128, EXPERTS) and not a.any() and not b.any()


@pytest.mark.parametrize("change", [as_unsloth, one_by_one])
def test_forms_of_one_adapter_are_the_same(change: Callable[..., None], tmp_path: Path) -> None:
    tensors, config = read("experts")
    config |= {"r": RANK}
    change(tensors, config)
    theirs = serve(write(tmp_path / "a", tensors, config))
    ours = serve(ADAPTERS / "experts")
    assert theirs.rank == (RANK if change is as_unsloth else 2 * RANK)
    left, right = dict(ours.tensors()), dict(theirs.tensors())
    assert left.keys() == right.keys()
    for module in {name.removeprefix("base_model.model.").split(".lora_")[0] for name in left}:
        assert np.allclose(expand(left, module), expand(right, module), atol=1e-6), module


def test_a_pickle_is_read_as_vllm_reads_it(tmp_path: Path) -> None:
    import torch

    shutil.copytree(ADAPTERS / "experts", tmp_path / "a")
    tensors, _ = read("experts")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(t) for name, t in tensors.items()}, tmp_path / "a" / "adapter_model.bin")
    left, right = dict(serve(ADAPTERS / "experts").tensors()), dict(serve(tmp_path / "a").tensors())
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_served_is_refused_in_one_line(spoil: Any, tmp_path: Path) -> None:
    tensors, config = read("experts")
    spoil(tensors, config)
    path = write(tmp_path / "a", tensors, config)
    with pytest.raises(BadInput, match=SPOILT[spoil]) as caught:
        serve(path)
    words = str(caught.value)
    assert "\n" not in words and "--lora-order" not in words and str(path) in words


def test_who_made_it_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, config = read("experts")
    del config["peft_version"]
    path = write(tmp_path / "a", tensors, config)
    monkeypatch.setenv(ORDER_SWITCH, "peft")
    left, right = dict(serve(ADAPTERS / "experts").tensors()), dict(serve(path).tensors())
    assert all(np.array_equal(left[name], right[name]) for name in left)
    monkeypatch.setenv(ORDER_SWITCH, "unsloth")
    right = dict(serve(path).tensors())
    assert not all(np.array_equal(left[name], right[name]) for name in left)
    monkeypatch.setenv(ORDER_SWITCH, "mine")
    with pytest.raises(UsageError, match=r"must be one of peft, unsloth"):
        serve(path)


def test_a_table_that_is_the_bases_is_no_change(tmp_path: Path) -> None:
    """PEFT saves the embedding beside an adapter when it takes the vocabulary for resized."""
    import ml_dtypes

    tensors, config = read("attention")
    table = base.array("embedding.weight")
    name = "base_model.model.model.embed_tokens.weight"
    same = write(tmp_path / "same", tensors | {name: np.asarray(table, ml_dtypes.bfloat16)}, config)
    assert dict(serve(same).tensors()).keys() == dict(serve(ADAPTERS / "attention").tensors()).keys()
    other = write(tmp_path / "other", tensors | {name: np.asarray(table, ml_dtypes.bfloat16) * 2}, config)
    with pytest.raises(BadInput, match=r"replaces the whole embedding\.weight"):
        serve(other)


def test_the_gold_names_no_machine() -> None:
    for name in MADE:
        assert json.loads((ADAPTERS / name / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
