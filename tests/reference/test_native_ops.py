"""The native operations of a few tokens against the definitions in model.py, on every instruction set of this
machine.
"""

from __future__ import annotations

import pytest
import torch
from helpers.isas import native_only

from gptoss_adapters.reference import native_ops
from gptoss_adapters.reference.cache import Cache
from gptoss_adapters.reference.model import attend, rms_norm, rotate

pytestmark = native_only


@pytest.fixture(autouse=True)
def each_instruction_set(backend: str) -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(64, 8, 64), (6, 2, 36), (3, 1, 32)])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 1, 1), (1, 1, 300), (3, 5, 77)])
def test_attention(
    heads: int, kv_heads: int, head_dim: int, window: int | None, batch: int, queries: int, keys: int
) -> None:
    rng = torch.Generator().manual_seed(keys)
    q, sinks = 3 * torch.randn(batch, queries, heads, head_dim, generator=rng), torch.randn(heads, generator=rng)
    k, v = torch.randn(2, batch, keys + 5, kv_heads, head_dim, generator=rng)  # a buffer with room
    positions = torch.arange(keys)[None] - torch.arange(batch)[:, None]  # row n has n columns of padding
    positions = positions.clamp(min=-1)
    given = (q, k[:, :keys], v[:, :keys], sinks, positions[:, keys - queries :], positions, window)
    got, want = (
        native_ops.attend(*given),
        attend(*(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in given)),
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6)
    torch.set_num_threads(1)
    try:
        assert torch.equal(native_ops.attend(*given), got)
    finally:
        torch.set_num_threads(2)


def test_scores_far_apart_and_values_that_are_not_finite() -> None:
    q, k, v = torch.full((1, 1, 2, 32), 100.0), torch.randn(1, 40, 1, 32) * 50, torch.randn(1, 40, 1, 32)
    positions, sinks = torch.arange(40)[None], torch.tensor([-1e30, 1e4])
    given = (q, k, v, sinks, positions[:, -1:], positions, None)
    torch.testing.assert_close(native_ops.attend(*given), attend(*given), rtol=1e-5, atol=1e-6)
    k[0, 3, 0, 5] = float("nan")
    assert native_ops.attend(*given).isnan().all()


@pytest.mark.parametrize("width", [32, 45, 2880])
def test_norm(width: int) -> None:
    x, scale = torch.randn(3, 2, width) * torch.tensor([1e-8, 1.0, 1e6])[:, None, None], torch.randn(width)
    torch.testing.assert_close(
        native_ops.rms_norm(x, scale, 1e-5).double(), rms_norm(x.double(), scale, 1e-5), rtol=3e-6, atol=0
    )


@pytest.mark.parametrize("head_dim", [4, 36, 64])
def test_rotation(head_dim: int) -> None:
    x, (cos, sin) = torch.randn(2, 3, 5, head_dim), torch.randn(2, 2, 3, 1, head_dim // 2)
    assert torch.equal(native_ops.rotate(x, cos, sin), rotate(x, cos, sin))


def test_what_goes_to_torch() -> None:
    assert native_ops.usable(torch.zeros(2, 8, 64), 16)
    for other in (
        torch.zeros(1, 17, 64),
        torch.zeros(1, 1, 64).double(),
        torch.zeros(1, 1, 64).bfloat16(),
        torch.zeros(1, 1, 64, device="meta"),
    ):
        assert not native_ops.usable(other, other.shape[0] * other.shape[1])


@pytest.mark.parametrize("window", [None, 1, 2, 6])
def test_a_cache_gives_every_column_in_reach(window: int | None) -> None:
    """Whatever the lengths of the steps, and whether or not somebody goes back to an earlier state of a sliding
    layer.
    """
    columns, lengths = torch.randn(2, 60, 1, 4), (1, 1, 9, 1, 3, 5, 1, 1, 1, 12, 6, 4, 1, 1)
    cache, at = Cache(window), 0
    states = []
    for t in lengths:
        states.append((cache.k, cache.v, cache.positions, cache.start, cache.end, at))
        new = columns[:, at : at + t]
        k, v, positions = cache.extend(new, -new, torch.arange(at, at + t).expand(2, -1))
        at += t
        first = 0 if window is None else max(0, at - t - window + 1)
        assert positions[0].tolist()[-(at - first) :] == list(range(first, at))
        assert torch.equal(k[:, -(at - first) :], columns[:, first:at]) and torch.equal(v, -k)
        assert len(cache) <= (at if window is None else window - 1)
    if window is not None:
        cache.k, cache.v, cache.positions, cache.start, cache.end, at = states[7]
        k, _, _ = cache.extend(columns[:, at : at + 2], columns[:, at : at + 2], torch.arange(at, at + 2).expand(2, -1))
        assert torch.equal(k[:, -window - 1 :], columns[:, max(0, at + 1 - window) : at + 2])
