"""Adapters of mlx-lm, Tinker and llama.cpp, in shards and in subfolders: by their formulas, and by mlx-lm itself."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.adapters import made, rand
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
    return write_tiny(tmp_path_factory.mktemp("others") / "base")


def merged(base: Path, adapter: Path, scale: float = 1.0) -> Checkpoint:
    return with_adapters(open_checkpoint(base), [(adapter, scale)])


def delta(base: Path, adapter: Path, name: str, scale: float = 1.0) -> np.ndarray:
    c = merged(base, adapter, scale)
    shape = c.tensors[name].shape
    return c.deltas[name].rows(0, int(np.prod(shape[:-1]))).reshape(shape)


# mlx-lm ---------------------------------------------------------------------------------------------------------------


def test_mlx_adapters_merge_as_mlx_fuses_them(base: Path, tmp_path: Path) -> None:
    """mlx-lm's own model, its own loader of adapters, its own fuse, in float32."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.models import gpt_oss
    from mlx_lm.tuner.utils import load_adapters

    tensors = {k: v * 0.1 for k, v in mlx_tensors().items()}
    keys = [f"{m}" for m in ("self_attn.q_proj", "mlp.router", "mlp.experts.gate_proj", "mlp.experts.up_proj")]
    keys += ["mlp.experts.down_proj", "model.embed_tokens", "lm_head"]
    parameters = {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": keys}
    adapter = made_by_mlx(tmp_path / "a", tensors, num_layers=1, lora_parameters=parameters)
    plain = open_checkpoint(base)
    raw = json.loads((base / "config.json").read_text())
    model = gpt_oss.Model(gpt_oss.ModelArgs.from_dict(raw))
    weights = {name: mx.array(plain.read(canonical)) for name, canonical in _mlx_names(plain).items()}
    weights |= {
        name: mx.array(np.ascontiguousarray(plain.read(canonical)[:, start::2]))
        for name, (canonical, start) in _mlx_halves(plain).items()
    }
    model.load_weights([(name, value) for name, value in weights.items()])
    load_adapters(model, str(adapter))
    fused_layers = [(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]
    assert len(fused_layers) == 7
    model.update_modules(tree_unflatten(fused_layers))
    theirs = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    ours = merged(base, adapter)
    for name, canonical in _mlx_names(plain).items():
        _assert_one_step(ours.read(canonical), theirs[name], name)
    for name, (canonical, start) in _mlx_halves(plain).items():
        _assert_one_step(ours.read(canonical)[:, start::2], theirs[name], name)


def _assert_one_step(got: np.ndarray, wanted: np.ndarray, name: str) -> None:
    wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert got.shape == wanted.shape, name
    assert np.all(np.abs(got - wanted) <= np.abs(wanted) * 2.0**-7 + 1e-6), name


def _mlx_names(c: Checkpoint) -> dict[str, str]:
    from gptoss_adapters.checkpoint import layouts

    parts = layouts.parts("hf-bf16", c.config)
    dense = {p[0].name: name for name, p in parts.items() if ".experts." not in name}
    for n in range(c.config.num_hidden_layers):
        for what in ("weight", "bias"):
            dense[f"model.layers.{n}.mlp.experts.down_proj.{what}"] = f"layers.{n}.experts.down.{what}"
    return dense


def _mlx_halves(c: Checkpoint) -> dict[str, tuple[str, int]]:
    return {
        f"model.layers.{n}.mlp.experts.{half}_proj.{what}": (f"layers.{n}.experts.gate_up.{what}", start)
        for n in range(c.config.num_hidden_layers)
        for what in ("weight", "bias")
        for start, half in enumerate(("gate", "up"))
    }


# Tinker ---------------------------------------------------------------------------------------------------------------


def tinker_tensors(shared: bool, rank: int = 2) -> Arrays:
    """Raw: an axis of experts, of length 1 in the half that they share; the head is unembed_tokens."""
    one = 1 if shared else E
    at = f"{HF}.0.mlp.experts"
    return {
        f"{at}.w1.lora_A.weight": rand(one, rank, H),
        f"{at}.w1.lora_B.weight": rand(E, INNER, rank, seed=1),
        f"{at}.w3.lora_A.weight": rand(one, rank, H, seed=2),
        f"{at}.w3.lora_B.weight": rand(E, INNER, rank, seed=3),
        f"{at}.w2.lora_A.weight": rand(E, rank, INNER, seed=4),
        f"{at}.w2.lora_B.weight": rand(one, H, rank, seed=5),
        "base_model.model.model.unembed_tokens.lora_A.weight": rand(4, H, seed=6),
        "base_model.model.model.unembed_tokens.lora_B.weight": rand(V, 4, seed=7),
        f"{HF}.1.attn.q_proj.lora_A.weight": rand(4, H, seed=8),
        f"{HF}.1.attn.q_proj.lora_B.weight": rand(TINY.q_rows, 4, seed=9),
    }


@pytest.mark.parametrize("shared", [False, True])
def test_tinkers_raw_adapters_by_its_formula(shared: bool, base: Path, tmp_path: Path) -> None:
    """Its merge divides by the config's r whatever the rank of an expert's pair is."""
    t = tinker_tensors(shared)
    adapter = made(base, tmp_path / "a", t, r=4, lora_alpha=32, peft_version=None, target_modules="all-linear")
    at = f"{HF}.0.mlp.experts"
    for which, start in (("w1", 0), ("w3", 1)):
        a, b = t[f"{at}.{which}.lora_A.weight"], t[f"{at}.{which}.lora_B.weight"]
        wanted = 8 * (b @ np.broadcast_to(a, (E, *a.shape[1:])))
        assert np.allclose(delta(base, adapter, "layers.0.experts.gate_up.weight")[:, start::2], wanted, atol=1e-3)
    a, b = t[f"{at}.w2.lora_A.weight"], t[f"{at}.w2.lora_B.weight"]
    assert np.allclose(delta(base, adapter, "layers.0.experts.down.weight"), 8 * (b @ a), atol=1e-3)
    for name, module in (("unembedding.weight", "base_model.model.model.unembed_tokens"),):
        wanted = 8 * t[f"{module}.lora_B.weight"] @ t[f"{module}.lora_A.weight"]
        assert np.allclose(delta(base, adapter, name), wanted, atol=1e-3)


def test_fused_qkv_and_experts_turned_round(base: Path, tmp_path: Path) -> None:
    """One pair for q, k and v; experts as [E, in, r] and [E, r, out]."""
    rows = TINY.q_rows + 2 * TINY.kv_rows
    t = {
        f"{HF}.0.self_attn.qkv_proj.lora_A.weight": rand(2, H),
        f"{HF}.0.self_attn.qkv_proj.lora_B.weight": rand(rows, 2, seed=1),
        f"{HF}.0.mlp.experts.gate_up_proj.lora_A.weight": rand(E, H, 2, seed=2),
        f"{HF}.0.mlp.experts.gate_up_proj.lora_B.weight": rand(E, 2, 2 * INNER, seed=3),
    }
    adapter = made(base, tmp_path / "a", t)
    whole = 2 * t[f"{HF}.0.self_attn.qkv_proj.lora_B.weight"] @ t[f"{HF}.0.self_attn.qkv_proj.lora_A.weight"]
    got = np.concatenate([delta(base, adapter, f"layers.0.{which}_proj.weight") for which in "qkv"])
    assert np.allclose(got, whole, atol=1e-5)
    a, b = (t[f"{HF}.0.mlp.experts.gate_up_proj.lora_{x}.weight"] for x in "AB")
    wanted = 2 * (a @ b).swapaxes(1, 2)
    assert np.allclose(delta(base, adapter, "layers.0.experts.gate_up.weight"), wanted, atol=1e-5)


# llama.cpp ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [8.0, None])
def test_gguf_adapters_by_llama_cpps_formula(alpha: float | None, base: Path, tmp_path: Path) -> None:
    t = gguf_tensors()
    adapter = made_by_llama_cpp(tmp_path / "a.gguf", t, alpha)
    factor = 4.0 if alpha else 1.0
    names = {
        "blk.1.attn_q.weight": "layers.1.q_proj.weight",
        "blk.0.attn_output.weight": "layers.0.o_proj.weight",
        "blk.0.ffn_gate_inp.weight": "layers.0.router.weight",
        "blk.0.ffn_down_exps.weight": "layers.0.experts.down.weight",
        "output.weight": "unembedding.weight",
    }
    for stored, canonical in names.items():
        a, b = (t[f"{stored}.lora_{x}"].astype(np.float32) for x in "ab")
        assert np.allclose(delta(base, adapter, canonical), factor * (b @ a), atol=1e-3), stored
    a, b = (t[f"blk.0.ffn_up_exps.weight.lora_{x}"] for x in "ab")
    gate_up = delta(base, adapter, "layers.0.experts.gate_up.weight")
    assert np.allclose(gate_up[:, 1::2], factor * (b @ a), atol=1e-3) and not gate_up[:, ::2].any()
    a, b = (t[f"token_embd.weight.lora_{x}"] for x in "ab")
    assert np.allclose(delta(base, adapter, "embedding.weight"), factor * (a @ b.T), atol=1e-3)


# Files ----------------------------------------------------------------------------------------------------------------


def test_shards_subfolders_and_named_files_are_the_same_adapter(base: Path, tmp_path: Path) -> None:
    whole = made(base, tmp_path / "whole", peft_tensors())
    made(base, tmp_path / "run/checkpoint-10", peft_tensors())
    ways = [
        split(made(base, tmp_path / "sharded", peft_tensors()), indexed=False),
        split(made(base, tmp_path / "indexed", peft_tensors()), indexed=True),
        tmp_path / "run",
        whole / "adapter_model.safetensors",
        whole / "adapter_config.json",
    ]
    wanted = delta(base, whole, "layers.1.o_proj.weight")
    for way in ways:
        assert np.array_equal(delta(base, way, "layers.1.o_proj.weight"), wanted), way


def test_norms_of_a_gguf_adapter_are_named(base: Path, tmp_path: Path) -> None:
    adapter = made_by_llama_cpp(tmp_path / "a.gguf", gguf_tensors() | {"blk.0.attn_norm.weight": rand(H)})
    assert any("1 norms are left as they were" in word for word in merged(base, adapter).adapters)


def test_an_adapter_as_the_model_says_lora(base: Path, tmp_path: Path) -> None:
    folder = made(base, tmp_path / "a", peft_tensors())
    single = made_by_llama_cpp(tmp_path / "a.gguf", gguf_tensors())
    for path in (folder, folder / "adapter_model.safetensors", folder / "adapter_config.json", single):
        with pytest.raises(BadInput, match=r"is a LoRA adapter, not a model.*by --lora"):
            open_checkpoint(path)


def test_a_template_of_its_own_is_named(base: Path, tmp_path: Path) -> None:
    """Trainers put the tokenizer's files beside the adapter; the base's are taken."""
    adapter = made(base, tmp_path / "a", peft_tensors())
    assert len(merged(base, adapter).adapters) == 1
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    words = merged(base, adapter).adapters
    assert len(words) == 2 and "not the base's template, and left out: --tokenizer" in words[1]
