"""The experts of one layer: gathered by expert, gate and up, clamped SwiGLU, down, combined by the router's weights.

Three ways to the same numbers: the oracle (decode one expert, multiply in torch), which is the definition and works for
every stored encoding, dtype and device; the native kernels, which multiply MXFP4 without decoding it (CPU, float32 and
bfloat16); and on a GPU the Triton kernels where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.errors import UsageError, missing_extra
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.reference.native_ops import threads
from gptoss_adapters.reference.ops import Ops
from gptoss_adapters.spec import GptOssConfig

ExpertLayer = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [N, H], chosen [N, K], weights [N, K]) -> [N, H]
ReadWeight = Callable[[int, torch.dtype], Tensor]  # (expert, dtype) -> its weight [out, in], exact
MODES = ("auto", "q24", "q16", "triton", "oracle")
PARTS = ("gate_up", "down")


def load_experts(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype, device: torch.device, mode: str, ops: Ops
) -> ExpertLayer:
    """The experts of one layer. mode: see `GptOss.from_checkpoint`. ops: what the oracle computes with, in torch.
    Nothing is decoded here; MXFP4 stays mapped.

    Raises UsageError for a mode that cannot serve this checkpoint, dtype or device, BadInput for a scale byte of 255.
    """
    if mode not in MODES:
        raise UsageError("experts must be one of " + ", ".join(MODES), got=mode)
    names = [f"layers.{layer}.experts.{part}.weight" for part in PARTS]
    packed = all(checkpoint.tensors[name].encoding == "mxfp4" for name in names)
    if packed:
        for name in names:
            checkpoint.check(name)  # a scale byte of 255 is NaN: refused here, naming file and tensor
    kernels = packed and dtype != torch.float64
    if mode == "auto":
        mode = _choose_mode(device) if kernels else "oracle"
    if mode == "oracle":
        return read_oracle(checkpoint, layer, dtype, device, ops)
    if not kernels or (mode != "triton" and device.type != "cpu"):
        raise UsageError(
            f"experts={mode} needs MXFP4 weights, float32 or bfloat16, and {'a GPU' if mode == 'triton' else 'a CPU'}"
        )
    return TritonExperts(checkpoint, layer, device) if mode == "triton" else NativeExperts(checkpoint, layer, mode)


def _choose_mode(device: torch.device) -> str:
    if device.type == "cpu":
        return "oracle" if mxfp4.backend() == "numpy" else "q24"
    return "triton" if find_spec("triton") else "oracle"


@dataclass(eq=False)
class OracleExperts:
    """The slow, obvious way. Each expert is read (and decoded) when it is chosen, by `weights[part]`; `biases[part]` is
    [E, out].
    """

    config: GptOssConfig
    dtype: torch.dtype
    weights: dict[str, ReadWeight]
    biases: dict[str, Tensor]
    ops: Ops

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = x.new_zeros((*chosen.shape, x.shape[1]))  # (N, K, H)
        for expert, rows, slots in group_by_expert(chosen):
            h = self._multiply("gate_up", expert, x[rows])  # (rows, 2I)
            h = self.ops.swiglu(h, self.config.swiglu_alpha, self.config.swiglu_limit)
            out[rows, slots] = self._multiply("down", expert, h)
        return torch.einsum("nkh,nk->nh", out, weights)

    def _multiply(self, part: str, expert: int, x: Tensor) -> Tensor:
        weight = self.weights[part](expert, self.dtype)
        return self.ops.linear(x, weight, None) + self.biases[part][expert].to(x.dtype)


def read_oracle(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype, device: torch.device, ops: Ops
) -> OracleExperts:
    """Holds no weight on a CPU; on another device the layer's packed weights are moved there once."""
    name = f"layers.{layer}.experts"
    weights = {part: _read_from(checkpoint, f"{name}.{part}.weight", device) for part in PARTS}
    biases = {part: as_tensor(checkpoint.array(f"{name}.{part}.bias")).to(device) for part in PARTS}
    return OracleExperts(checkpoint.config, dtype, weights, biases, ops)


