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


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] plus bias [out] -> [..., out] in x's dtype.

    float32 against bf16 on a CPU goes through the native kernels, which read bf16 directly; all else is
    `linear_in_torch`.
    """
    if isinstance(weight, PackedWeight):
        return _packed(x, weight, bias)
    if (
        x.dtype == torch.float32
        and weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and weight.is_contiguous()
    ):
        if torch.compiler.is_compiling():  # one node of the graph, whatever the number of rows
            traced: Tensor = torch.ops.gptoss.linear_bf16(x, weight, None)
            return traced if bias is None else traced + bias.to(x.dtype)
        if native_ops.usable(x) or mxfp4.backend() == "amx":
            return native_ops.linear_bf16(x.contiguous(), weight, None if bias is None else bias.float().contiguous())
    return linear_in_torch(x, weight, bias)


def linear_in_torch(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by torch alone. Equal dtypes: one matmul. Else the weight is widened to x's dtype by chunks of rows,
    which is
    exact: bf16 and f16 into float32 or float64."""
    if weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows = max(1, CHUNK_VALUES // weight.shape[1])
    parts = [F.linear(x, w.to(x.dtype)) for w in weight.split(rows)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return y if bias is None else y + bias.to(y.dtype)


def _packed(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Few rows: multiplied as they are. Many: unpacked by chunks of rows, which then count little."""
    if native_ops.usable(x):
        return weight.product(x, bias)
    (n, k), out = weight.shape, x.new_empty((*x.shape[:-1], weight.shape[0]))
    for begin in range(0, n, step := max(1, CHUNK_VALUES // k)):
        end = min(n, begin + step)
        out[..., begin:end] = linear(x, weight.rows(begin, end), None if bias is None else bias[begin:end])
    return out


def as_tensor(array: Any) -> Tensor:
    """A numpy array (ml_dtypes.bfloat16 included) as a torch tensor over the same memory. Never write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": weights are read only, as we want them
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
