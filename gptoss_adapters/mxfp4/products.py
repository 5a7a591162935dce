"""Products with MXFP4 weights as they are: one matrix, and the whole expert layer in one call.

`precision` says how activations enter the native products; the weights are exact in all of them.
    "q24"  24-bit fixed point per block of 32: float32-class, relative rms error about 2e-7; the default
    "q16"  16-bit: about 5e-5; faster where arithmetic and not memory is the limit
    "q8"   8-bit: about 1e-2 with outliers; what llama.cpp does; never a default
    "f32"  plain float32, slow; inputs that are not finite or too large for fixed point take this path by themselves
Results do not depend on the number of threads. They depend on how tokens are batched only in the last bits: kernels
that decode weights once for many tokens add up in another order (from 12 tokens of an expert on with AVX512-VNNI, 14
with AMX). float64 input, and an installation without native kernels, take the numpy oracle at full precision.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss_adapters.kernels.library import address, library
from gptoss_adapters.kernels.structs import MoeArguments
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.mxfp4.oracle import F32, HF_BLOCK, U8
from gptoss_adapters.spec import MXFP4_BLOCK

PRECISIONS = {"f32": 0, "q8": 1, "q16": 2, "q24": 3}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExpertWeights:
    """One layer's experts in the HF layout, C-contiguous; E experts, hidden size H, intermediate size I.

    The arrays may be views into a mapped file: nothing is copied, and rows are read once per call.
    """

    gate_up_blocks: U8  # [E, 2I, H / 32, 16], rows interleaved: gate 0::2, up 1::2
    gate_up_scales: U8  # [E, 2I, H / 32]
    gate_up_bias: F32  # [E, 2I]
    down_blocks: U8  # [E, H, I / 32, 16]
    down_scales: U8  # [E, H, I / 32]
    down_bias: F32  # [E, H]

    def __post_init__(self) -> None:
        e, two_i, groups = self.gate_up_scales.shape
        h, i = groups * MXFP4_BLOCK, two_i // 2
        expected = {
            "gate_up_blocks": (e, two_i, groups, HF_BLOCK),
            "gate_up_scales": (e, two_i, groups),
            "gate_up_bias": (e, two_i),
            "down_blocks": (e, h, i // MXFP4_BLOCK, HF_BLOCK),
            "down_scales": (e, h, i // MXFP4_BLOCK),
            "down_bias": (e, h),
        }
        if i % MXFP4_BLOCK:
            raise ValueError(f"intermediate size {i} is not a multiple of {MXFP4_BLOCK}")
        for field in fields(self):
            array, shape = getattr(self, field.name), expected[field.name]
            dtype = np.dtype(np.float32 if field.name.endswith("bias") else np.uint8)
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(f"{field.name}: expected contiguous {dtype} {shape}, got {array.dtype} {array.shape}")

    @cached_property
    def _arguments(self) -> bytes:
        """What calls with these weights have in common, packed once: a layer of a small step takes about a millisecond,
        so each microsecond counts.
        """
        e, h, i = self.shape
        return bytes(MoeArguments(*(address(getattr(self, field.name)) for field in fields(self)), h, i, e))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, hidden, intermediate)"""
        e, h = self.down_bias.shape
        return e, h, self.gate_up_bias.shape[1] // 2


def moe(
    x: Array,
    experts: ExpertWeights,
    topk_ids: npt.NDArray[np.int32],
    topk_weights: Array,
    alpha: float,
    limit: float,
    threads: int = 0,
    precision: str = "q24",
) -> Array:
    """x [T, H], chosen experts topk_ids [T, K] with topk_weights [T, K] -> [T, H] of x's dtype (float32 or float64).

    y[t] = sum over k of weight * (down(swiglu(gate_up(x) + bias)) + bias), swiglu as in `swiglu`. `threads` 0: all
    cores this process may use. Raises ValueError for shapes or expert ids that do not fit.
    """
    (tokens, top_k), (e, h, _) = topk_ids.shape, experts.shape
    if x.shape != (tokens, h) or topk_weights.shape != (tokens, top_k) or not top_k:
        raise ValueError(
            f"expected x ({tokens}, {h}), weights ({tokens}, {top_k}) and K >= 1, got {x.shape} and "
            f"{topk_weights.shape}"
        )
    native = library()
    if not native or x.dtype == np.float64:
        if topk_ids.size and not 0 <= topk_ids.min() <= topk_ids.max() < e:
            raise _make_range_error(topk_ids, e)
        return moe_oracle(x, experts, topk_ids, topk_weights, alpha, limit)
    x = np.ascontiguousarray(x, np.float32)
    ids = np.ascontiguousarray(topk_ids, np.int32)
    weights = np.ascontiguousarray(topk_weights, np.float32)
    y = np.empty((tokens, h), np.float32)
    call = MoeArguments.from_buffer_copy(experts._arguments)
    call.tokens, call.top_k = tokens, top_k
    call.x, call.ids, call.weights, call.y = address(x), address(ids), address(weights), address(y)
    call.alpha, call.limit = alpha, limit
    call.precision, call.threads = PRECISIONS[precision], _count_threads(threads)
    if not native.moe(ctypes.addressof(call)):
        raise _make_range_error(topk_ids, e)
    return y


