"""The MXFP4 products as torch custom operators, so that torch.compile and torch.export see through them.

Importing this module registers `gptoss::mxfp4_matmul`, `gptoss::mxfp4_moe` and `gptoss::linear_bf16`; it needs torch.
All are for CPU tensors and inference. Shapes and precisions are those of `products.py`; tensors share memory with the
arrays there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters.mxfp4 import products
from gptoss_adapters.mxfp4.products import ExpertWeights


@torch.library.custom_op("gptoss::mxfp4_matmul", mutates_args=())
def mxfp4_matmul(x: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """x [..., G * 32] float32 or float64; blocks [N, G, 16], scales [N, G] uint8; bias [N] float32 -> [..., N]."""
    rows = x.reshape(-1, x.shape[-1])
    y = products.matmul(
        rows.numpy(),
        blocks.numpy(),
        scales.numpy(),
        None if bias is None else bias.numpy(),
        torch.get_num_threads(),
        precision,
    )
    return torch.from_numpy(y).reshape(*x.shape[:-1], -1)


@mxfp4_matmul.register_fake
def _(x: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], scales.shape[0]))


@torch.library.custom_op("gptoss::mxfp4_moe", mutates_args=())
def mxfp4_moe(
    x: Tensor,
    gate_up_blocks: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    alpha: float,
    limit: float,
    precision: str,
) -> Tensor:
    """x [T, H] float32 or float64, one layer's experts as in `ExpertWeights`, topk_ids [T, K], topk_weights [T, K]
    -> [T, H].
    """
    arrays = (t.numpy() for t in (gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias))
    ids = topk_ids.numpy().astype(np.int32, copy=False)
    y = products.moe(
        x.numpy(), ExpertWeights(*arrays), ids, topk_weights.numpy(), alpha, limit, torch.get_num_threads(), precision
    )
    return torch.from_numpy(y)


@mxfp4_moe.register_fake
def _(
    x: Tensor,
    gate_up_blocks: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    alpha: float,
    limit: float,
    precision: str,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("gptoss::linear_bf16", mutates_args=())
def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] float32, weight [N, K] bfloat16, bias [N] float32 -> [..., N] float32."""
    rows, bits = x.reshape(-1, x.shape[-1]), weight.view(torch.uint16).numpy()
    y = products.linear_bf16(rows.numpy(), bits, None if bias is None else bias.numpy(), torch.get_num_threads())
    return torch.from_numpy(y).reshape(*x.shape[:-1], -1)


@linear_bf16.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
