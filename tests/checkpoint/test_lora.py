"""Adapters merged by us against PEFT's own merge, against the formula, and what must be refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from gptoss_converters.to_hf import HfOptions, plan_hf
from helpers.adapters import AT, fused, made, rand
from helpers.kinds import write_kind
from safetensors.numpy import load_file

from gptoss_adapters.checkpoint import layouts, open_checkpoint
from gptoss_adapters.checkpoint.lora import parse_adapter, with_adapters
from gptoss_adapters.checkpoint.storage import SWAPPED
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput, UsageError

RANK = 3
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "base"
    write(plan_new("odd-shape", folder, kind="hf-bf16"), sync=False, read_back=False)
    return folder


def trained(base: Path, out: Path, **options: Any) -> Any:
    """A PEFT model over the base whose adapter holds random numbers; saved to `out`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(
        model, LoraConfig(**{"r": RANK, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "o_proj"], **options})
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    peft.save_pretrained(out)
    return peft


def merged_by_peft(peft: Any) -> dict[str, np.ndarray]:
    return {name: t.float().numpy() for name, t in peft.merge_and_unload().state_dict().items()}


def assert_like_peft(base: Path, adapter: Path, theirs: dict[str, np.ndarray]) -> int:
    """Every tensor: ours is theirs (float32) rounded to bf16, at most one step away where both sit at a midpoint.
    How many changed.
    """
    ours, before = with_adapters(open_checkpoint(base), [(adapter, 1.0)]), open_checkpoint(base)
    changed = 0
    for name, parts in layouts.parts("hf-bf16", ours.config).items():
        wanted = theirs[parts[0].name]
        wanted = wanted.swapaxes(1, 2) if parts[0].storage == SWAPPED else wanted
        got, exact = ours.read(name, np.float32), wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
        if ours.tensors[name].encoding == "f32":  # a module that was saved whole, in float32
            assert np.allclose(got, wanted, rtol=1e-6, atol=1e-6), name
            exact = wanted = got
        different = got != exact
        assert different.mean() < 2e-3, name  # float32 sums in another order
        assert np.all(np.abs(got - wanted)[different] <= np.abs(wanted)[different] * 2.0**-8 * 1.001 + 2e-7)
        if not np.array_equal(got, before.read(name, np.float32)):
            changed += 1
        for e in (0, 2) if len(ours.tensors[name].shape) == 3 else ():
            assert np.array_equal(ours.read(name, np.float32, expert=e), got[e])
    return changed


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({}, 9),
    "attention and both expert tensors": ({"target_parameters": FUSED}, 15),
    "experts in the other order": ({"target_parameters": FUSED[::-1], "target_modules": []}, 6),
    "down alone": ({"target_parameters": FUSED[1:], "target_modules": []}, 3),
    "gate_up alone": ({"target_parameters": FUSED[:1], "target_modules": []}, 3),
    "router": ({"target_parameters": ["mlp.router.weight"], "target_modules": []}, 3),
    "rank and alpha by module, rslora": (
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r".*1\.self_attn\.v_proj": 11}, "use_rslora": True},
        9,
    ),
    "head and embedding": ({"target_modules": ["lm_head", "embed_tokens", "k_proj"]}, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_peft(name: str, base: Path, tmp_path: Path) -> None:
    options, changes = CASES[name]
    theirs = merged_by_peft(trained(base, tmp_path / "a", **options))
    assert assert_like_peft(base, tmp_path / "a", theirs) == changes


def test_modules_saved_whole_replace_the_base(base: Path, tmp_path: Path) -> None:
    peft = trained(base, tmp_path / "a", modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1)
    peft.save_pretrained(tmp_path / "a")
    assert assert_like_peft(base, tmp_path / "a", merged_by_peft(peft)) == 10


def delta_of(base: Path, adapter: Path, name: str, order: str | None = None) -> np.ndarray:
    """The float32 that is added, exactly as it is."""
    rows = with_adapters(open_checkpoint(base), [(adapter, 1.0)], order).deltas[name]
    shape = open_checkpoint(base).tensors[name].shape
    return rows.rows(0, int(np.prod(shape[:-1]))).reshape(shape)


def test_both_column_orders_by_the_formula(base: Path, tmp_path: Path) -> None:
    t = fused()
    a, b = t[f"{AT}.base_layer.lora_A.weight"].reshape(5, 2, 160), t[f"{AT}.base_layer.lora_B.weight"]
    peft = np.einsum("ore,eri->eoi", b.reshape(192, 2, 5), a) * 2
    unsloth = np.einsum("oer,eri->eoi", b.reshape(192, 5, 2), a) * 2
    name = "layers.1.experts.gate_up.weight"
    assert np.allclose(delta_of(base, made(base, tmp_path / "p", t), name), peft, atol=1e-5)
    assert np.allclose(
        delta_of(base, made(base, tmp_path / "u", t, auto_mapping={"unsloth_fixed": True}), name), unsloth, atol=1e-5
    )
    silent = made(base, tmp_path / "s", t, peft_version=None)
    for order, wanted in (("peft", peft), ("unsloth", unsloth)):
        assert np.allclose(delta_of(base, silent, name, order), wanted, atol=1e-5)
    with pytest.raises(BadInput, match=r"does not say who made it.*--lora-order"):
        with_adapters(open_checkpoint(base), [(silent, 1.0)])
    with pytest.raises(BadInput, match="does not say who made it"):
        with_adapters(
            open_checkpoint(base), [(made(base, tmp_path / "h", t, base_model_name_or_path="unsloth/gpt-oss-20b"), 1.0)]
        )


def test_swapped_axes_are_told_by_shape(base: Path, tmp_path: Path) -> None:
    """Made by a PEFT and a transformers that disagreed about is_transposed: A indexes the output."""
    t = {
        f"{AT}.base_layer.lora_A.weight": rand(10, 192),
        f"{AT}.base_layer.lora_B.weight": rand(160, 10, seed=1),
        f"{AT}.lora_A.weight": rand(10, 160, seed=2),
        f"{AT}.lora_B.weight": rand(96, 10, seed=3),
    }
    wanted = (
        np.einsum(
            "ire,ero->eoi",
            t[f"{AT}.base_layer.lora_B.weight"].reshape(160, 2, 5),
            t[f"{AT}.base_layer.lora_A.weight"].reshape(5, 2, 192),
        )
        * 2
    )
    assert np.allclose(
        delta_of(base, made(base, tmp_path / "a", t), "layers.1.experts.gate_up.weight"), wanted, atol=1e-5
    )


def test_square_experts_follow_gate_up_or_are_refused(tmp_path: Path) -> None:
    """H == I: down_proj's shapes say nothing."""
    from helpers.crafted import GOLD, with_config

    from gptoss_adapters.checkpoint.synthetic.checkpoints import Given  # a square model of our own

    del GOLD, with_config
    config = open_checkpoint(write_square(tmp_path / "sq", Given)).config
    assert config.hidden_size == config.intermediate_size == 64
    plain = {f"{AT}.lora_A.weight": rand(8, 64, seed=2), f"{AT}.lora_B.weight": rand(64, 8, seed=3)}
    with pytest.raises(BadInput, match="which axis is which cannot be told"):
        with_adapters(
            open_checkpoint(tmp_path / "sq"),
            [(made(tmp_path, tmp_path / "a", plain, target_parameters=FUSED[1:]), 1.0)],
        )
    a, b = plain[f"{AT}.lora_A.weight"].reshape(4, 2, 64), plain[f"{AT}.lora_B.weight"].reshape(64, 2, 4)
    for turned, shapes in ((False, ((8, 64), (128, 8))), (True, ((8, 128), (64, 8)))):
        both = plain | {
            f"{AT}.base_layer.lora_A.weight": rand(*shapes[0]),
            f"{AT}.base_layer.lora_B.weight": rand(*shapes[1]),
        }
        wanted = np.einsum("ire,ero->eoi" if turned else "ore,eri->eoi", b, a) * 2
        got = delta_of(tmp_path / "sq", made(tmp_path, tmp_path / f"b{turned}", both), "layers.1.experts.down.weight")
        assert np.allclose(got, wanted, atol=1e-5)


def write_square(folder: Path, given: Any) -> Path:
    import dataclasses

    from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
    from gptoss_adapters.checkpoint.synthetic.checkpoints import ODD_SHAPE, SeedMade

    config = dataclasses.replace(
        ODD_SHAPE, num_hidden_layers=2, layer_types=(), num_experts=4, hidden_size=64, intermediate_size=64
    )
    folder.mkdir()
    write(plan_checkpoint(SeedMade(config, 0), "hf-bf16", folder, {}, "square"), sync=False, read_back=False)
    return folder


def test_per_expert_adapters(base: Path, tmp_path: Path) -> None:
    """Unsloth's names for one expert, gate and up apart, and the router's linear layer."""
    t = {
        f"{AT}.gate_up_projs.3.lora_A.weight": rand(2, 160),
        f"{AT}.gate_up_projs.3.lora_B.weight": rand(192, 2, seed=1),
        f"{AT}.2.up_proj.lora_A.weight": rand(2, 160, seed=2),
        f"{AT}.2.up_proj.lora_B.weight": rand(96, 2, seed=3),
        "base_model.model.model.layers.1.mlp.router.linear.lora_A.weight": rand(2, 160, seed=4),
        "base_model.model.model.layers.1.mlp.router.linear.lora_B.weight": rand(5, 2, seed=5),
    }
    adapter = made(base, tmp_path / "a", t)
    got = delta_of(base, adapter, "layers.1.experts.gate_up.weight")
    wanted = np.zeros_like(got)
    wanted[3] = 2 * t[f"{AT}.gate_up_projs.3.lora_B.weight"] @ t[f"{AT}.gate_up_projs.3.lora_A.weight"]
    wanted[2, 1::2] = 2 * t[f"{AT}.2.up_proj.lora_B.weight"] @ t[f"{AT}.2.up_proj.lora_A.weight"]
    assert np.allclose(got, wanted, atol=1e-5) and not got[[0, 1, 4]].any() and not got[2, ::2].any()
    assert delta_of(base, adapter, "layers.1.router.weight").any()


def test_scale_and_several_adapters(base: Path, tmp_path: Path) -> None:
    name, t = (
        "layers.0.q_proj.weight",
        {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": v
            for x, v in (("A", rand(2, 160)), ("B", rand(192, 2, seed=1)))
        },
    )
    one, two = made(base, tmp_path / "1", t), made(base, tmp_path / "2", t, lora_alpha=2)
    whole = delta_of(base, one, name)
    c = with_adapters(open_checkpoint(base), [parse_adapter(f"{one}:0.25"), parse_adapter(str(two))])
    assert np.allclose(c.deltas[name].rows(0, 192), whole * 0.75, atol=1e-6)
    assert "times 0.25" in c.adapters[0] and len(c.adapters) == 2
    with pytest.raises(UsageError, match="a number after the colon"):
        parse_adapter("adapter:half")


def test_untouched_experts_keep_their_bytes(tmp_path: Path) -> None:
    """An adapter of one expert on an MXFP4 base: all others come back bit for bit, and the statistics count the
    changed ones.
    """
    write(plan_new("odd-shape", tmp_path / "b"), sync=False, read_back=False)
    t = {f"{AT}.down_projs.3.lora_A.weight": rand(2, 96), f"{AT}.down_projs.3.lora_B.weight": rand(160, 2, seed=1)}
    adapter = made(tmp_path, tmp_path / "a", t)
    from gptoss_converters.cli.options import open_input, rounding_for

    c = open_input(str(tmp_path / "b"), None, [str(adapter)])
    (tmp_path / "out").mkdir()
    rounding = rounding_for(c, None, None)
    write(plan_hf(c, tmp_path / "out", HfOptions(), rounding).plan, sync=False)
    before, after = open_checkpoint(tmp_path / "b"), open_checkpoint(tmp_path / "out")
    for name, info in before.tensors.items():
        for e in range(info.shape[0]) if info.encoding == "mxfp4" else ():
            same = all(np.array_equal(x, y) for x, y in zip(before.mxfp4(name, e), after.mxfp4(name, e), strict=True))
            assert same == (name != "layers.1.experts.down.weight" or e != 3), (name, e)
    whole = rounding.stats.as_dict()["tensors"]["layers.1.experts.down.weight"]
    assert whole["blocks"] == 5 * 160 * 3 and 0 < whole["changed"] <= 160 * 3


BAD: dict[str, tuple[Callable[[dict[str, np.ndarray], dict[str, Any]], object], str]] = {
    "another base": (
        lambda t, c: t.update(
            {
                "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": rand(2, 160),
                "base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight": rand(192, 2),
            }
        ),
        "no place in this model.*another base",
    ),
    "an unknown module": (
        lambda t, c: t.update(
            {
                "base_model.model.model.layers.0.mlp.gate.lora_A.weight": rand(2, 160),
                "base_model.model.model.layers.0.mlp.gate.lora_B.weight": rand(5, 2),
            }
        ),
        "no place in this model",
    ),
    "an unknown tensor": (
        lambda t, c: t.update({"base_model.model.model.layers.0.self_attn.q_proj.magnitude": rand(4)}),
        "no place.*nothing is dropped",
    ),
    "half a pair": (lambda t, c: t.pop(f"{AT}.lora_B.weight"), "other half of the pair is missing"),
    "another rank": (lambda t, c: c.update(r=4), r"rank is not the one.*expected 4, got 2"),
    "experts": (lambda t, c: t.update(fused(e=4)), "number of experts does not fit"),
    "shape": (lambda t, c: t.update({f"{AT}.base_layer.lora_A.weight": rand(10, 128)}), "shapes do not fit"),
    "NaN": (lambda t, c: t[f"{AT}.lora_A.weight"].__setitem__((1, 1), np.nan), "NaN or Inf"),
    "DoRA": (lambda t, c: c.update(use_dora=True), "DoRA"),
    "biases": (lambda t, c: c.update(bias="some"), "bias is a value that we do not know"),
    "IA3": (lambda t, c: c.update(peft_type="IA3"), "peft_type is not LoRA"),
    "no r": (lambda t, c: c.pop("r"), "r must be a positive integer"),
    "no tensor": (lambda t, c: t.clear(), "holds no tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_named(name: str, base: Path, tmp_path: Path) -> None:
    tensors, config = fused(), {"r": 2, "lora_alpha": 4}
    change, said = BAD[name]
    change(tensors, config)
    adapter = made(base, tmp_path / "a", tensors, **config)
    if "r" not in config:
        (adapter / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "lora_alpha": 4, "peft_version": "1"})
        )
    with pytest.raises(BadInput, match=said) as e:
        with_adapters(open_checkpoint(base), [(adapter, 1.0)])
    assert str(e.value).startswith(str(tmp_path)) and re.fullmatch(r"[^\n]+", str(e.value))


def test_a_pickle_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = made(base, tmp_path / "a", fused())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        with_adapters(open_checkpoint(base), [(adapter, 1.0)])


def test_merges_into_every_kind_of_base(tmp_path: Path) -> None:
    """The same adapter on the same values, however they are stored, gives the same merged values."""
    write(plan_new("odd-shape", tmp_path / "m"), sync=False, read_back=False)
    adapter = made(tmp_path, tmp_path / "a", fused())
    wanted = None
    for kind in ("hf-mxfp4", "hf-bf16", "hf-defused", "hf-quark", "openai"):
        c = with_adapters(open_checkpoint(write_kind(tmp_path / "m", kind, tmp_path / kind)), [(adapter, 1.0)])
        got = [c.read(f"layers.1.experts.{w}.weight", np.float32) for w in ("gate_up", "down")]
        wanted = wanted or got
        assert all(np.array_equal(x, y) for x, y in zip(got, wanted, strict=True)), kind
    assert load_file(adapter / "adapter_model.safetensors")
