"""The native mixture of experts against float64 on exactly decoded weights."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.isas import native_only
from helpers.products import BOUND, activations, relative_rms, weights

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels import library
from gptoss_adapters.mxfp4 import products
from gptoss_adapters.mxfp4.products import ExpertWeights

ALPHA, LIMIT = 1.702, 7.0


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