def group_by_expert(chosen: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """chosen [N, K] -> (expert, rows, slots) for each expert that anybody chose, in ascending order."""
    for expert in chosen.unique().tolist():
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        yield int(expert), rows, slots


def _read_from(checkpoint: Checkpoint, name: str, device: torch.device) -> ReadWeight:
    """Each expert's weight, contiguous, exactly its stored values in the dtype asked for."""
    if checkpoint.tensors[name].encoding != "mxfp4":
        return lambda expert, dtype: as_tensor(checkpoint.read(name, np.float32, expert=expert)).to(device, dtype)
    if device.type == "cpu":
        return lambda expert, dtype: _decode_arrays(checkpoint.mxfp4(name, expert), dtype)
    blocks, scales = (as_tensor(part).to(device) for part in checkpoint.mxfp4(name))
    return lambda expert, dtype: decode(blocks[expert], scales[expert], dtype)


def _decode_arrays(packed: tuple[Any, Any], dtype: torch.dtype) -> Tensor:
    return decode(as_tensor(packed[0]), as_tensor(packed[1]), dtype)


_E2M1 = tuple(float(v) for v in oracle.E2M1)


def decode(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """MXFP4 in torch, on any device. blocks [..., G, 16] u8, scales [..., G] u8 -> [..., G * 32] in dtype, exact.

    The low nibble comes first. Scale byte 255 (NaN) is refused by `load_experts`, not here.
    """
    table = torch.tensor(_E2M1, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=blocks.device)
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)  # (..., G, 32)
    values = table[codes.int()] * torch.exp2(scales.to(table.dtype) - 127)[..., None]
    return values.flatten(-2).to(dtype)


class NativeExperts:
    """The native kernels: one call per layer, on blocks and scales as the file holds them.

    precision: "q24" (float32-class) or "q16" (error 1e-4). Results do not depend on the number of threads.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int, precision: str) -> None:
        self.config = checkpoint.config
        self.precision = precision
        self.weights = mxfp4.ExpertWeights(*_read_packed(checkpoint, layer))

    def arrays(self) -> Iterator[np.ndarray]:
        """Blocks, scales and bias of gate_up, then of down."""
        return (getattr(self.weights, field.name) for field in fields(self.weights))

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        y = mxfp4.moe(
            x.float().contiguous().numpy(),
            self.weights,
            chosen.int().contiguous().numpy(),
            weights.float().contiguous().numpy(),
            alpha=self.config.swiglu_alpha,
            limit=self.config.swiglu_limit,
            threads=threads(),
            precision=self.precision,
        )
        return torch.from_numpy(y).to(x.dtype)


class TritonExperts:
    """The Triton kernels: blocks and scales are moved to the device once and stay packed there."""

    def __init__(self, checkpoint: Checkpoint, layer: int, device: torch.device) -> None:
        if not find_spec("triton"):
            raise missing_extra("triton", "triton")
        from gptoss_adapters.mxfp4 import triton_kernels

        self.config = checkpoint.config
        self.kernels = triton_kernels
        self.weights = triton_kernels.Experts(*(as_tensor(part).to(device) for part in _read_packed(checkpoint, layer)))

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self.kernels.moe(x, self.weights, chosen, weights, self.config.swiglu_alpha, self.config.swiglu_limit)

    def capturable(self, rows: int) -> bool:
        """Whether a CUDA graph can hold the call for so many tokens: beyond, the tiles depend on the routing."""
        return rows * self.config.experts_per_token <= self.kernels.DECODE_PAIRS


def _read_packed(checkpoint: Checkpoint, layer: int) -> Iterator[Any]:
    """Blocks, scales and bias (float32) of gate_up, then of down: the order that both kernels take."""
    for part in PARTS:
        yield from checkpoint.mxfp4(f"layers.{layer}.experts.{part}.weight")
        yield checkpoint.read(f"layers.{layer}.experts.{part}.bias")
