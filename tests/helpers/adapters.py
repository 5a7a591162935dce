"""LoRA adapters written by hand, for the odd-shape preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def made(base: Path, out: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """An adapter written by hand."""
    out.mkdir(parents=True)
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "peft_version": "0.21.2", **config})
    )
    return out


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


AT = "base_model.model.model.layers.1.mlp.experts"  # odd-shape: E 5, H 160, I 96


def fused(e: int = 5, r: int = 2) -> dict[str, np.ndarray]:
    return {
        f"{AT}.base_layer.lora_A.weight": rand(e * r, 160),
        f"{AT}.base_layer.lora_B.weight": rand(192, e * r, seed=1),
        f"{AT}.lora_A.weight": rand(e * r, 96, seed=2),
        f"{AT}.lora_B.weight": rand(160, e * r, seed=3),
    }