def _make_range_error(ids: Array, experts: int) -> ValueError:
    return ValueError(f"expert ids must be in 0..{experts - 1}, got {int(ids.min())}..{int(ids.max())}")


def moe_oracle(
    x: Array, experts: ExpertWeights, topk_ids: npt.NDArray[np.int32], topk_weights: Array, alpha: float, limit: float
) -> Array:
    """`moe` by decoding each chosen expert and multiplying in x's dtype."""
    y = np.zeros_like(x)
    z = np.empty((*topk_ids.shape, x.shape[1]), x.dtype)
    for e in np.unique(topk_ids):
        token, slot = np.nonzero(topk_ids == e)
        up = oracle.decode(experts.gate_up_blocks[e], experts.gate_up_scales[e]).astype(x.dtype, copy=False)
        down = oracle.decode(experts.down_blocks[e], experts.down_scales[e]).astype(x.dtype, copy=False)
        h = x[token] @ up.T + experts.gate_up_bias[e]
        z[token, slot] = swiglu(h, alpha, limit) @ down.T + experts.down_bias[e]
    for k in range(topk_ids.shape[1]):
        y += topk_weights[:, k : k + 1].astype(x.dtype, copy=False) * z[:, k]
    return y


def swiglu(h: Array, alpha: float, limit: float) -> Array:
    """h [..., 2I], gate and up interleaved -> g * sigmoid(alpha * g) * (u + 1) with g clamped from above, u on both
    sides.
    """
    g, u = np.minimum(h[..., 0::2], limit), np.clip(h[..., 1::2], -limit, limit)
    with np.errstate(over="ignore"):
        out: Array = g / (1 + np.exp(-alpha * g)) * (u + 1)
    return out


def matmul(
    x: Array, blocks: U8, scales: U8, bias: F32 | None = None, threads: int = 0, precision: str = "q24"
) -> Array:
    """x [T, G * 32] times MXFP4 rows blocks [N, G, 16], scales [N, G], plus bias [N] -> [T, N] of x's dtype."""
    rows, groups = scales.shape
    if (
        blocks.shape != (rows, groups, HF_BLOCK)
        or x.ndim != 2
        or x.shape[1] != groups * MXFP4_BLOCK
        or (bias is not None and bias.shape != (rows,))
    ):
        raise ValueError(f"x {x.shape} and blocks {blocks.shape}, scales {scales.shape} do not fit")
    if not all(part.dtype == np.uint8 and part.flags.c_contiguous for part in (blocks, scales)):
        raise ValueError("blocks and scales must be contiguous uint8")
    native = library()
    if not native or x.dtype == np.float64:
        y: Array = x @ oracle.decode(blocks, scales).astype(x.dtype, copy=False).T
        return y if bias is None else y + bias
    x, out = np.ascontiguousarray(x, np.float32), np.empty((len(x), rows), np.float32)
    b = None if bias is None else np.ascontiguousarray(bias, np.float32)
    native.matmul(
        address(blocks),
        address(scales),
        None if b is None else address(b),
        rows,
        groups,
        len(x),
        address(x),
        PRECISIONS[precision],
        _count_threads(threads),
        address(out),
    )
    return out


def linear_bf16(x: F32, weight: Array, bias: F32 | None = None, threads: int = 0) -> F32:
    """x float32 [T, K] times weight bfloat16 (or its uint16 bits) [N, K], plus bias float32 [N] -> float32 [T, N].

    Products are exact and sums float32: for the few tokens of decoding, where reading the weights is the whole cost.
    """
    if weight.ndim != 2 or weight.dtype.itemsize != 2 or not weight.flags.c_contiguous:
        raise ValueError(f"weight must be contiguous bfloat16 [N, K], got {weight.dtype} {weight.shape}")
    (rows, k), bits = weight.shape, weight.view(np.uint16)
    if x.ndim != 2 or x.shape[1] != k or (bias is not None and bias.shape != (rows,)):
        raise ValueError(f"x {x.shape} and weight {weight.shape} do not fit")
    native = library()
    if not native:
        y: F32 = x @ (bits.astype(np.uint32) << 16).view(np.float32).T
        return y if bias is None else y + bias
    x, out = np.ascontiguousarray(x, np.float32), np.empty((len(x), rows), np.float32)
    b = None if bias is None else np.ascontiguousarray(bias, np.float32)
    native.linear_bf16(
        address(bits),
        None if b is None else address(b),
        rows,
        k,
        len(x),
        address(x),
        _count_threads(threads),
        address(out),
    )
    return out


def _count_threads(threads: int) -> int:
    return threads or len(os.sched_getaffinity(0))
