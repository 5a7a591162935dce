"""What a step of a few tokens runs natively beside its products: for one token, starting an operation of torch costs
more than the operation. The definitions are in `model.py`; these give the same but for the last bits of float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from gptoss_adapters.kernels.library import loaded
from gptoss_adapters.kernels.structs import AttendArguments

NATIVE_ROWS = 16  # above this, widening a weight once and one matmul is faster, unless the kernels have AMX
MAX_GROUP = 64  # attention.h: query heads of a key head

_of_kernels: ContextVar[int] = ContextVar("threads of the kernels in a small step", default=0)


def usable(x: Tensor, tokens: int) -> bool:
    """Whether the native operations, if they are at hand, take x of so many tokens: few, float32, on a CPU."""
    return tokens <= NATIVE_ROWS and x.dtype == torch.float32 and x.device.type == "cpu"


def threads() -> int:
    """The kernels use as many threads as torch (`torch.set_num_threads`), so that the two do not compete."""
    return _of_kernels.get() or torch.get_num_threads()


@contextmanager
def small_step() -> Iterator[None]:
    """For a few tokens: the kernels keep their threads, torch's own small operations get one. Two pools that wait for
    work by spinning take each other's cores: on 2 cores that cost a sixth of the decoding speed.
    """
    n = torch.get_num_threads()
    token = _of_kernels.set(n)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)
        _of_kernels.reset(token)


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [.., in] float32, weight [out, in] bfloat16, bias [out] float32 -> [.., out]; all contiguous, which is not
    checked.
    """
    rows, (n, k) = x.numel() // x.shape[-1], weight.shape
    out = x.new_empty((*x.shape[:-1], n))
    at = None if bias is None else bias.data_ptr()
    loaded().linear_bf16(weight.data_ptr(), at, n, k, rows, x.data_ptr(), threads(), out.data_ptr())
    return out


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As `model.rms_norm`: x [.., H] contiguous, scale [H], both float32."""
    out = torch.empty_like(x)
    loaded().rms_norm(x.data_ptr(), scale.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], eps, out.data_ptr())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `model.rotate`, bit for bit: x [B, T, n, hd], cos and sin [B, T, 1, hd / 2], all contiguous float32."""
    b, t, n, hd = x.shape
    out = torch.empty_like(x)
    loaded().rotate(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), b * t, n, hd // 2, out.data_ptr())
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """As `model.attend`; sinks float32. Keys and values may be the first columns of a longer buffer."""
    b, t, n, hd = q.shape
    q, q_pos = q.contiguous(), q_pos.contiguous()
    if k.stride()[1:] != (k.shape[2] * hd, hd, 1) or v.stride() != k.stride() or k_pos.stride(1) != 1:
        k, v, k_pos = k.contiguous(), v.contiguous(), k_pos.contiguous()
    out = q.new_empty((b, t, n * hd))
    tensors = (x.data_ptr() for x in (q, k, v, sinks, q_pos, k_pos, out))
    arguments = AttendArguments(
        *tensors, k.stride(0), k_pos.stride(0), b, t, k.shape[1], n, k.shape[2], hd, window or 0, threads()
    )
    loaded().attend(ctypes.addressof(arguments))
    return out
