"""The expert layer on GPUs: Triton kernels that multiply with MXFP4 weights in the HF layout as they lie in memory.

Few tokens: one program per (token, expert) pair, rows and a share of K (split-K), since one token alone cannot fill a GPU; a
second kernel adds the shares in a fixed order with bias and SwiGLU, or bias and routing weights. No shape depends on
the routing and nothing waits for the host, so a CUDA graph can hold it. Many tokens: pairs sorted by expert, each expert's
padded to whole tiles, one matrix product per tile with bias and SwiGLU in its last step.

A byte holds values 2j and 2j + 1 of a row: even and odd activations are read apart, so weights need no interleaving.
Importing this module needs triton. `TRITON_INTERPRET=1`, set before the import, runs it on CPU tensors, where only float32 works.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DECODE_PAIRS = 64  # up to so many (token, expert) pairs the split-K path serves
BLOCK_N, BLOCK_G, SPLIT = 32, 8, 4  # split-K: rows, blocks of 32 values a step, shares of K
TILE_M, TILE_N, TILE_G = 32, 64, 2  # tiles: pairs, rows, blocks a step


@dataclass(frozen=True)
class Experts:
    """One layer's experts as tensors of one device; shapes as in `products.ExpertWeights`, biases of any float type."""

    gate_up_blocks: Tensor
    gate_up_scales: Tensor
    gate_up_bias: Tensor
    down_blocks: Tensor
    down_scales: Tensor
    down_bias: Tensor


@triton.jit
def _e2m1(code):
    """4-bit codes (int32) -> float32, by arithmetic on the bits."""
    exponent, half = (code >> 1) & 3, code & 1
    bits = tl.where(exponent == 0, half * 0x3F000000, ((exponent + 126) << 23) | (half << 22))
    return (bits | ((code & 8) << 28)).to(tl.float32, bitcast=True)


@triton.jit
def _unit(scale):
    """Scale bytes (int32) -> 2**(scale - 127); byte 0 is subnormal."""
    return tl.where(scale == 0, 0x00400000, scale << 23).to(tl.float32, bitcast=True)


@triton.jit
def _swiglu(gate, up, alpha, limit):
    g, u = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit)
    return g / (1 + tl.exp(-alpha * g)) * (u + 1)


