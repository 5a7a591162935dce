"""The same LoRA adapter in other tools' forms, and spoilt ones, made from one of tests/data/adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from helpers.lora_gold import ADAPTERS

Tensors = dict[str, np.ndarray]
EXPERTS, RANK = 8, 2  # of the tiny model, of the adapter `experts`
AT = "base_model.model.model.layers"


def read(name: str) -> tuple[Tensors, dict[str, Any]]:
    folder = ADAPTERS / name
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


def write(out: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    out.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def as_unsloth(tensors: Tensors, config: dict[str, Any]) -> None:
    """The rank runs fastest in B's columns, and the config says who made it."""
    for name, tensor in tensors.items():
        if ".experts" in name and "lora_B" in name:
            out = len(tensor)
            tensors[name] = tensor.reshape(out, RANK, EXPERTS).swapaxes(1, 2).reshape(out, -1)
    config["auto_mapping"] = {"unsloth_fixed": True}


def one_by_one(tensors: Tensors, config: dict[str, Any]) -> None:
    """gate_proj, up_proj and down_proj of each expert."""
    for name in [name for name in tensors if ".experts" in name]:
        tensor = tensors.pop(name)
        at, half = name.split(".experts")[0] + ".experts", name.split(".")[-2]
        parts = ("gate_proj", "up_proj") if "base_layer" in name else ("down_proj",)
        for i, part in enumerate(parts):
            if half == "lora_A":
                matrices = tensor.reshape(EXPERTS, RANK, -1)
            else:
                matrices = tensor.reshape(len(tensor), RANK, EXPERTS).transpose(2, 0, 1)[:, i :: len(parts)]
            for e, matrix in enumerate(matrices):
                tensors[f"{at}.{e}.{part}.{half}.weight"] = matrix
    config.update(target_modules=["gate_proj", "up_proj", "down_proj", "q_proj"], target_parameters=None)


def another_layer(tensors: Tensors, config: dict[str, Any]) -> None:
    """As an adapter of the 120b on the 20b."""
    tensors |= {name.replace("layers.3.", "layers.30."): t for name, t in tensors.items() if "layers.3." in name}


def without_maker(tensors: Tensors, config: dict[str, Any]) -> None:
    del config["peft_version"]


def smaller(tensors: Tensors, config: dict[str, Any]) -> None:
    """vLLM copies it into the first rows and columns of the model's."""
    for name, tensor in tensors.items():
        tensors[name] = tensor[:, :64] if "q_proj.lora_A" in name else tensor


def fewer_experts(tensors: Tensors, config: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if ".experts" in name:
            tensors[name] = tensor[:10] if "lora_A" in name else tensor[:, :10]


def half_a_pair(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[f"{AT}.1.self_attn.q_proj.lora_B.weight"]


def no_numbers(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[f"{AT}.1.self_attn.q_proj.lora_A.weight"][0, 0] = np.nan


def of_the_head(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((2, 96), np.float32)
    tensors["base_model.model.lm_head.lora_B.weight"] = np.ones((320, 2), np.float32)
    config["target_modules"] = [*config["target_modules"], "lm_head"]


def a_saved_norm(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors["base_model.model.model.norm.weight"] = np.ones(96, np.float32)
    config["modules_to_save"] = ["norm"]


def of_no_module(tensors: Tensors, config: dict[str, Any]) -> None:
    for half, shape in (("A", (2, 96)), ("B", (96, 2))):
        tensors[f"{AT}.0.mlp.shared_expert.lora_{half}.weight"] = np.ones(shape, np.float32)


def dora(tensors: Tensors, config: dict[str, Any]) -> None:
    config["use_dora"] = True


def another_method(tensors: Tensors, config: dict[str, Any]) -> None:
    config["peft_type"] = "LOHA"


def trained_biases(tensors: Tensors, config: dict[str, Any]) -> None:
    config["bias"] = "lora_only"
    tensors[f"{AT}.0.self_attn.q_proj.bias"] = np.ones(256, np.float32)


def another_rank(tensors: Tensors, config: dict[str, Any]) -> None:
    config["r"] = 3


def nothing(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors.clear()


SPOILT: dict[Callable[[Tensors, dict[str, Any]], None], str] = {
    another_layer: r"layers\.30\.",
    without_maker: r"does not say who made it.*set GPTOSS_ADAPTERS_LORA_ORDER to peft or unsloth",
    smaller: r"q_proj.*do not fit the base.*\[2, 64\]",
    fewer_experts: r"experts.*number of experts does not fit.*multiple of 8",
    half_a_pair: r"layers\.1\.self_attn\.q_proj.*other half of the pair is missing",
    no_numbers: r"layers\.1\.self_attn\.q_proj.*NaN",
    of_the_head: r"unembedding.*vLLM serves no adapter of that.*gptoss-convert to-hf",
    a_saved_norm: r"replaces the whole norm.*gptoss-convert to-hf",
    of_no_module: r"shared_expert.*no place in this model",
    dora: "DoRA",
    another_method: "LOHA",
    trained_biases: r"replaces the whole layers\.0\.q_proj\.bias.*gptoss-convert to-hf",
    another_rank: r"expected|rank",
    nothing: "no tensor",
}
