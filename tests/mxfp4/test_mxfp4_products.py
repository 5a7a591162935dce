"""The native products against float64 on exactly decoded weights: accuracy, odd shapes, edge values, thread counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.isas import native_only

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels import library
from gptoss_adapters.mxfp4 import products
from gptoss_adapters.mxfp4.products import ExpertWeights

BOUND = {"q8": 3e-2, "q16": 1e-4, "q24": 1e-6, "f32": 1e-6}
ALPHA, LIMIT = 1.702, 7.0


def weights(rows: int, groups: int, seed: int = 0, low: int = 112, high: int = 130) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, groups, 16), np.uint8), rng.integers(low, high, (rows, groups)).astype(np.uint8)


def activations(tokens: int, groups: int, seed: int = 1) -> np.ndarray:
    """N(0, 1), every 97th value 30 times as large: outliers are what breaks low-precision activations."""
    x = np.random.default_rng(seed).standard_normal((tokens, groups * 32)).astype(np.float32)
    x[:, ::97] *= 30
    return x


def truth(x: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ mxfp4.decode(blocks, scales, np.float64).T


def relative_rms(y: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(((y - reference) ** 2).mean() / (reference**2).mean()))


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


def experts(count: int, hidden: int, inter: int, seed: int = 3) -> ExpertWeights:
    rng = np.random.default_rng(seed)
    arrays = []
    for rows, width in ((2 * inter, hidden), (hidden, inter)):
        blocks, scales = weights(count * rows, width // 32, seed=seed, low=118, high=125)
        arrays += [
            blocks.reshape(count, rows, -1, 16),
            scales.reshape(count, rows, -1),
            rng.standard_normal((count, rows)).astype(np.float32),
        ]
    return ExpertWeights(*arrays)


def routing(tokens: int, top_k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    ids = np.array([rng.permutation(count)[:top_k] for _ in range(tokens)], np.int32)
    return ids, rng.random((tokens, top_k)).astype(np.float32)


@pytest.mark.parametrize("precision", list(products.PRECISIONS))
@pytest.mark.parametrize(("count", "hidden", "inter", "top_k"), [(1, 32, 32, 1), (5, 96, 160, 3), (7, 288, 64, 4)])
@pytest.mark.parametrize("tokens", [1, 2, 6, 40])
def test_moe_is_within_its_bound(
    backend: str, precision: str, count: int, hidden: int, inter: int, top_k: int, tokens: int
) -> None:
    layer, x = experts(count, hidden, inter), activations(tokens, hidden // 32) / 4
    ids, w = routing(tokens, top_k, count)
    reference = mxfp4.moe(x.astype(np.float64), layer, ids, w, ALPHA, LIMIT)
    y = mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT, threads=2, precision=precision)
    assert relative_rms(y, reference) <= 2 * BOUND[precision]  # two products in a row


def test_the_moe_oracle_is_the_formula() -> None:
    """Written out for one token in float64, gate and up rows taken apart by hand."""
    layer, x = experts(4, 64, 96), activations(1, 2).astype(np.float64)
    ids, w = np.array([[2, 0]], np.int32), np.array([[0.75, 0.25]], np.float32)
    expected = np.zeros(64)
    for e, weight in zip(ids[0], w[0], strict=True):
        up = mxfp4.decode(layer.gate_up_blocks[e], layer.gate_up_scales[e], np.float64)
        gate = np.minimum(up[0::2] @ x[0] + layer.gate_up_bias[e, 0::2], 7)
        linear = np.clip(up[1::2] @ x[0] + layer.gate_up_bias[e, 1::2], -7, 7)
        hidden = gate / (1 + np.exp(-1.702 * gate)) * (linear + 1)
        expected += weight * (
            mxfp4.decode(layer.down_blocks[e], layer.down_scales[e], np.float64) @ hidden + layer.down_bias[e]
        )
    np.testing.assert_allclose(products.moe_oracle(x, layer, ids, w, 1.702, 7.0)[0], expected, rtol=1e-12)


@native_only
def test_moe_equal_on_every_thread_count_and_batch(backend: str) -> None:
    layer, x = experts(5, 96, 160), activations(11, 3)
    ids, w = routing(11, 3, 5)
    first = mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT, threads=1)
    for threads in (2, 3, 5):
        assert mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT, threads=threads).tobytes() == first.tobytes()
    first = mxfp4.moe(x[:3], layer, ids[:3], w[:3], ALPHA, LIMIT)
    for t in range(3):
        one = mxfp4.moe(x[t : t + 1], layer, ids[t : t + 1], w[t : t + 1], ALPHA, LIMIT)
        assert one.tobytes() == first[t].tobytes()


def test_moe_with_every_token_on_one_expert_and_the_rest_empty(backend: str) -> None:
    layer, x = experts(6, 64, 64), activations(5, 2)
    ids, w = np.full((5, 1), 4, np.int32), np.ones((5, 1), np.float32)
    reference = mxfp4.moe(x.astype(np.float64), layer, ids, w, ALPHA, LIMIT)
    assert relative_rms(mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT), reference) <= 2e-6
    assert mxfp4.moe(x[:0], layer, ids[:0], w[:0], ALPHA, LIMIT).shape == (0, 64)


def test_moe_passes_nan_on_to_its_token_only(backend: str) -> None:
    layer, x = experts(3, 64, 64), activations(3, 2)
    ids, w = routing(3, 2, 3)
    clean = mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT)
    x[1, 5] = np.nan
    y = mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT)
    assert np.isnan(y[1]).all()
    np.testing.assert_allclose(y[[0, 2]], clean[[0, 2]], rtol=1e-4, atol=1e-4)


def test_moe_refuses_what_does_not_fit(backend: str) -> None:
    layer, x = experts(3, 64, 64), activations(2, 2)
    ids, w = routing(2, 2, 3)
    for changed, text in ((ids + 1, "0..2"), (ids - 1, "0..2")):
        with pytest.raises(ValueError, match=text):
            mxfp4.moe(x, layer, changed, w, ALPHA, LIMIT)
    with pytest.raises(ValueError, match=r"\(2, 64\)"):
        mxfp4.moe(x[:, :32], layer, ids, w, ALPHA, LIMIT)
    with pytest.raises(ValueError, match="down_scales"):
        ExpertWeights(
            layer.gate_up_blocks,
            layer.gate_up_scales,
            layer.gate_up_bias,
            layer.down_blocks,
            layer.down_scales[:, 1:],
            layer.down_bias,
        )


def test_swiglu_over_the_whole_range(backend: str) -> None:
    """One expert whose gate_up rows only pass their bias through: exp, both clamps and the limits of float32."""
    gate = np.r_[np.linspace(-120, 20, 31), -1e30].astype(np.float32)
    up = np.r_[np.linspace(-9, 9, 31), 1e30].astype(np.float32)
    zero_up, scales_up = np.zeros((1, 64, 1, 16), np.uint8), np.full((1, 64, 1), 127, np.uint8)
    identity = np.zeros((1, 32, 32), np.float32)
    identity[0] = np.eye(32)
    down, down_scales = mxfp4.encode(identity)
    bias = np.stack([gate, up], axis=1).reshape(1, 64)
    layer = ExpertWeights(zero_up, scales_up, bias, down, down_scales, np.zeros((1, 32), np.float32))
    x, one = np.zeros((1, 32)), np.ones((1, 1))
    reference = mxfp4.moe(x, layer, np.zeros((1, 1), np.int32), one, ALPHA, LIMIT)
    y = mxfp4.moe(x.astype(np.float32), layer, np.zeros((1, 1), np.int32), one, ALPHA, LIMIT, precision="f32")
    np.testing.assert_allclose(y, reference, rtol=2e-6, atol=1e-30)


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


@native_only
def test_on_openmps_threads_results_are_the_same(backend: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import torch  # whose runtime it is

    torch.ones(1)
    layer, x = experts(4, 96, 64), activations(9, 3)
    ids, w = np.random.default_rng(0).integers(0, 4, (9, 2), np.int32), np.full((9, 2), 0.5, np.float32)
    expected = mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT, threads=2)
    native = library.library()
    assert native and library.use_openmp()
    try:
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda i: mxfp4.moe(x, layer, ids, w, ALPHA, LIMIT, threads=1 + i % 4), range(40)))
        assert all(np.array_equal(r, expected) for r in results)
    finally:
        native.use_openmp(None)
