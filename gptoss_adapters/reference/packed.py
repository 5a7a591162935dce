"""Dense bfloat16 weights held in 12 bits each, without loss: a token reads a quarter less of them.

Trained weights use few exponents, so a nibble tells most of them; the others are listed (see
`kernels/native/bf16_packed.h`). Products are those of the unpacked weights, exact as always; only the order of the
sums is another.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels.library import address, loaded
from gptoss_adapters.kernels.structs import PackedMatrix
from gptoss_adapters.reference.native_ops import threads

GROUP, GROUP_BYTES = 64, 96
NIBBLE_EXPONENTS = 15
WORTH = 0.005  # share of listed weights up to which packing pays
FAST = ("avx512vnni", "avx512vbmi", "amx")  # where unpacking keeps up with memory


class PackedWeight:
    """A matrix [rows, width]. `shape` as a tensor's; `nbytes` of everything held."""

    def __init__(self, arrays: tuple[np.ndarray[Any, Any], ...], shape: tuple[int, int], base: int) -> None:
        self.shape, self.arrays, self.nbytes = torch.Size(shape), arrays, sum(a.nbytes for a in arrays)
        self._matrix = PackedMatrix(*map(address, arrays), *shape, -(-shape[1] // GROUP), base, 0)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [.., width] float32 on the CPU, bias [rows] float32 -> [.., rows]."""
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self.shape[0]))
        at = None if bias is None else bias.data_ptr()
        loaded().linear_packed(self._at(), at, x.numel() // x.shape[-1], x.data_ptr(), out.data_ptr())
        return out

    def rows(self, begin: int, end: int) -> Tensor:
        """The rows as they were: [end - begin, width] bfloat16."""
        out = torch.empty((end - begin, self.shape[1]), dtype=torch.bfloat16)
        loaded().unpack_rows(self._at(), begin, end, out.data_ptr())
        return out

    def _at(self) -> int:
        self._matrix.threads = threads()
        return ctypes.addressof(self._matrix)


def packs() -> bool:
    """Whether this machine's kernels multiply packed weights at the speed of memory."""
    return mxfp4.backend() in FAST


def pack(weight: Tensor) -> PackedWeight | None:
    """weight [rows, width] bfloat16, contiguous -> the same in 12 bits; None where too many exponents are out of
    the ordinary.
    """
    (rows, width), native, groups = weight.shape, loaded(), -(-weight.shape[1] // GROUP)
    counts = np.zeros(256, np.int64)
    native.pack_count(weight.data_ptr(), weight.numel(), address(counts))
    covered = np.convolve(counts[1:], np.ones(NIBBLE_EXPONENTS, np.int64), "valid")
    base = int(covered.argmax())  # exponents base + 1 .. base + 15 have a nibble, and so has 0
    if counts[1:].sum() - covered[base] > WORTH * counts.sum():
        return None
    data, first = np.empty((rows, groups, GROUP_BYTES), np.uint8), np.zeros(rows + 1, np.int64)
    matrix = PackedMatrix(address(data), address(first), None, None, rows, width, groups, base, threads())
    native.pack_rows(weight.data_ptr(), ctypes.addressof(matrix))
    np.cumsum(first, out=first)
    column, value = np.empty(first[-1], np.int32), np.empty(first[-1], np.uint16)
    matrix.column, matrix.value = address(column), address(value)
    native.pack_listed(weight.data_ptr(), ctypes.addressof(matrix))
    return PackedWeight((data, first, column, value), (rows, width), base)
