"""Matrix times activations where the weight keeps its stored dtype: bf16 weights, float32 activations, exact
products.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gptoss_adapters import mxfp4
from gptoss_adapters.reference import native_ops
from gptoss_adapters.reference.packed import PackedWeight

Weight = Tensor | PackedWeight

CHUNK_VALUES = 1 << 22  # weights widened at a time: 16 MB of float32, which stays in the caches' reach


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] plus bias [out] -> [..., out] in x's dtype, by torch alone.

    Equal dtypes: one matmul. Else the weight is widened to x's dtype by chunks of rows, which is exact: bf16 and f16
    into float32 or float64.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows = max(1, CHUNK_VALUES // weight.shape[1])
    parts = [F.linear(x, w.to(x.dtype)) for w in weight.split(rows)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return y if bias is None else y + bias.to(y.dtype)


def linear_on_kernels(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """`linear` where the native kernels are at hand: they read packed weights, and bf16 for float32 activations
    directly, unless torch is faster at so many rows.
    """
    if isinstance(weight, PackedWeight):
        return _linear_packed(x, weight, bias)
    if reads_directly(x, weight):
        few = native_ops.usable(x, x.numel() // x.shape[-1])
        if few or mxfp4.backend() == "amx":
            return native_ops.linear_bf16(x.contiguous(), weight, None if bias is None else bias.float().contiguous())
    return linear(x, weight, bias)


def reads_directly(x: Tensor, weight: Tensor) -> bool:
    """Whether the native product takes these: float32 against bf16, on a CPU."""
    float_on_bf16 = x.dtype == torch.float32 and weight.dtype == torch.bfloat16
    return float_on_bf16 and x.device.type == "cpu" and weight.is_contiguous()


def _linear_packed(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Few rows: multiplied as they are. Many: unpacked by chunks of rows, which then count little."""
    if native_ops.usable(x, x.numel() // x.shape[-1]):
        return weight.product(x, bias)
    (n, k), out = weight.shape, x.new_empty((*x.shape[:-1], weight.shape[0]))
    step = max(1, CHUNK_VALUES // k)
    for begin in range(0, n, step):
        end = min(n, begin + step)
        part = None if bias is None else bias[begin:end]
        out[..., begin:end] = linear_on_kernels(x, weight.rows(begin, end), part)
    return out


def as_tensor(array: Any) -> Tensor:
    """A numpy array (ml_dtypes.bfloat16 included) as a torch tensor over the same memory. Never write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": weights are read only, as we want them
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
