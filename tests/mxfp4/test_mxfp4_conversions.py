"""Dense conversions, Q8_0, and the layout of large outputs."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest

from gptoss_adapters import mxfp4
from gptoss_adapters.mxfp4 import oracle

BF16 = ml_dtypes.bfloat16


def random_weights(*lead: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*lead, 16), np.uint8), rng.integers(0, 255, lead, np.uint8)


def test_dense_conversions_are_exact_or_rounded_like_numpy(backend: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    finite = every[(every & 0x7F80) != 0x7F80]
    np.testing.assert_array_equal(mxfp4.to_f32(finite), finite.view(BF16).astype(np.float32))
    assert mxfp4.to_f32(every.view(BF16).reshape(256, 256)).shape == (256, 256)
    with np.errstate(over="ignore"):
        assert mxfp4.to_f16(finite).tobytes() == finite.view(BF16).astype(np.float32).astype(np.float16).tobytes()
        halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        near = np.concatenate(
            [
                halves,
                np.nextafter(halves, np.float32(1e9)),
                (halves[1:] + halves[:-1]) / 2,
                -halves,
                np.float32([1e9, -1e9, 65520]),
            ]
        )
        near = np.concatenate([near, np.nextafter(near, np.float32(0))]).astype(np.float32)
        assert mxfp4.to_f16(near).tobytes() == near.astype(np.float16).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_q8_0_is_gguf_pys(backend: str, dtype: type) -> None:
    x = np.random.default_rng(6).standard_normal((40, 128)).astype(np.float32)
    x[3] = 0
    x[4] *= 1e-30
    x[5] = np.tile(np.float32([127, 0.5, 1.5, -0.5, -2.5, 0.49999997, 126.5, -126.5]), 16)
    x = x.astype(dtype)
    theirs = gguf.quants.quantize(x.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(mxfp4.to_q8_0(x), theirs)


def test_shapes_are_checked() -> None:
    blocks, scales = random_weights(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3, 16\)"):
        mxfp4.decode(blocks, scales[:1])
    with pytest.raises(ValueError, match="multiple of 32"):
        mxfp4.encode(np.ones((2, 33), np.float32))


@pytest.mark.parametrize(("rows", "groups"), [(6000, 90), (9001, 61), (500_000, 1), (3000, 240), (2000, 300)])
def test_large_outputs_are_written_past_the_caches_and_nowhere_else(backend: str, rows: int, groups: int) -> None:
    rng = np.random.default_rng(rows)
    blocks, scales = rng.integers(0, 256, (rows, groups, 16), np.uint8), rng.integers(0, 255, (rows, groups), np.uint8)
    want = oracle.hf_to_ggml(blocks, scales).reshape(-1)
    for offset in (0, 1, 63):
        around = np.full(want.size + 128, 77, np.uint8)
        begin = -around.ctypes.data % 64 + offset
        mxfp4.hf_to_ggml(blocks, scales, out=around[begin : begin + want.size].reshape(rows, -1))
        assert np.array_equal(around[begin : begin + want.size], want)
        assert (around[:begin] == 77).all() and (around[begin + want.size :] == 77).all()


def test_repacking_any_number_of_blocks_in_a_row_at_any_alignment(backend: str) -> None:
    """Kernels take 1, 4 or 64 blocks at a time and put down whole lines: every remainder and every place in a line."""
    for groups in range(1, 200):
        blocks, scales = random_weights(4, groups, seed=groups)
        for start, step in ((0, 1), (0, 2), (1, 2), (3, 4)):
            want = oracle.hf_to_ggml(blocks[start::step], scales[start::step]).reshape(-1)
            around = np.full(want.size + 192, 77, np.uint8)
            begin = 64 + groups % 64
            out = around[begin : begin + want.size].reshape(len(range(start, 4, step)), -1)
            mxfp4.hf_to_ggml(blocks, scales, out=out, row_start=start, row_step=step)
            assert np.array_equal(around[begin : begin + want.size], want), (groups, start, step)
            assert (around[:begin] == 77).all() and (around[begin + want.size :] == 77).all(), (groups, start, step)


def test_large_outputs_begin_anywhere_in_a_line(backend: str) -> None:
    blocks, scales = random_weights(6000, 90)
    want = oracle.hf_to_ggml(blocks, scales).reshape(6000, -1)
    around = np.empty(want.size + 128, np.uint8)
    for offset in range(64):
        begin = -around.ctypes.data % 64 + offset
        out = around[begin : begin + want.size].reshape(6000, -1)
        mxfp4.hf_to_ggml(blocks, scales, out=out)
        assert np.array_equal(out, want), offset
        around[:] = 0
