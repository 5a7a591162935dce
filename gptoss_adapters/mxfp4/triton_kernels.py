"""The expert layer on GPUs: Triton kernels that multiply with MXFP4 weights in the HF layout as they lie in memory.

Few tokens: one program per (token, expert) pair, rows and a share of K (split-K), since one token alone cannot fill a
GPU; a second kernel adds the shares in a fixed order with bias and SwiGLU, or bias and routing weights. No shape
depends on the routing and nothing waits for the host, so a CUDA graph can hold it. Many tokens: pairs sorted by expert,
each expert's padded to whole tiles, one matrix product per tile with bias and SwiGLU in its last step.

Importing this module needs triton. `TRITON_INTERPRET=1`, set before the import, runs it on CPU tensors.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

DECODE_PAIRS = 64  # up to so many (token, expert) pairs the split-K path serves
BLOCK_N, BLOCK_G, SPLIT = 64, 8, 4  # split-K: rows, blocks of 32 values a step, shares of K
TILE_N, TILE_G, WARPS = 128, 2, 8  # tiles: rows, blocks a step, warps


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
def _halves(word, PAIR: tl.constexpr):
    """Codes PAIR and PAIR + 4 of the eight in each uint32 word, times 2**-14, as float32.

    Both at once as two float16 in one word: exponent and mantissa of a code are the upper bits of theirs, and its code
    for 0.5 is one of their subnormals, so that shifting is all there is to do.
    """
    sign = (word << (12 - 4 * PAIR)) & 0x80008000
    size = (word << (9 - 4 * PAIR) if PAIR < 3 else word >> 3) & 0x0E000E00
    both = sign | size
    low, high = (both & 0xFFFF).to(tl.uint16), (both >> 16).to(tl.uint16)
    return low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _unit(scale):
    """Scale bytes (int32) -> 2**(scale - 127); byte 0 is subnormal."""
    return tl.where(scale == 0, 0x00400000, scale << 23).to(tl.float32, bitcast=True)


@triton.jit
def _swiglu(gate, up, alpha, limit):
    g, u = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit)
    return g / (1 + tl.exp(-alpha * g)) * (u + 1)


@triton.jit
def _partial_rows(
    x,
    words,
    scales,
    ids,
    out,
    rows,
    groups: tl.constexpr,
    share,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """out[pair, split, row] = this share of K of the row of the pair's expert times x[pair // share]. words: blocks
    as int32.
    """
    pair, split = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (tl.load(ids + pair).to(tl.int64) * rows + row) * groups  # [BLOCK_N]
    x += (pair // share) * groups * 32
    total = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for first in range(0, groups, SPLIT * BLOCK_G):
        group = first + split * BLOCK_G + tl.arange(0, BLOCK_G)
        known = (row < rows)[:, None] & (group < groups)[None, :]
        s = tl.load(scales + at[:, None] + group[None, :], known, 0).to(tl.int32)
        block = (at[:, None] + group[None, :])[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        w = tl.load(words + block, known[:, :, None], 0).to(tl.uint32, bitcast=True)  # [BLOCK_N, BLOCK_G, 4]
        k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
        v = tl.load(x + k, (group < groups)[:, None], 0).to(tl.float32)
        even, odd = tl.split(
            tl.reshape(v, (BLOCK_G, 4, 2, 2, 2))
        )  # value 8 i + 4 h + 2 b + a of a block: word i, code 4 h + 2 b + a
        even0, even1 = tl.split(even)
        odd0, odd1 = tl.split(odd)
        x0, x4 = tl.split(even0)
        x1, x5 = tl.split(odd0)
        x2, x6 = tl.split(even1)
        x3, x7 = tl.split(odd1)
        sums = tl.zeros([BLOCK_N, BLOCK_G, 4], tl.float32)
        first_four, last_four = (x0, x1, x2, x3), (x4, x5, x6, x7)
        for code in tl.static_range(4):
            low, high = _halves(w, code)
            sums += low * first_four[code][None, :, :]
            sums += high * last_four[code][None, :, :]
        total += tl.sum(sums, axis=2) * 16384 * _unit(s)
    tl.store(out + (pair * SPLIT + split) * rows + row, tl.sum(total, axis=1), row < rows)


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
def _add_combine(
    partial, bias, ids, weights, out, hidden, top_k: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr
):
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
def _tile(
    x,
    blocks,
    scales,
    bias,
    order,
    tile_expert,
    out,
    rows,
    groups: tl.constexpr,
    share,
    alpha,
    limit,
    SWIGLU: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_G: tl.constexpr,
    PIECES: tl.constexpr,
):
    """out[pair, n] for TILE_M pairs of one expert: row n, or SwiGLU of rows 2 n and 2 n + 1. Pair -1 is padding.

    The product is Triton's own for microscaled operands, which takes bfloat16 beside them: a float32 is the sum of
    three.
    """
    expert = tl.load(tile_expert + tl.program_id(0)).to(tl.int64)
    pair = tl.load(order + tl.program_id(0) * TILE_M + tl.arange(0, TILE_M))
    row = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    at = (expert * rows + row) * groups
    source = x + (pair // share)[:, None].to(tl.int64) * groups * 32
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    for first in range(0, groups, TILE_G):
        group, byte, k = (
            first + tl.arange(0, TILE_G),
            first * 16 + tl.arange(0, TILE_G * 16),
            first * 32 + tl.arange(0, TILE_G * 32),
        )
        w = tl.load(blocks + at[None, :] * 16 + byte[:, None], (byte < groups * 16)[:, None] & (row < rows)[None, :], 0)
        s = tl.load(scales + at[:, None] + group[None, :], (row < rows)[:, None] & (group < groups)[None, :], 127)
        v = tl.load(source + k[None, :], (pair >= 0)[:, None] & (k < groups * 32)[None, :], 0)
        for _ in tl.static_range(PIECES):
            piece = v.to(tl.bfloat16)
            total = tl.dot_scaled(piece, None, "bf16", w, s, "e2m1", total)
            rest = v - piece.to(v.dtype)
            v = tl.where(rest == rest, rest, 0)  # what is left of an infinity
    total += tl.load(bias + expert * rows + row, row < rows, 0).to(tl.float32)[None, :]
    if SWIGLU:
        gate, up = tl.split(tl.reshape(total, (TILE_M, TILE_N // 2, 2)))
        n, outputs = tl.program_id(1) * (TILE_N // 2) + tl.arange(0, TILE_N // 2), rows // 2
        y = _swiglu(gate, up, alpha, limit)
    else:
        n, outputs, y = row, rows, total
    tl.store(out + pair[:, None].to(tl.int64) * outputs + n[None, :], y, (pair >= 0)[:, None] & (n < outputs)[None, :])


def moe(x: Tensor, experts: Experts, topk_ids: Tensor, topk_weights: Tensor, alpha: float, limit: float) -> Tensor:
    """x [T, H] float32 or bfloat16, topk_ids [T, K] integer, topk_weights [T, K] -> [T, H] of x's dtype; sums are
    float32.
    """
    ids = topk_ids.reshape(-1).to(torch.int32)
    serve = _split_k if ids.numel() <= DECODE_PAIRS else _tiled
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # a kernel starts on the current device
        return serve(
            x.contiguous(), experts, ids, topk_weights.reshape(-1).contiguous(), topk_ids.shape[1], alpha, limit
        )


def _split_k(x: Tensor, e: Experts, ids: Tensor, weights: Tensor, top_k: int, alpha: float, limit: float) -> Tensor:
    pairs, (_, rows, groups), hidden = ids.numel(), e.gate_up_scales.shape, x.shape[1]
    inter = rows // 2

    def partial(source: Tensor, blocks: Tensor, scales: Tensor, n: int, g: int, share: int) -> Tensor:
        out = x.new_empty((pairs, SPLIT, n), dtype=torch.float32)
        grid = (pairs, triton.cdiv(n, BLOCK_N), SPLIT)
        _partial_rows[grid](
            source,
            blocks.view(torch.int32),
            scales,
            ids,
            out,
            n,
            g,
            share,
            BLOCK_N=BLOCK_N,
            BLOCK_G=BLOCK_G,
            SPLIT=SPLIT,
        )
        return out

    h = partial(x, e.gate_up_blocks, e.gate_up_scales, rows, groups, top_k)
    act = x.new_empty((pairs, inter), dtype=torch.float32)
    _add_swiglu[(pairs, triton.cdiv(inter, 256))](
        h, e.gate_up_bias, ids, act, inter, alpha, limit, BLOCK=256, SPLIT=SPLIT
    )
    z = partial(act, e.down_blocks, e.down_scales, hidden, inter // 32, 1)
    y = torch.empty_like(x)
    _add_combine[(len(x), triton.cdiv(hidden, 256))](
        z, e.down_bias, ids, weights, y, hidden, top_k, BLOCK=256, SPLIT=SPLIT
    )
    return y


def _tiled(x: Tensor, e: Experts, ids: Tensor, weights: Tensor, top_k: int, alpha: float, limit: float) -> Tensor:
    pairs, (count, rows, groups), hidden = ids.numel(), e.gate_up_scales.shape, x.shape[1]
    pieces = 1 if x.dtype == torch.bfloat16 else 3
    # larger tiles would not fit the registers
    tile_m = min(128 if pieces == 1 else 64, max(16, triton.next_power_of_2(pairs // count)))
    order, tile_expert = _sort(ids, count, tile_m)
    sizes = {"TILE_M": tile_m, "TILE_N": TILE_N, "TILE_G": TILE_G, "PIECES": pieces, "num_warps": WARPS}
    tiles = len(tile_expert)

    up = (x, e.gate_up_blocks, e.gate_up_scales, e.gate_up_bias, order, tile_expert)
    act = x.new_empty((pairs, rows // 2))
    _tile[tiles, triton.cdiv(rows, TILE_N)](*up, act, rows, groups, top_k, alpha, limit, SWIGLU=True, **sizes)

    down = (act, e.down_blocks, e.down_scales, e.down_bias, order, tile_expert)
    z = x.new_empty((pairs, hidden), dtype=torch.float32)
    _tile[tiles, triton.cdiv(hidden, TILE_N)](*down, z, hidden, rows // 64, 1, alpha, limit, SWIGLU=False, **sizes)
    return torch.einsum("tkh,tk->th", z.view(len(x), top_k, hidden), weights.view(len(x), top_k).float()).to(x.dtype)


def _sort(ids: Tensor, experts: int, tile_m: int) -> tuple[Tensor, Tensor]:
    """Pairs by expert, each expert's padded with -1 to whole tiles [tiles * tile_m], and the expert of each tile
    [tiles].
    """
    counts = torch.bincount(ids, minlength=experts)
    tiles = (counts + tile_m - 1) // tile_m
    tile_expert = torch.repeat_interleave(torch.arange(experts, device=ids.device), tiles)
    begin, padded = counts.cumsum(0) - counts, (tiles.cumsum(0) - tiles) * tile_m
    by_expert = torch.argsort(ids, stable=True)
    expert = ids[by_expert].long()
    order = torch.full((len(tile_expert) * tile_m,), -1, dtype=torch.int32, device=ids.device)
    order[padded[expert] + torch.arange(len(ids), device=ids.device) - begin[expert]] = by_expert.int()
    return order, tile_expert.int()
