"""The operations that a model computes with, chosen once, when the model is made.

`model.py` defines every operation in plain torch and calls it through an `Ops` value. `choose_ops` takes these
definitions and returns what a model of this dtype on this device uses: the definitions themselves, or on a CPU in
float32 the native kernels for steps of a few tokens. Whoever wants another operation passes another `Ops`
(`dataclasses.replace`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gptoss_adapters.kernels.library import library
from gptoss_adapters.reference import native_ops
from gptoss_adapters.reference.linear import linear_on_kernels

ATTENTION_BYTES = 64 << 20  # bound on one chunk of attention scores

Linear = Callable[[Tensor, Any, Tensor | None], Tensor]  # the weight: a tensor, or packed
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int | None], Tensor]


def compute_freely(tokens: int) -> AbstractContextManager[None]:
    """Nothing to arrange around a forward pass."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Ops:
    """B rows of T tokens on S keys, n query heads and n_kv key heads of hd, E experts of which K are chosen.

    linear: x [.., in], weight [out, in], bias [out] or None -> [.., out].
    rms_norm: x [.., H], scale [H], eps -> [.., H].
    rotate: x [B, T, n, hd], cos and sin [B, T, 1, hd / 2] -> [B, T, n, hd].
    attend: q [B, T, n, hd], k and v [B, S, n_kv, hd], sinks [n], positions of queries [B, T] and of keys [B, S],
    window or None -> [B, T, n * hd].
    choose: router scores [.., E], K -> experts [.., K], the best first.
    weigh: router scores [.., E], chosen [.., K] -> their weights [.., K].
    swiglu: gate and up [.., 2I], alpha, limit -> [.., I]; asked only by experts that are computed in torch.
    step: number of tokens -> what surrounds a forward pass of so many.
    """

    linear: Linear
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    attend: Attend
    choose: Callable[[Tensor, int], Tensor]
    weigh: Callable[[Tensor, Tensor], Tensor]
    swiglu: Callable[[Tensor, float, float], Tensor]
    step: Callable[[int], AbstractContextManager[None]] = compute_freely


def choose_ops(definition: Ops, dtype: torch.dtype, device: torch.device, experts: str) -> Ops:
    """What a model uses for these operations. experts: "oracle" wants torch alone."""
    plain = replace(definition, attend=in_chunks(definition.attend))
    on_cpu = dtype == torch.float32 and device.type == "cpu"
    if experts == "oracle" or not on_cpu:
        return plain
    if library() is None:  # the same threads as with kernels, and so the same order of sums
        return replace(plain, step=spare_threads)
    return on_kernels(plain)


def spare_threads(tokens: int) -> AbstractContextManager[None]:
    """Torch's own operations get one thread while a few tokens are computed (see `native_ops.small_step`)."""
    return native_ops.small_step() if tokens <= native_ops.NATIVE_ROWS else nullcontext()


def in_chunks(attend: Attend) -> Attend:
    """The same attention, some queries at a time, so that the scores take a bounded amount of memory."""

    def attend_in_chunks(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None
    ) -> Tensor:
        b, t, n, _ = q.shape
        step = max(1, ATTENTION_BYTES // (b * n * k.shape[1] * q.element_size()))
        past = k.shape[1] - t  # query column lo stands at key column past + lo
        out = []
        for lo in range(0, t, step):
            hi = min(lo + step, t)
            first = 0 if window is None else max(0, past + lo - window + 1)
            keys = slice(first, past + hi)  # all that these queries can see
            part = attend(q[:, lo:hi], k[:, keys], v[:, keys], sinks, q_pos[:, lo:hi], k_pos[:, keys], window)
            out.append(part)
        return torch.cat(out, 1)

    return attend_in_chunks


def on_kernels(plain: Ops) -> Ops:
    """Native operations for a few tokens, and the plain ones for more, where torch is as fast."""

    def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
        native = native_ops.usable(x, x.numel() // x.shape[-1]) and x.is_contiguous()
        return (native_ops.rms_norm if native else plain.rms_norm)(x, scale, eps)

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        native = native_ops.usable(x, x.shape[0] * x.shape[1])
        return (native_ops.rotate if native else plain.rotate)(x, cos, sin)

    def attend(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None
    ) -> Tensor:
        b, t, n, _ = q.shape
        native = native_ops.usable(q, b * t) and n <= native_ops.MAX_GROUP * k.shape[2]
        return (native_ops.attend if native else plain.attend)(q, k, v, sinks, q_pos, k_pos, window)

    linear = linear_on_kernels
    return replace(plain, linear=linear, rms_norm=rms_norm, rotate=rotate, attend=attend, step=spare_threads)
