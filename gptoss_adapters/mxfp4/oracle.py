"""The MXFP4 codec in plain numpy: slow, obvious, and what every native kernel is compared with, bit for bit.

A block is 32 values: 4-bit e2m1 codes and one e8m0 scale byte, value = e2m1[code] * 2**(scale - 127) (OCP Microscaling
Formats v1.0). Two nibble orders exist. HF and OpenAI: `blocks[..., G, 16]` uint8, byte j holds value 2j in its low
nibble and value 2j + 1 in its high one; `scales[..., G]` uint8. GGML: 17 bytes, the scale first, then byte j holds
values j and 16 + j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptoss_adapters.spec import MXFP4_BLOCK

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

HF_BLOCK, GGML_BLOCK, Q8_0_BLOCK = MXFP4_BLOCK // 2, 1 + MXFP4_BLOCK // 2, 2 + MXFP4_BLOCK  # bytes in a block
MAX_SCALE = 252  # the largest whose values are all finite; quantisers saturate rather than write a larger one

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
THRESHOLDS = (E2M1[:7] + E2M1[1:8]) / 2  # midpoints between magnitudes


@dataclass(frozen=True)
class Rule:
    """How a block's scale and codes are chosen.

    `round_up` is added to the float32 bits of the largest magnitude before its exponent is taken, so that it carries
    into the exponent from a certain mantissa on; the scale is that exponent - 2, so the largest magnitude lies in [4,
    8) when nothing is added. `search` also tries the scale one above and one below and keeps the smallest squared
    error, the first scale where
    errors are equal: no scale further away can be better (a test tries them all).
    """

    round_up: int
    ties_to_even: bool
    keep_minus_zero: bool
    search: bool = False


RULES = {
    "ocp": Rule(0, True, True),  # OCP section 6.3: floor(log2 amax) - 2; torchao FLOOR
    "ggml": Rule(0, False, False),  # quantize_row_mxfp4_ref, its scale clamped at 0 where it would wrap
    "triton": Rule(0x3FFFFF, True, True),  # ceil(log2(amax / 6)): triton_kernels ROUND_UP, transformers, torchao RCEIL
    "even": Rule(0x200000, True, True),  # amax >= 1.75 * 2**k counts as 2**(k + 1): torchao EVEN, compressed-tensors
    "mse": Rule(0, True, True, search=True),
}


def codes(blocks: U8) -> U8:
    """blocks [..., G, 16] -> codes [..., G, 32] in value order."""
    return np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], MXFP4_BLOCK)


def pack(code: U8) -> U8:
    """codes [..., G, 32] -> blocks [..., G, 16]."""
    return (code[..., 0::2] | code[..., 1::2] << 4).astype(np.uint8)


def decode(blocks: U8, scales: U8) -> F32:
    """blocks [..., G, 16], scales [..., G] -> float32 [..., G * 32]; scale 255 gives NaN, an overflow (253, 254)
    Inf.
    """
    with np.errstate(over="ignore"):
        values = np.ldexp(E2M1[codes(blocks)], scales[..., None].astype(np.int32) - 127)
    values = np.where(scales[..., None] == 255, np.float32(np.nan), values)
    return values.reshape(*blocks.shape[:-2], -1)


def hf_to_ggml(blocks: U8, scales: U8) -> U8:
    """blocks [R, G, 16], scales [R, G] -> rows [R, G * 17]."""
    code = codes(blocks)
    nibbles = code[..., :16] | code[..., 16:] << 4
    return np.concatenate([scales[..., None], nibbles], axis=-1).reshape(len(blocks), blocks.shape[1] * GGML_BLOCK)


def ggml_to_hf(rows: U8) -> tuple[U8, U8]:
    """rows [R, G * 17] -> blocks [R, G, 16], scales [R, G]."""
    block = rows.reshape(len(rows), rows.shape[1] // GGML_BLOCK, GGML_BLOCK)
    nibbles = block[..., 1:]
    return pack(np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)), np.ascontiguousarray(block[..., 0])


def encode(x: F32, rule: Rule, scales_from: U8 | None = None) -> tuple[U8, U8]:
    """Finite float32 [..., G * 32] -> blocks [..., G, 16], scales [..., G].

    A block that is exactly representable under its scale in `scales_from` takes that one, and keeps every -0.
    """
    v = x.reshape(*x.shape[:-1], -1, MXFP4_BLOCK)
    amax = np.abs(v).max(axis=-1)
    exponent = ((amax.view(np.uint32) + np.uint32(rule.round_up)) >> 23).astype(np.int32)
    scale = np.clip(exponent - 2, 0, MAX_SCALE)
    code = _round_magnitudes(v, scale, rule)
    if rule.search:
        first, first_code = scale, code
        for step in (1, -1):
            trial = first + step
            other = _round_magnitudes(v, trial, rule)
            better = (trial >= 0) & (trial <= MAX_SCALE) & (_compare_errors(v, first, first_code, other, 2.0**step) < 0)
            code, scale = np.where(better[..., None], other, code), np.where(better, trial, scale)
    keep = np.full(amax.shape, rule.keep_minus_zero)
    if scales_from is not None:
        given = scales_from.astype(np.int32)
        other = _round_magnitudes(v, given, rule)
        with np.errstate(over="ignore"):
            exact = (np.ldexp(E2M1[other], given[..., None] - 127) == np.abs(v)).all(axis=-1) & (given <= MAX_SCALE)
        code, scale, keep = np.where(exact[..., None], other, code), np.where(exact, given, scale), keep | exact
    negative = np.signbit(v) & ((code > 0) | keep[..., None])
    return pack((code | np.where(negative, 8, 0)).astype(np.uint8)), scale.astype(np.uint8)


def _round_magnitudes(v: F32, scale: npt.NDArray[np.int32], rule: Rule) -> U8:
    """Codes 0..7 of |v| / 2**(scale - 127), saturating; ties to the smaller magnitude, or to the even code."""
    a = np.abs(np.ldexp(v.astype(np.float64), 127 - scale[..., None]))
    above = [(a > t) | ((a == t) & (rule.ties_to_even and k % 2 == 1)) for k, t in enumerate(THRESHOLDS)]
    total: U8 = np.sum(above, axis=0, dtype=np.uint8)
    return total


def _compare_errors(v: F32, scale: npt.NDArray[np.int32], code: U8, other: U8, unit: float) -> npt.NDArray[np.float64]:
    """Per block, how much larger the squared error is with codes `other` at `unit` times the scale; in units of the
    scale.

    (a - p)**2 - (a - q)**2 = (p - q)(p + q - 2a): short numbers, so that float64 is exact and the order of the sum does
    not matter.
    """
    a = np.abs(np.ldexp(v.astype(np.float64), 127 - scale[..., None]))
    p, q = unit * E2M1[other].astype(np.float64), E2M1[code].astype(np.float64)
    more: npt.NDArray[np.float64] = np.sum((p - q) * (p + q - 2 * a), axis=-1)
    return more


def to_q8_0(x: F32) -> U8:
    """float32 [R, n] -> GGML Q8_0 rows [R, n / 32 * 34]: a half d = amax / 127, then 32 int8 of x / d, halves away
    from 0.
    """
    v = x.reshape(len(x), -1, MXFP4_BLOCK)
    d = (np.abs(v).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        q = v * np.where(d == 0, np.float32(0), np.float32(1) / d)
        rounded = np.sign(q) * (np.floor(np.abs(q)) + (np.abs(q) % 1 >= 0.5))
        half = d.astype(np.float16)
    packed = np.concatenate([half.view(np.uint8), rounded.astype(np.int8).view(np.uint8)], axis=-1)
    return packed.reshape(len(x), -1)
