"""A checkpoint's weights as the model holds them, and what a model takes in memory.

Dense weights stay in their stored dtype, mapped from the file, or are copied into memory packed; vectors (norms, biases
and sinks) become float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.linear import Weight, as_tensor
from gptoss_adapters.reference.packed import pack, packs
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
PACK_VALUES = 1 << 20  # smaller matrices stay as they are
PROJECTIONS = tuple(f"{p}_proj.weight" for p in "qkvo")
LAYER_TENSORS = (
    "attn_norm.weight",
    *(f"{p}_proj.{w}" for p in "qkvo" for w in ("weight", "bias")),
    "sinks",
    "mlp_norm.weight",
    "router.weight",
    "router.bias",
)


def open_for_model(path: str | Path | Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The checkpoint, opened if it is not yet. Raises UsageError for a dtype that no model computes in."""
    if dtype not in DTYPES:
        raise UsageError("dtype must be float32, float64 or bfloat16", got=dtype)
    return path if isinstance(path, Checkpoint) else open_checkpoint(path)


class DenseWeights:
    """Reads everything but the experts, to `device`. dense: "stored", or "packed" (see `GptOss.from_checkpoint`)."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, experts: str, dense: str
    ) -> None:
        if dense not in ("stored", "packed"):
            raise UsageError("dense must be stored or packed", got=dense)
        on_cpu = dtype == torch.float32 and device.type == "cpu"
        self.checkpoint = checkpoint
        self.device = device
        self.packs = dense == "packed" and experts != "oracle" and on_cpu and packs()

    def tensor(self, name: str) -> Tensor:
        """In its stored dtype; of one dimension, float32."""
        quantised = self.checkpoint.tensors[name].encoding == "q8_0"
        tensor = as_tensor(self.checkpoint.read(name) if quantised else self.checkpoint.array(name))
        if tensor.dim() == 1:
            tensor = tensor.float()  # norms, biases and sinks: what they are added to is float32 or wider
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def matrix(self, name: str) -> Weight:
        """[out, in], packed where that was asked for and pays."""
        weight = self.tensor(name)
        if not self.packs or weight.dtype != torch.bfloat16 or weight.numel() < PACK_VALUES:
            return weight
        packed = pack(weight.contiguous())
        self.checkpoint.release(name)
        return weight if packed is None else packed

    def layer(self, number: int) -> dict[str, Any]:
        """The dense weights of one layer, by their canonical names inside it."""
        return {
            name: (self.matrix if name in PROJECTIONS else self.tensor)(f"layers.{number}.{name}")
            for name in LAYER_TENSORS
        }


def plan_memory(config: GptOssConfig, context: int, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes of a whole model in MXFP4 at this context: experts, dense (bf16), kv_cache (in dtype, one row), total."""
    total, _ = config.parameters()
    per_expert = 3 * config.hidden_size * config.intermediate_size
    layers = range(config.num_hidden_layers)
    packed = sum(config.experts_of(n) for n in layers) * per_expert
    experts = packed // 2 + packed // MXFP4_BLOCK
    windows = [config.window_of(n) for n in layers]
    columns = sum(context if window is None else min(context, window - 1) for window in windows)
    plan = {
        "experts": experts,
        "dense": (total - packed) * 2,
        "kv_cache": columns * 2 * config.kv_rows * dtype.itemsize,
    }
    return plan | {"total": sum(plan.values())}
