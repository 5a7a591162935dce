"""Attention as ggml computes it where keys and values are not float32: it rounds more than what the cache stores.

Without flash attention both products round their other input to the cache's type too: the queries, and the softmax's
weights. With flash attention keys and values of float32 become float16 first. From 64 queries a step on, ggml goes in
tiles and sums in float32; below, key by key, with queries in the cache's type and, for float16 values, the running sum
in float16. Read in llama.cpp's build_attn_mha and ggml's ggml_compute_forward_flash_attn_ext.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 64  # queries in a step from which ggml's flash attention goes in tiles
_STEP = 256  # queries at once without flash attention

Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RoundedAttention:
    """In the place of the reference's `attend`. rounded: to the cache's type. step: queries that flash attention gets
    at once; 0: no flash attention.
    """

    rounded: Round
    tiles: bool
    half_sum: bool
    step: int

    @classmethod
    def of(cls, cache: str, step: int, rounds: dict[str, Round]) -> RoundedAttention:
        """cache: its type, one of `rounds`."""
        kind = "f16" if step and cache == "f32" else cache
        return cls(rounds[kind], tiles=kind == "f16", half_sum=kind == "f16", step=step)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None
    ) -> Tensor:
        b, t, n, hd = q.shape
        k, v = self.rounded(k), self.rounded(v)
        past = k.shape[1] - t
        out = []
        for lo in range(0, t, self.step or _STEP):
            hi = min(lo + (self.step or _STEP), t)
            tiled = self.tiles and hi - lo >= TILE
            part = q[:, lo:hi] if self.step and tiled else self.rounded(q[:, lo:hi])
            scores = _scores(part, k[:, : past + hi], q_pos[:, lo:hi], k_pos[:, : past + hi], window)
            sink = _broadcast(sinks, scores)
            if self.step and not tiled and self.half_sum:
                out.append(_key_by_key(scores, v, sink))
                continue
            weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
            if not self.step:
                weights = self.rounded(weights)
            out.append(torch.einsum("bkgts,bskd->btkgd", weights, v[:, : past + hi]))
        return torch.cat(out, 1).reshape(b, t, n * hd)


def _scores(q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """[B, Nkv, G, T, S], hidden keys at -inf."""
    b, t, n, hd = q.shape
    n_kv = k.shape[2]
    scores = torch.einsum("btkgd,bskd->bkgts", q.view(b, t, n_kv, n // n_kv, hd), k) * hd**-0.5
    distance = q_pos[:, :, None] - k_pos[:, None, :]
    hidden = (distance < 0) | (k_pos[:, None, :] < 0)
    if window is not None:
        hidden |= distance >= window
    masked: Tensor = scores.masked_fill(hidden[:, None, None], -math.inf)
    return masked


def _broadcast(sinks: Tensor, scores: Tensor) -> Tensor:
    """sinks [n] -> [B, Nkv, G, T, 1]."""
    b, n_kv, group, t, _ = scores.shape
    return sinks.to(scores.dtype).view(1, n_kv, group, 1, 1).expand(b, -1, -1, t, 1)


def _key_by_key(scores: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """scores [B, Nkv, G, T, S], v [B, S, Nkv, D] -> [B, T, Nkv, G, D], the running sum in float16 until the sink
    joins.
    """
    top = torch.full_like(scores[..., :1], -math.inf)
    total = torch.zeros_like(top)
    out = scores.new_zeros((*scores.shape[:-1], v.shape[-1]))
    for i in range(scores.shape[-1]):
        out, total, top = _join(out, total, top, scores[..., i : i + 1], v[:, i, :, None, None], half=True)
    out, total, top = _join(out, total, top, sinks, None, half=False)
    return (out / total).permute(0, 3, 1, 2, 4)


def _join(
    out: Tensor, total: Tensor, top: Tensor, score: Tensor, value: Tensor | None, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One more key (or the sink, which has no value) in a softmax that is computed as it goes."""
    new = torch.maximum(top, score)
    shrink = torch.where(new > top, (top - new).exp(), 1.0)
    weight = torch.where(score > -math.inf, (score - new).exp(), 0.0)
    out = out * shrink
    if half:
        out = out.half().to(score.dtype)
    if value is not None:
        out = out + weight * value
        out = out.half().to(score.dtype) if half else out
    return out, total * shrink + weight, new
