"""The experts of one layer: gathered by expert, gate and up, clamped SwiGLU, down, combined by the router's weights.

Three ways to the same numbers: the oracle (decode one expert, multiply in torch), which works for every stored
encoding, dtype and device; the native kernels, which multiply MXFP4 without decoding it (CPU, float32 and bfloat16);
and on a GPU the Triton kernels where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters import mxfp4
from gptoss_adapters.errors import UsageError, missing_extra
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.reference.linear import as_tensor, linear_in_torch
from gptoss_adapters.reference.native_ops import threads

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [N, H], chosen [N, K], weights [N, K]) -> [N, H]
MODES = ("auto", "q24", "q16", "triton", "oracle")


def load_experts(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype, device: torch.device, mode: str = "auto"
) -> Experts:
    """The experts of one layer. mode: see `GptOss.from_checkpoint`. Nothing is decoded here; MXFP4 stays mapped.

    Raises UsageError for a mode that cannot serve this checkpoint, dtype or device, BadInput for a scale byte of 255.
    """
    if mode not in MODES:
        raise UsageError("experts must be one of " + ", ".join(MODES), got=mode)
    names = [f"layers.{layer}.experts.{name}.weight" for name in ("gate_up", "down")]
    packed = all(checkpoint.tensors[name].encoding == "mxfp4" for name in names)
    if packed:
        for name in names:
            checkpoint.check(name)  # a scale byte of 255 is NaN: refused here, naming file and tensor
    kernels = packed and dtype != torch.float64
    if mode == "auto":
        mode = _best(device) if kernels else "oracle"
    if mode == "oracle":
        return OracleExperts(checkpoint, layer, dtype, device)
    if not kernels or (mode != "triton" and device.type != "cpu"):
        raise UsageError(
            f"experts={mode} needs MXFP4 weights, float32 or bfloat16, and {'a GPU' if mode == 'triton' else 'a CPU'}"
        )
    return TritonExperts(checkpoint, layer, device) if mode == "triton" else NativeExperts(checkpoint, layer, mode)


def _best(device: torch.device) -> str:
    if device.type == "cpu":
        return "oracle" if mxfp4.backend() == "numpy" else "q24"
    return "triton" if find_spec("triton") else "oracle"


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """x [..., 2I], gate on even and up on odd columns -> [..., I]: clamp, gate * sigmoid(alpha * gate) * (up + 1)."""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


class OracleExperts:
    """The slow, obvious way. Holds no weight: each expert is read (and decoded) from the checkpoint when it is chosen.

    On a GPU the layer's packed weights are moved there once.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = checkpoint.config, dtype, device
        self.weights = {
            name: _stored(checkpoint, f"layers.{layer}.experts.{name}.weight", device) for name in ("gate_up", "down")
        }
        self.biases = {
            name: as_tensor(checkpoint.array(f"layers.{layer}.experts.{name}.bias")).to(device)
            for name in ("gate_up", "down")
        }

    product = staticmethod(linear_in_torch)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = x.new_zeros((*chosen.shape, x.shape[1]))  # (N, K, H)
        for expert, rows, slots in grouped(chosen):
            h = self.activate(self._linear("gate_up", expert, x[rows]))
            out[rows, slots] = self._linear("down", expert, h)
        return torch.einsum("nkh,nk->nh", out, weights)

    def activate(self, h: Tensor) -> Tensor:
        """What gate_up gave, [.., 2I] -> [.., I]."""
        return swiglu(h, self.config.swiglu_alpha, self.config.swiglu_limit)

    def _linear(self, name: str, expert: int, x: Tensor) -> Tensor:
        weight = self.weights[name](expert, self.dtype)
        return self.product(x, weight) + self.biases[name][expert].to(x.dtype)


def grouped(chosen: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """chosen [N, K] -> (expert, rows, slots) for each expert that anybody chose, in ascending order."""
    for expert in chosen.unique().tolist():
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        yield int(expert), rows, slots


def _stored(checkpoint: Checkpoint, name: str, device: torch.device) -> Callable[[int, torch.dtype], Tensor]:
    """(expert, dtype) -> that expert's weight [out, in], contiguous, exactly its stored values in dtype."""
    if checkpoint.tensors[name].encoding != "mxfp4":
        return lambda expert, dtype: as_tensor(checkpoint.read(name, np.float32, expert=expert)).to(device, dtype)
    if device.type == "cpu":
        return lambda expert, dtype: _decoded(checkpoint.mxfp4(name, expert), dtype)
    blocks, scales = (as_tensor(part).to(device) for part in checkpoint.mxfp4(name))
    return lambda expert, dtype: decode(blocks[expert], scales[expert], dtype)


def _decoded(packed: tuple[Any, Any], dtype: torch.dtype) -> Tensor:
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
        self.config, self.precision = checkpoint.config, precision
        self.weights = mxfp4.ExpertWeights(*_packed(checkpoint, layer))
        self.tensors = [as_tensor(getattr(self.weights, field.name)) for field in fields(self.weights)]

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._as_operator(x, chosen, weights)
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

    def _as_operator(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The same as one node of a traced graph (torch.compile, torch.export)."""
        alpha, limit = self.config.swiglu_alpha, self.config.swiglu_limit
        y: Tensor = torch.ops.gptoss.mxfp4_moe(
            x.float(), *self.tensors, chosen.int(), weights.float(), alpha, limit, self.precision
        )
        return y.to(x.dtype)


class TritonExperts:
    """The Triton kernels: blocks and scales are moved to the device once and stay packed there."""

    def __init__(self, checkpoint: Checkpoint, layer: int, device: torch.device) -> None:
        if not find_spec("triton"):
            raise missing_extra("triton", "triton")
        from gptoss_adapters.mxfp4 import triton_kernels

        self.config, self.kernels = checkpoint.config, triton_kernels
        self.weights = triton_kernels.Experts(*(as_tensor(part).to(device) for part in _packed(checkpoint, layer)))

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self.kernels.moe(x, self.weights, chosen, weights, self.config.swiglu_alpha, self.config.swiglu_limit)

    def capturable(self, rows: int) -> bool:
        """Whether a CUDA graph can hold the call for so many tokens: beyond, the tiles depend on the routing."""
        return rows * self.config.experts_per_token <= self.kernels.DECODE_PAIRS


def _packed(checkpoint: Checkpoint, layer: int) -> Iterator[Any]:
    """Blocks, scales and bias (float32) of gate_up, then of down: the order that both kernels take."""
    for name in ("gate_up", "down"):
        yield from checkpoint.mxfp4(f"layers.{layer}.experts.{name}.weight")
        yield checkpoint.read(f"layers.{layer}.experts.{name}.bias")
