"""bfloat16 in 12 bits: every value comes back, and products are those of the unpacked weights, on every instruction
set.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.isas import native_only

from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference import loading
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.packed import PackedWeight, pack

TINY = Path(__file__).parents[1] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"


pytestmark = native_only


@pytest.fixture(autouse=True)
def each_instruction_set(backend: str) -> None:
    torch.manual_seed(0)


def packed(weight: torch.Tensor) -> PackedWeight:
    made = pack(weight)
    assert made is not None
    return made


def odd_weights(rows: int, width: int) -> torch.Tensor:
    """Normal, with the rare: zeros of both signs, subnormal, tiny, large, infinite, NaN with a payload."""
    weight = (torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * 0.02).bfloat16()
    bits = weight.view(torch.int16).flatten()
    for i, value in enumerate((0x0000, -0x8000, 0x0001, -0x7FFF, 0x0080, 0x1234, 0x4F80, -0x0080, 0x7FC1)):
        bits[i * 37 % bits.numel()] = value
    return weight


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 96), (70, 2880), (130, 33), (64, 1)])
def test_every_value_comes_back(rows: int, width: int) -> None:
    weight = odd_weights(rows, width) if rows * width > 9 / 0.005 else torch.randn(rows, width).bfloat16()
    made = packed(weight)
    assert torch.equal(made.rows(0, rows).view(torch.int16), weight.view(torch.int16))
    assert torch.equal(made.rows(rows // 2, rows).view(torch.int16), weight[rows // 2 :].view(torch.int16))
    assert made.shape == weight.shape


def test_every_exponent_and_mantissa() -> None:
    """All 65536 bfloat16 values, where their neighbours decide which are listed."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    usual = torch.full((65536 * 250,), 0x3C12, dtype=torch.int16)
    usual[::250] = every
    weight = usual.view(torch.bfloat16).view(4096, -1)
    assert torch.equal(packed(weight).rows(0, 4096).view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 16])
@pytest.mark.parametrize(("rows", "width"), [(5, 64), (130, 96), (67, 2880)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products(tokens: int, rows: int, width: int, with_bias: bool) -> None:
    weight = odd_weights(rows, width) if rows > 5 else torch.randn(rows, width).bfloat16()
    weight[~weight.isfinite()] = 0
    weight[weight.abs() > 1e4] = 3.0
    x, bias = torch.randn(tokens, width), torch.randn(rows) if with_bias else None
    want = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    made = packed(weight)
    got = made.product(x, bias)
    assert (got.double() - want).norm() / want.norm() < 3e-7
    assert torch.equal(torch.cat([made.product(row[None], bias) for row in x]), got)  # whatever the batch
    torch.set_num_threads(1)
    try:
        assert torch.equal(made.product(x, bias), got)
    finally:
        torch.set_num_threads(2)


def test_activations_that_are_not_finite() -> None:
    weight = (torch.randn(80, 128) * 0.02).bfloat16()
    weight[3, 5], weight[4, 5] = 1e9, -1e9  # listed
    x = torch.randn(2, 128)
    x[0, 5], x[1, 7] = float("inf"), float("nan")
    want = torch.nn.functional.linear(x, weight.float())
    torch.testing.assert_close(packed(weight).product(x, None), want, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_what_does_not_pay_stays() -> None:
    assert pack((torch.randn(64, 64) * torch.exp2(torch.randint(-100, 100, (64, 64)))).bfloat16()) is None


def test_a_model_with_packed_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits for a prompt, in chunks of few and many tokens, and token by token."""
    monkeypatch.setattr(loading, "packs", lambda: True)
    monkeypatch.setattr(loading, "PACK_VALUES", 1)
    stored, packed = (GptOss.from_checkpoint(TINY, dense=dense) for dense in ("stored", "packed"))
    assert isinstance(packed.unembedding, PackedWeight) and isinstance(
        packed.layers[0][0].w["q_proj.weight"], PackedWeight
    )
    ids = torch.randint(0, 100, (2, 40))
    want, cache = stored(ids), packed.new_cache()
    for columns in (slice(0, 20), slice(20, 25), slice(25, 26), slice(26, 40)):
        got = packed(ids[:, columns], cache=cache)
        assert (got - want[:, columns]).norm() / want[:, columns].norm() < 1e-5
    with pytest.raises(UsageError, match="cannot be traced"):
        packed.as_module()
    with pytest.raises(UsageError, match="stored or packed"):
        GptOss.from_checkpoint(TINY, dense="zipped")
