"""The native products against float64 on exactly decoded weights: accuracy, odd shapes, edge values, thread counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.isas import native_only
from helpers.products import BOUND, activations, relative_rms, truth, weights

from gptoss_adapters import mxfp4
from gptoss_adapters.mxfp4 import products


@pytest.mark.parametrize("precision", list(products.PRECISIONS))
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 7, 90])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 33])
def test_matmul_is_within_its_bound(backend: str, precision: str, groups: int, tokens: int) -> None:
    blocks, scales = weights(67, groups)
    x = activations(tokens, groups)
    bias = np.random.default_rng(2).standard_normal(67).astype(np.float32)
    y = mxfp4.matmul(x, blocks, scales, bias, threads=2, precision=precision)
    assert y.dtype == np.float32
    assert relative_rms(y, truth(x, blocks, scales) + bias) <= BOUND[precision]


def test_float64_is_the_oracle_at_full_precision(backend: str) -> None:
    blocks, scales = weights(8, 3)
    x = activations(2, 3).astype(np.float64)
    np.testing.assert_array_equal(mxfp4.matmul(x, blocks, scales), truth(x, blocks, scales))


@native_only
@pytest.mark.parametrize("precision", list(products.PRECISIONS))
@pytest.mark.parametrize("tokens", [1, 3, 5, 40, 700])
def test_equal_on_every_thread_count(backend: str, precision: str, tokens: int) -> None:
    blocks, scales = weights(203, 9)
    x = activations(tokens, 9)
    first = mxfp4.matmul(x, blocks, scales, threads=1, precision=precision)
    for threads in (2, 3, 4, 7):
        assert mxfp4.matmul(x, blocks, scales, threads=threads, precision=precision).tobytes() == first.tobytes()


@native_only
@pytest.mark.parametrize("precision", list(products.PRECISIONS))
def test_a_token_does_not_depend_on_its_neighbours(backend: str, precision: str) -> None:
    """As long as one kernel serves both: another takes over from 4 tokens on, and AMX from 14 on."""
    blocks, scales = weights(40, 6)
    x = activations(3, 6)
    together = mxfp4.matmul(x, blocks, scales, precision=precision)
    for t in range(3):
        assert mxfp4.matmul(x[t : t + 1], blocks, scales, precision=precision).tobytes() == together[t].tobytes()


@pytest.mark.parametrize("precision", ["q16", "q24", "f32"])
@pytest.mark.parametrize("scale", [0, 1, 2, 253, 254])
@pytest.mark.parametrize("tokens", [1, 9, 20])
def test_extreme_scales(backend: str, precision: str, scale: int, tokens: int) -> None:
    """2^-127 is subnormal in float32; 2^127 times 6 is not even finite, but a small activation brings it back."""
    blocks, _ = weights(32, 4)
    codes = blocks.copy()
    if scale > 252:  # keep |code| <= 1.5, so that the weight itself is a float32
        codes &= 0x33
    scales = np.full((32, 4), scale, np.uint8)
    x = activations(tokens, 4) * np.float32(2.0**-20 if scale > 252 else 2.0**40)
    y = mxfp4.matmul(x, codes, scales, precision=precision)
    assert relative_rms(y, truth(x, codes, scales)) <= BOUND[precision]


@native_only
def test_subnormal_results_survive_flush_to_zero(backend: str) -> None:
    import torch

    blocks, scales = weights(8, 2)[0], np.zeros((8, 2), np.uint8)
    x = activations(1, 2)
    expected = mxfp4.matmul(x, blocks, scales, threads=1)
    assert expected.any()
    torch.set_flush_denormal(True)
    try:
        got = [mxfp4.matmul(x, blocks, scales, threads=n).tobytes() for n in (1, 2)]
    finally:
        torch.set_flush_denormal(False)
    assert got == [expected.tobytes()] * 2


@pytest.mark.parametrize("precision", list(products.PRECISIONS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_non_finite_and_huge_activations_are_float32(backend: str, precision: str, bad: float) -> None:
    """One bad token takes the float32 path: NaN and Inf come out where IEEE arithmetic has them, the other tokens
    as ever.
    """
    blocks, scales = weights(35, 3)
    x = activations(20, 3)
    x[1, 40] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        expected = truth(x, blocks, scales).astype(np.float32)
        y = mxfp4.matmul(x, blocks, scales, precision=precision)
    np.testing.assert_array_equal(np.isnan(y[1]), np.isnan(expected[1]))
    np.testing.assert_array_equal(np.isinf(y[1]), np.isinf(expected[1]))
    clean = np.arange(20) != 1
    assert relative_rms(y[clean], expected[clean]) <= BOUND[precision]


@pytest.mark.parametrize("exponent", [-149, -140, -120, -101, -60, 60, 99])
def test_tiny_and_large_activations(backend: str, exponent: int) -> None:
    blocks, scales = weights(24, 3, low=125, high=129)
    x = (activations(1, 3).astype(np.float64) * 2.0**exponent).astype(np.float32)
    y = mxfp4.matmul(x, blocks, scales, precision="q24")
    reference = truth(x, blocks, scales)
    subnormal = x.size * 2.0**-150  # a product below 2^-126 keeps its absolute, not its relative accuracy
    assert np.abs(y - reference).max() <= max(2e-6 * np.abs(reference).max(), subnormal)


def test_zero_input_gives_the_bias(backend: str) -> None:
    blocks, scales = weights(9, 5)
    bias = np.arange(9, dtype=np.float32)
    for precision in products.PRECISIONS:
        np.testing.assert_array_equal(
            mxfp4.matmul(np.zeros((1, 160), np.float32), blocks, scales, bias, precision=precision)[0], bias
        )


@native_only
def test_nothing_outside_the_weights_is_read(backend: str) -> None:
    """Weights that end where their page ends: one byte more would be a fault."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for groups in (1, 2, 3, 5, 6):
        blocks, scales = weights(35, groups)
        arrays = []
        for source in (blocks, scales):
            page = np.frombuffer(mmap.mmap(-1, 3 * mmap.PAGESIZE), np.uint8)
            assert libc.mprotect(page.ctypes.data + 2 * mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
            view = page[2 * mmap.PAGESIZE - source.size : 2 * mmap.PAGESIZE].reshape(source.shape)
            view[...] = source
            arrays.append(view)
        for tokens in (1, 8, 20):
            x = activations(tokens, groups)
            assert mxfp4.matmul(x, *arrays).tobytes() == mxfp4.matmul(x, blocks, scales).tobytes()
        assert mxfp4.hf_to_ggml(*arrays).tobytes() == mxfp4.hf_to_ggml(blocks, scales).tobytes()


@pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 2880])
@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 40])
def test_linear_bf16(backend: str, k: int, tokens: int) -> None:
    import ml_dtypes

    rng = np.random.default_rng(5)
    w = rng.standard_normal((70, k)).astype(ml_dtypes.bfloat16)
    x, bias = rng.standard_normal((tokens, k)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    reference = x.astype(np.float64) @ w.astype(np.float64).T + bias
    y = mxfp4.linear_bf16(x, w, bias, threads=2)
    assert relative_rms(y, reference) <= 5e-7
    if backend != "numpy":
        assert y.tobytes() == mxfp4.linear_bf16(x, w, bias, threads=1).tobytes()


def test_shapes_that_do_not_fit_are_refused(backend: str) -> None:
    blocks, scales = weights(8, 3)
    for x, bias in (
        (activations(1, 2), None),
        (activations(1, 3)[0], None),
        (activations(1, 3), np.zeros(7, np.float32)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            mxfp4.matmul(x, blocks, scales, bias)
        with pytest.raises(ValueError, match="do not fit"):
            mxfp4.linear_bf16(x, np.zeros((8, 96), np.uint16), bias)


def test_a_forked_child_can_multiply() -> None:
    """The pool's threads do not survive fork(); a child makes its own."""
    import multiprocessing

    blocks, scales = weights(200, 4)
    x = activations(20, 4)
    expected = mxfp4.matmul(x, blocks, scales, threads=2)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: queue.put(mxfp4.matmul(x, blocks, scales, threads=2).tobytes())
    )
    child.start()
    child.join(30)
    assert child.exitcode == 0 and queue.get() == expected.tobytes()


def test_many_threads_may_call_at_once(backend: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    blocks, scales = weights(150, 6)
    x = activations(8, 6)
    expected = mxfp4.matmul(x, blocks, scales, threads=1)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda i: mxfp4.matmul(x, blocks, scales, threads=1 + i % 4), range(60)))
    assert all(np.array_equal(r, expected) for r in results)
