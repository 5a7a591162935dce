"""The Triton kernels against the numpy oracle: in Triton's interpreter (conftest.py), or on the GPU where there is
one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptoss_adapters import mxfp4
from gptoss_adapters.mxfp4 import triton_kernels as kernels
from gptoss_adapters.mxfp4.products import ExpertWeights, moe_oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def layer(count: int, hidden: int, inter: int, low: int = 118, high: int = 125) -> ExpertWeights:
    rng = np.random.default_rng(0)

    def part(rows: int, width: int) -> list[np.ndarray]:
        shape = (count, rows, width // 32)
        return [
            rng.integers(0, 256, (*shape, 16), np.uint8),
            rng.integers(low, high, shape).astype(np.uint8),
            rng.standard_normal((count, rows)).astype(np.float32),
        ]

    return ExpertWeights(*part(2 * inter, hidden), *part(hidden, inter))


def on_device(experts: ExpertWeights) -> kernels.Experts:
    return kernels.Experts(
        *(torch.from_numpy(getattr(experts, f)).to(DEVICE) for f in ExpertWeights.__dataclass_fields__)
    )


def compare(experts: ExpertWeights, tokens: int, top_k: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative rms error of the kernels against float64."""
    count, hidden, _ = experts.shape
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((tokens, hidden)).astype(np.float32)).to(dtype)
    ids = np.array([rng.permutation(count)[:top_k] for _ in range(tokens)], np.int32)
    weights = rng.random((tokens, top_k)).astype(np.float32)
    truth = moe_oracle(x.double().numpy(), experts, ids, weights, 1.702, 7.0)
    y = kernels.moe(
        x.to(DEVICE),
        on_device(experts),
        torch.from_numpy(ids).to(DEVICE),
        torch.from_numpy(weights).to(DEVICE),
        1.702,
        7.0,
    )
    assert y.dtype == dtype
    return float(np.sqrt(((y.double().cpu().numpy() - truth) ** 2).mean() / (truth**2).mean()))


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(("count", "hidden", "inter", "top_k"), [(4, 64, 96, 2), (3, 288, 32, 1), (5, 32, 160, 4)])
def test_split_k(tokens: int, count: int, hidden: int, inter: int, top_k: int) -> None:
    assert compare(layer(count, hidden, inter), tokens, top_k) <= 1e-6


@pytest.mark.parametrize(("count", "hidden", "inter", "top_k"), [(4, 64, 96, 2), (3, 160, 32, 3)])
def test_tiles(monkeypatch: pytest.MonkeyPatch, count: int, hidden: int, inter: int, top_k: int) -> None:
    monkeypatch.setattr(kernels, "DECODE_PAIRS", 0)
    assert compare(layer(count, hidden, inter), 17, top_k) <= 1e-6


def test_one_true_width() -> None:
    """K = 2880: 90 blocks, not a multiple of a step or of the shares."""
    assert compare(layer(2, 2880, 32), 1, 1) <= 1e-6


def test_every_code_under_every_scale() -> None:
    """As the split-K path decodes them: byte 0 is subnormal, and nothing is lost on the way through float16."""
    scale = torch.arange(255, dtype=torch.int32)
    import triton
    import triton.language as tl

    @triton.jit
    def values(scale, out, halves: tl.constexpr, unit: tl.constexpr, CODE: tl.constexpr):
        s = tl.arange(0, 256)
        word = (tl.arange(0, 16) * 0x11111111).to(tl.uint32, bitcast=True)
        low, high = halves(word, CODE)
        u = unit(tl.load(scale + s, s < 255, 0))[:, None]
        at = s[:, None] * 32 + tl.arange(0, 16)[None, :]
        tl.store(out + at, low[None, :] * 16384 * u, (s < 255)[:, None])
        tl.store(out + at + 16, high[None, :] * 16384 * u, (s < 255)[:, None])

    blocks = np.tile(mxfp4.oracle.pack(np.tile(np.arange(16, dtype=np.uint8), 2)), (255, 1, 1))
    expected = mxfp4.decode(blocks, np.arange(255, dtype=np.uint8)[:, None])
    for pair in range(4):
        out = torch.empty((255, 32), device=DEVICE)
        with np.errstate(over="ignore"):
            values[(1,)](scale.to(DEVICE), out, halves=kernels._halves, unit=kernels._unit, CODE=pair)
        assert out.cpu().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("tokens", [1, 40])
def test_an_infinite_activation_stays_in_its_row(tokens: int) -> None:
    experts = layer(2, 64, 32)
    x = torch.ones((tokens, 64))
    x[0, 3] = torch.inf
    ids, weights = torch.zeros((tokens, 2), dtype=torch.int32), torch.ones((tokens, 2))
    with np.errstate(all="ignore"):
        y = kernels.moe(x.to(DEVICE), on_device(experts), ids.to(DEVICE), weights.to(DEVICE), 1.702, 7.0).cpu()
    truth = moe_oracle(x.double().numpy(), experts, ids.numpy(), weights.numpy(), 1.702, 7.0)
    np.testing.assert_allclose(y.numpy(), truth, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_has_no_tile() -> None:
    order, tile_expert = kernels._sort(torch.tensor([3, 0, 3, 3], dtype=torch.int32), 5, 32)
    assert tile_expert.tolist() == [0, 3]
    assert order.view(2, -1)[:, :4].tolist() == [[1, -1, -1, -1], [0, 2, 3, -1]]


@pytest.mark.parametrize(
    ("tokens", "count", "width"),
    [(1, 8, 96), (40, 3, 96)] if DEVICE == "cpu" else [(1, 8, 2880), (8, 8, 2880), (200, 8, 2880)],
)
def test_bfloat16(tokens: int, count: int, width: int) -> None:
    """Products and sums are float32: what is left is the rounding of the activations between the products, and of
    the result.
    """
    assert compare(layer(count, width, width), tokens, 2, torch.bfloat16) <= 1e-2
