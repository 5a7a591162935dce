"""Encode, decode and repack MXFP4: checks the arguments, then calls the native kernel or the numpy oracle.

Blocks and scales are in the HF layout of `oracle.py`. Every function is thread-safe, and its native form runs without
the GIL.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from gptoss_adapters.errors import BadInput
from gptoss_adapters.kernels.library import address, library
from gptoss_adapters.kernels.structs import SOURCE_BF16, SOURCE_F32, EncodeRule
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.mxfp4.oracle import F32, GGML_BLOCK, HF_BLOCK, Q8_0_BLOCK, RULES, U8
from gptoss_adapters.spec import MXFP4_BLOCK

Array = npt.NDArray[Any]


def check_scales(scales: U8, file: str | Path | None = None, tensor: str | None = None) -> None:
    """Raises BadInput when a scale byte is 255: NaN in OCP, 2**128 in some engines, so no two would compute the
    same.
    """
    bad = np.flatnonzero(scales == 255)
    if bad.size:
        where = tuple(int(i) for i in np.unravel_index(int(bad[0]), scales.shape))
        raise BadInput(
            f"{bad.size} MXFP4 scale bytes are 255 (NaN), the first at {list(where)}", file=file, tensor=tensor
        )


def decode(blocks: U8, scales: U8, dtype: npt.DTypeLike = np.float32, row_start: int = 0, row_step: int = 1) -> Array:
    """blocks [..., G, 16], scales [..., G] -> values [..., G * 32], exact in float32, float64, bfloat16 and checked in
    float16.

    With `row_start` or `row_step`, leading axes count as one run of rows and every `row_step`-th is decoded: [rows, G *
    32]. Scale 255 gives NaN; 253 and 254 give Inf where float32 overflows. Raises BadInput for float16 values it cannot
    hold.
    """
    target = np.dtype(dtype)
    shape = blocks.shape[:-2] if (row_start, row_step) == (0, 1) else (-1,)
    b, s, rows, step = _take_rows(blocks, scales, row_start, row_step)
    wide = target.name == "bfloat16"
    native = library()
    if native:
        out = np.empty((rows, b.shape[1] * MXFP4_BLOCK), target if wide else np.float32)
        native.decode(address(b), address(s), rows, b.shape[1], step, address(out), SOURCE_BF16 if wide else SOURCE_F32)
    else:
        out = oracle.decode(b[::step], s[::step])
    result = out.reshape(*shape, b.shape[1] * MXFP4_BLOCK)
    if target == np.float16:
        return _narrow_to_f16(result)
    return result.astype(target, copy=False)


def _narrow_to_f16(values: F32) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values, equal_nan=True):
        raise BadInput(
            "MXFP4 values outside what float16 holds exactly (scale bytes 104..140)", hint="use bfloat16 or float32"
        )
    return half


def encode(x: Array, rule: str = "mse", scales_from: U8 | None = None) -> tuple[U8, U8]:
    """Finite values [..., G * 32] -> blocks [..., G, 16], scales [..., G], by a rule of `oracle.RULES`.

    bfloat16 is read as it is, every other float type as float32. "ggml" gives the bytes of llama.cpp, "triton" those of
    transformers. `scales_from` [..., G], the scales of the checkpoint that the values come from: a block that is
    exactly representable under its own keeps it and every -0, so blocks that were only dequantised come back byte for
    byte. Raises BadInput for a NaN or Inf, which MXFP4 cannot hold.
    """
    source, x = as_source(x)
    if not x.ndim or x.shape[-1] % MXFP4_BLOCK:
        raise ValueError(f"the last axis must be a multiple of {MXFP4_BLOCK}, got shape {x.shape}")
    lead = (*x.shape[:-1], x.shape[-1] // MXFP4_BLOCK)
    if scales_from is not None and (scales_from.shape != lead or scales_from.dtype != np.uint8):
        raise ValueError(f"scales_from must be uint8 {lead}, got {scales_from.dtype} {scales_from.shape}")
    native = library()
    if not native:
        f32 = _as_f32(x)
        finite = np.isfinite(f32)
        if not finite.all():
            _refuse_block(int(np.argmin(finite)) // MXFP4_BLOCK)
        return oracle.encode(f32, RULES[rule], scales_from)
    blocks, scales = np.empty((*lead, HF_BLOCK), np.uint8), np.empty(lead, np.uint8)
    r = RULES[rule]
    spec = EncodeRule(r.round_up, r.ties_to_even, r.keep_minus_zero, r.search)
    given = None if scales_from is None else np.ascontiguousarray(scales_from)
    of_given = None if given is None else address(given)
    bad = native.encode(
        address(x), source, scales.size, ctypes.addressof(spec), of_given, address(blocks), address(scales)
    )
    if bad >= 0:
        _refuse_block(bad)
    return blocks, scales


def _refuse_block(block: int) -> NoReturn:
    first = block * MXFP4_BLOCK
    last = first + MXFP4_BLOCK - 1
    raise BadInput(f"NaN or Inf in block {block} (values {first}..{last}): MXFP4 has neither")


def hf_to_ggml(blocks: U8, scales: U8, out: U8 | None = None, row_start: int = 0, row_step: int = 1) -> U8:
    """blocks [..., G, 16], scales [..., G] -> GGML rows [rows, G * 17]; leading axes count as one run of rows.

    Rows row_start, row_start + row_step, ... are taken: step 2 from 0 gives the gate half of gate_up, from 1 the up
    half. `out`, when given, is a C-contiguous uint8 buffer of exactly that many bytes, and is returned in that shape.
    """
    b, s, rows, step = _take_rows(blocks, scales, row_start, row_step)
    shape = (rows, b.shape[1] * GGML_BLOCK)
    if out is not None and (out.size != rows * shape[1] or out.dtype != np.uint8 or not out.flags.c_contiguous):
        raise ValueError(f"out must be {rows * shape[1]} contiguous bytes")
    result = np.empty(shape, np.uint8) if out is None else out.reshape(shape)
    native = library()
    if native:
        native.hf_to_ggml(address(b), address(s), rows, b.shape[1], step, address(result))
    else:
        result[...] = oracle.hf_to_ggml(b[::step], s[::step])
    return result


def ggml_to_hf(
    rows: U8, blocks: U8 | None = None, scales: U8 | None = None, row_start: int = 0, row_step: int = 1
) -> tuple[U8, U8]:
    """GGML rows [R, G * 17] -> blocks [R, G, 16], scales [R, G].

    Given `blocks` and `scales` (C-contiguous, any leading axes), fills their rows row_start, row_start + row_step, ...
    and returns them: twice with step 2 puts gate and up back together.
    """
    rows = np.ascontiguousarray(rows)
    n, groups = rows.shape[0], rows.shape[1] // GGML_BLOCK
    if blocks is None or scales is None:
        blocks, scales = np.empty((n, groups, HF_BLOCK), np.uint8), np.empty((n, groups), np.uint8)
    if not (blocks.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("blocks and scales must be C-contiguous to be filled in place")
    b, s, taken, step = _take_rows(blocks, scales, row_start, row_step)
    if (taken, b.shape[1]) != (n, groups) or rows.shape[1] % GGML_BLOCK:
        raise ValueError(f"rows {rows.shape} do not fit blocks {blocks.shape} from {row_start} step {row_step}")
    native = library()
    if native:
        native.ggml_to_hf(address(rows), n, groups, step, address(b), address(s))
    else:
        b[::step], s[::step] = oracle.ggml_to_hf(rows)
    return blocks, scales


def compare_ggml(blocks: U8, scales: U8, ggml: U8, row_start: int = 0, row_step: int = 1) -> int:
    """Index row * G + group of the first GGML block that is not the repacked HF one, or -1; nothing is materialised.

    Rows are taken as in `hf_to_ggml`; `ggml` holds rows * G * 17 contiguous bytes.
    """
    b, s, rows, step = _take_rows(blocks, scales, row_start, row_step)
    if ggml.size != rows * b.shape[1] * GGML_BLOCK:
        raise ValueError(f"expected {rows * b.shape[1] * GGML_BLOCK} bytes, got {ggml.size}")
    native = library()
    if native:
        return int(native.compare_ggml(address(b), address(s), rows, b.shape[1], step, address(ggml)))
    made = oracle.hf_to_ggml(b[::step], s[::step])
    differs = (made.reshape(-1, GGML_BLOCK) != ggml.reshape(-1, GGML_BLOCK)).any(axis=1)
    return int(np.argmax(differs)) if differs.any() else -1


def to_f32(x: Array, out: F32 | None = None) -> F32:
    """bfloat16 (or its uint16 bits) of any shape -> float32, exact; into `out` of the same shape when given."""
    bits = np.ascontiguousarray(x).view(np.uint16)
    result = np.empty(bits.shape, np.float32) if out is None else out
    native = library()
    if native:
        native.to_f32(address(bits), bits.size, address(result))
    else:
        np.left_shift(bits, 16, out=result.view(np.uint32), dtype=np.uint32)
    return result


def to_f16(x: Array, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
    """bfloat16 or float32 of any shape -> float16, to nearest even; what is too large becomes Inf."""
    source, x = as_source(x)
    result = np.empty(x.shape, np.float16) if out is None else out
    native = library()
    if native:
        native.to_f16(address(x), source, x.size, address(result))
    else:
        with np.errstate(over="ignore", under="ignore"):
            result[...] = _as_f32(x).astype(np.float16)
    return result


def to_q8_0(x: Array, out: U8 | None = None) -> U8:
    """bfloat16 or float32 [..., n] -> GGML Q8_0 rows uint8 [..., n / 32 * 34], byte for byte those of gguf-py."""
    source, x = as_source(x)
    if x.shape[-1] % MXFP4_BLOCK:
        raise ValueError(f"the last axis must be a multiple of {MXFP4_BLOCK}, got shape {x.shape}")
    shape = (*x.shape[:-1], x.shape[-1] // MXFP4_BLOCK * Q8_0_BLOCK)
    result = np.empty(shape, np.uint8) if out is None else out.reshape(shape)
    native = library()
    if native:
        native.to_q8_0(address(x), source, x.size // MXFP4_BLOCK, address(result))
    else:
        result[...] = oracle.to_q8_0(_as_f32(x).reshape(-1, x.shape[-1])).reshape(shape)
    return result


def as_source(x: Array) -> tuple[int, Array]:
    """The native source type and a dense array of it: bfloat16 (or uint16, taken as its bits) as it is, all else as
    float32.
    """
    if x.dtype == np.uint16 or x.dtype.name == "bfloat16":
        return SOURCE_BF16, np.ascontiguousarray(x).view(np.uint16)
    return SOURCE_F32, np.ascontiguousarray(x, np.float32)


def _as_f32(x: Array) -> F32:
    return to_f32(x) if x.dtype == np.uint16 else x


def _take_rows(blocks: U8, scales: U8, start: int, step: int) -> tuple[U8, U8, int, int]:
    """Flattens to dense blocks [R, G, 16] and scales [R, G] from row `start`, and counts the rows taken with `step`."""
    if (
        blocks.dtype != np.uint8
        or scales.dtype != np.uint8
        or blocks.shape[-1:] != (HF_BLOCK,)
        or blocks.shape[:-1] != scales.shape
    ):
        raise ValueError(
            f"expected uint8 blocks [..., G, 16] and scales [..., G], got {blocks.dtype} {blocks.shape}, "
            f"{scales.dtype} {scales.shape}"
        )
    groups = scales.shape[-1]
    b = np.ascontiguousarray(blocks).reshape(-1, groups, HF_BLOCK)[start:]
    s = np.ascontiguousarray(scales).reshape(-1, groups)[start:]
    return b, s, -(-len(b) // step), step
