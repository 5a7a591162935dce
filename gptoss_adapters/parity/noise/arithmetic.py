"""What noise an engine is judged by: the class that its arithmetic, its settings and its weights make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.backends import Arithmetic
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.parity.noise.nulls import Noise

# how ggml rounds what it multiplies with weights of each encoding
_GGML_INPUTS = {"mxfp4": "q8_0", "q8_0": "q8_0", "bf16": "bf16", "f16": "f16", "f32": ""}


def noise_of(arithmetic: Arithmetic, settings: Mapping[str, Any], weights: Checkpoint) -> Noise:
    """settings: the engine's (`Info.settings`); weights: what it computes with."""
    return {"ggml": _ggml_noise, "torch": _torch_noise}[arithmetic](settings, weights)


def _ggml_noise(settings: Mapping[str, Any], weights: Checkpoint) -> Noise:
    dense = weights.tensors["layers.0.q_proj.weight"].encoding
    experts = weights.tensors["layers.0.experts.gate_up.weight"].encoding
    flash = int(settings.get("n_batch", 512)) if settings.get("flash_attn") else 0
    cache = settings.get("cache_type", "f16")
    return Noise("float32", _GGML_INPUTS[dense], _GGML_INPUTS[experts], cache, flash)


def _torch_noise(settings: Mapping[str, Any], weights: Checkpoint) -> Noise:
    dtype = str(settings.get("dtype", "float32")).removeprefix("torch.")
    return Noise("bfloat16" if dtype in ("bfloat16", "float16") else "float32")