@triton.jit
def _partial_rows(x, blocks, scales, ids, out, rows, groups: tl.constexpr, share, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, SPLIT: tl.constexpr):
    """out[pair, split, row] = this share of K of the row of the pair's expert times x[pair // share]."""
    pair, split = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (tl.load(ids + pair).to(tl.int64) * rows + row) * groups  # [BLOCK_N]
    byte = tl.arange(0, 16)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, groups, SPLIT * BLOCK_G):
        group = first + split * BLOCK_G + tl.arange(0, BLOCK_G)
        known = (row < rows)[:, None] & (group < groups)[None, :]
        s = tl.load(scales + at[:, None] + group[None, :], known, 0).to(tl.int32)
        w = tl.load(blocks + (at[:, None] + group[None, :])[:, :, None] * 16 + byte[None, None, :], known[:, :, None], 0).to(tl.int32)
        k = group[:, None] * 32 + byte[None, :] * 2  # [BLOCK_G, 16]
        source = x + (pair // share) * groups * 32 + k
        even = tl.load(source, (group < groups)[:, None], 0).to(tl.float32)
        odd = tl.load(source + 1, (group < groups)[:, None], 0).to(tl.float32)
        sums = tl.sum(_e2m1(w & 15) * even[None, :, :] + _e2m1(w >> 4) * odd[None, :, :], axis=2)
        total += tl.sum(sums * _unit(s), axis=1)
    tl.store(out + (pair * SPLIT + split) * rows + row, total, row < rows)


@triton.jit
def _add_swiglu(partial, bias, ids, out, inter, alpha, limit, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """out[pair, i] = SwiGLU of rows 2 i and 2 i + 1: the sum of their shares plus the expert's bias."""
    pair = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b = bias + tl.load(ids + pair) * 2 * inter + 2 * i
    gate, up = tl.load(b, i < inter, 0).to(tl.float32), tl.load(b + 1, i < inter, 0).to(tl.float32)
    for split in range(SPLIT):
        p = partial + (pair * SPLIT + split) * 2 * inter + 2 * i
        gate += tl.load(p, i < inter, 0)
        up += tl.load(p + 1, i < inter, 0)
    tl.store(out + pair * inter + i, _swiglu(gate, up, alpha, limit), i < inter)


@triton.jit
def _add_combine(partial, bias, ids, weights, out, hidden, top_k: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """out[token, row] = sum over the token's slots of weight * (sum of the shares + bias)."""
    token = tl.program_id(0)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for slot in range(top_k):
        pair = token * top_k + slot
        y = tl.load(bias + tl.load(ids + pair) * hidden + row, row < hidden, 0).to(tl.float32)
        for split in range(SPLIT):
            y += tl.load(partial + (pair * SPLIT + split) * hidden + row, row < hidden, 0)
        total += tl.load(weights + pair).to(tl.float32) * y
    tl.store(out + token * hidden + row, total, row < hidden)


@triton.jit
def _weights(blocks, scales, at, byte, known, DTYPE: tl.constexpr):
    """Even and odd values [bytes, rows] of rows that begin at block `at`, ready to be the second operand of a product."""
    w = tl.load(blocks + at[None, :] * 16 + byte[:, None], known, 0).to(tl.int32)
    unit = _unit(tl.load(scales + at[None, :] + byte[:, None] // 16, known, 0).to(tl.int32))
    return (_e2m1(w & 15) * unit).to(DTYPE), (_e2m1(w >> 4) * unit).to(DTYPE)


@triton.jit
def _tile(
    x, blocks, scales, bias, order, tile_expert, out, rows, groups: tl.constexpr, share, alpha, limit,
    SWIGLU: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_G: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out[pair, n] for TILE_M pairs of one expert: row n, or SwiGLU of rows 2 n and 2 n + 1. Pair -1 is padding."""
    expert = tl.load(tile_expert + tl.program_id(0)).to(tl.int64)
    pair = tl.load(order + tl.program_id(0) * TILE_M + tl.arange(0, TILE_M))
    n = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    outputs = rows // 2 if SWIGLU else rows
    row = 2 * n if SWIGLU else n
    at = (expert * rows + row) * groups
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    other = tl.zeros([TILE_M, TILE_N], tl.float32)
    for first in range(0, groups, TILE_G):
        byte = first * 16 + tl.arange(0, TILE_G * 16)
        inside = byte < groups * 16
        source = x + (pair // share)[:, None].to(tl.int64) * groups * 32 + 2 * byte[None, :]
        wanted = (pair >= 0)[:, None] & inside[None, :]
        even, odd = tl.load(source, wanted, 0).to(DTYPE), tl.load(source + 1, wanted, 0).to(DTYPE)
        known = inside[:, None] & (n < outputs)[None, :]
        low, high = _weights(blocks, scales, at, byte, known, DTYPE)
        total = tl.dot(odd, high, tl.dot(even, low, total, input_precision="ieee"), input_precision="ieee")
        if SWIGLU:
            low, high = _weights(blocks, scales, at + groups, byte, known, DTYPE)
            other = tl.dot(odd, high, tl.dot(even, low, other, input_precision="ieee"), input_precision="ieee")
    b = bias + expert * rows + row
    total += tl.load(b, n < outputs, 0).to(tl.float32)[None, :]
    if SWIGLU:
        total = _swiglu(total, other + tl.load(b + 1, n < outputs, 0).to(tl.float32)[None, :], alpha, limit)
    tl.store(out + pair[:, None].to(tl.int64) * outputs + n[None, :], total, (pair >= 0)[:, None] & (n < outputs)[None, :])


def moe(x: Tensor, experts: Experts, topk_ids: Tensor, topk_weights: Tensor, alpha: float, limit: float) -> Tensor:
    """x [T, H] float32 or bfloat16, topk_ids [T, K] integer, topk_weights [T, K] -> [T, H] of x's dtype; sums are float32."""
    ids = topk_ids.reshape(-1).to(torch.int32)
    serve = _split_k if ids.numel() <= DECODE_PAIRS else _tiled
    return serve(x.contiguous(), experts, ids, topk_weights.reshape(-1).contiguous(), topk_ids.shape[1], alpha, limit)


def _split_k(x: Tensor, e: Experts, ids: Tensor, weights: Tensor, top_k: int, alpha: float, limit: float) -> Tensor:
    pairs, (_, rows, groups), hidden = ids.numel(), e.gate_up_scales.shape, x.shape[1]
    inter = rows // 2

    def partial(source: Tensor, blocks: Tensor, scales: Tensor, n: int, g: int, share: int) -> Tensor:
        out = x.new_empty((pairs, SPLIT, n), dtype=torch.float32)
        grid = (pairs, triton.cdiv(n, BLOCK_N), SPLIT)
        _partial_rows[grid](source, blocks, scales, ids, out, n, g, share, BLOCK_N=BLOCK_N, BLOCK_G=BLOCK_G, SPLIT=SPLIT)
        return out

    h = partial(x, e.gate_up_blocks, e.gate_up_scales, rows, groups, top_k)
    act = x.new_empty((pairs, inter), dtype=torch.float32)
    _add_swiglu[(pairs, triton.cdiv(inter, 256))](h, e.gate_up_bias, ids, act, inter, alpha, limit, BLOCK=256, SPLIT=SPLIT)
    z = partial(act, e.down_blocks, e.down_scales, hidden, inter // 32, 1)
    y = torch.empty_like(x)
    _add_combine[(len(x), triton.cdiv(hidden, 256))](z, e.down_bias, ids, weights, y, hidden, top_k, BLOCK=256, SPLIT=SPLIT)
    return y


def _tiled(x: Tensor, e: Experts, ids: Tensor, weights: Tensor, top_k: int, alpha: float, limit: float) -> Tensor:
    pairs, (count, rows, groups), hidden = ids.numel(), e.gate_up_scales.shape, x.shape[1]
    order, tile_expert = _sort(ids, count)
    dtype: Any = tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float32
    shape = {"TILE_M": TILE_M, "TILE_N": TILE_N, "TILE_G": TILE_G, "DTYPE": dtype}
    tiles = len(tile_expert)
    act = x.new_empty((pairs, rows // 2))
    grid = (tiles, triton.cdiv(rows // 2, TILE_N))
    _tile[grid](x, e.gate_up_blocks, e.gate_up_scales, e.gate_up_bias, order, tile_expert, act, rows, groups, top_k, alpha, limit, SWIGLU=True, **shape)
    z = x.new_empty((pairs, hidden), dtype=torch.float32)
    grid = (tiles, triton.cdiv(hidden, TILE_N))
    _tile[grid](act, e.down_blocks, e.down_scales, e.down_bias, order, tile_expert, z, hidden, rows // 64, 1, alpha, limit, SWIGLU=False, **shape)
    return torch.einsum("tkh,tk->th", z.view(len(x), top_k, hidden), weights.view(len(x), top_k).float()).to(x.dtype)


def _sort(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Pairs by expert, each expert's padded with -1 to whole tiles [tiles * TILE_M], and the expert of each tile [tiles]."""
    counts = torch.bincount(ids, minlength=experts)
    tiles = (counts + TILE_M - 1) // TILE_M
    tile_expert = torch.repeat_interleave(torch.arange(experts, device=ids.device), tiles)
    begin, padded = counts.cumsum(0) - counts, (tiles.cumsum(0) - tiles) * TILE_M
    by_expert = torch.argsort(ids, stable=True)
    expert = ids[by_expert].long()
    order = torch.full((len(tile_expert) * TILE_M,), -1, dtype=torch.int32, device=ids.device)
    order[padded[expert] + torch.arange(len(ids), device=ids.device) - begin[expert]] = by_expert.int()
    return order, tile_expert.int()
