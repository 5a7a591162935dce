"""Every codec path against ml_dtypes, gguf-py and the numpy oracle, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from helpers.isas import usable_backends

from gptoss_adapters import mxfp4
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.kernels import library
from gptoss_adapters.mxfp4 import oracle

BF16 = ml_dtypes.bfloat16
ALL_SCALES = np.arange(256, dtype=np.uint8)


def random_weights(*lead: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*lead, 16), np.uint8), rng.integers(0, 255, lead, np.uint8)


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    """256 rows of one block that holds all 16 codes twice, one row per scale byte."""
    row = oracle.pack(np.tile(np.arange(16, dtype=np.uint8), 2))
    return np.tile(row, (256, 1, 1)), ALL_SCALES[:, None]


def test_the_native_library_is_built_and_chosen() -> None:
    assert library._load() is not None, "run `make native`: CI must test the compiled kernels"
    assert {"portable", "numpy"} < set(usable_backends())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BF16])
def test_decode_is_ml_dtypes_for_every_code_and_scale(backend: str, dtype: type) -> None:
    blocks, scales = every_pair()
    value = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    unit = ALL_SCALES.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.tile(unit[:, None] * value, (1, 2)).astype(np.float32).astype(dtype)
    got = mxfp4.decode(blocks, scales, dtype)
    assert got.dtype == dtype and mxfp4.backend() == backend
    np.testing.assert_array_equal(got[255].astype(np.float32), np.full(32, np.nan, np.float32))
    assert got[:255].tobytes() == expected[:255].tobytes()  # -0 too


def test_decode_survives_flushed_denormals(backend: str) -> None:
    import torch

    blocks, scales = every_pair()
    expected = mxfp4.decode(blocks, scales)
    torch.set_flush_denormal(True)
    try:
        got = mxfp4.decode(blocks, scales)
    finally:
        torch.set_flush_denormal(False)
    if backend != "numpy":  # numpy's own arithmetic obeys the flag
        assert got.tobytes() == expected.tobytes()


def test_decode_f16_is_exact_or_refused(backend: str) -> None:
    blocks, scales = every_pair()
    inside = slice(104, 141)
    assert mxfp4.decode(blocks[inside], scales[inside], np.float16).dtype == np.float16
    for scale in (103, 141):
        with pytest.raises(BadInput, match="float16"):
            mxfp4.decode(blocks[scale : scale + 1], scales[scale : scale + 1], np.float16)


def test_decode_takes_every_second_row(backend: str) -> None:
    blocks, scales = random_weights(2, 6, 3)
    full = mxfp4.decode(blocks, scales).reshape(12, 96)
    np.testing.assert_array_equal(mxfp4.decode(blocks, scales, row_start=1, row_step=2), full[1::2])


def test_repack_of_the_documented_block(backend: str) -> None:
    hf = np.frombuffer(bytes.fromhex("1032547698BADCFEEFCDAB8967452301"), np.uint8).reshape(1, 1, 16)
    ggml = mxfp4.hf_to_ggml(hf, np.array([[121]], np.uint8))
    assert ggml.tobytes().hex().upper() == "79F0E1D2C3B4A5968778695A4B3C2D1E0F"


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (2, 3), (7, 5), (6, 90), (64, 4)])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (0, 2), (1, 2)])
def test_repack_round_trip_is_the_oracle(backend: str, rows: int, groups: int, start: int, step: int) -> None:
    blocks, scales = random_weights(rows, groups)
    ggml = mxfp4.hf_to_ggml(blocks, scales, row_start=start, row_step=step)
    np.testing.assert_array_equal(ggml, oracle.hf_to_ggml(blocks[start::step], scales[start::step]))
    assert mxfp4.compare_ggml(blocks, scales, ggml, start, step) == -1
    back, back_scales = mxfp4.ggml_to_hf(ggml, np.zeros_like(blocks), np.zeros_like(scales), start, step)
    np.testing.assert_array_equal(back[start::step], blocks[start::step])
    np.testing.assert_array_equal(back_scales[start::step], scales[start::step])


def test_repacked_rows_are_what_gguf_py_decodes(backend: str) -> None:
    blocks, scales = random_weights(5, 7)
    scales = np.clip(scales, 2, 250)
    ggml = mxfp4.hf_to_ggml(blocks, scales)
    theirs = gguf.quants.dequantize(ggml, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs, mxfp4.decode(blocks, scales))


def test_repack_into_a_reused_buffer(backend: str) -> None:
    blocks, scales = random_weights(2, 4, 3)
    buffer = np.zeros(8 * 51, np.uint8)
    out = mxfp4.hf_to_ggml(blocks, scales, out=buffer)
    assert out.base is buffer and buffer.tobytes() == mxfp4.hf_to_ggml(blocks, scales).tobytes()
    with pytest.raises(ValueError, match="408"):
        mxfp4.hf_to_ggml(blocks, scales, out=buffer[:-1])


def test_compare_finds_every_single_changed_bit(backend: str) -> None:
    blocks, scales = random_weights(3, 2)
    ggml = mxfp4.hf_to_ggml(blocks, scales)
    for byte in range(ggml.size):
        changed = ggml.copy()
        changed.reshape(-1)[byte] ^= 1 << (byte % 8)
        assert mxfp4.compare_ggml(blocks, scales, changed) == byte // 17


def test_scale_255_is_refused_by_name() -> None:
    scales = np.zeros((2, 3, 4), np.uint8)
    mxfp4.check_scales(scales)
    scales[1, 0, 2] = 255
    with pytest.raises(
        BadInput, match=r"^x\.safetensors: w_scales: 1 MXFP4 scale bytes are 255 \(NaN\), the first at \[1, 0, 2\]$"
    ):
        mxfp4.check_scales(scales, "x.safetensors", "w_scales")


def edge_blocks() -> np.ndarray:
    """Blocks that broke quantisers: zeros, subnormals, ties at every threshold, single values, the largest finite."""
    rng = np.random.default_rng(1)
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    blocks = [np.zeros(32), -np.zeros(32), np.full(32, tiny), np.full(32, huge), np.r_[huge, np.zeros(31)]]
    ties = np.r_[oracle.THRESHOLDS, -oracle.THRESHOLDS, 4, 6, -6, 7, 7.5, 7.99, 5.5, 3.5, 3.49, np.zeros(9)]
    blocks += [ties * 2.0**e for e in range(-140, 125, 5)]
    blocks += [
        np.r_[m * 2.0**e, np.zeros(31)]
        for e in (-149, -130, -127, -126, -125, -3, 0, 100)
        for m in (1, 1.4999, 1.5, 1.75, 1.9)
    ]
    blocks += list(rng.standard_normal((200, 32)) * 2.0 ** rng.integers(-30, 30, (200, 1)))
    return np.array(blocks).astype(np.float32)


@pytest.mark.parametrize("rule", list(mxfp4.RULES))
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_encode_is_the_oracle(backend: str, rule: str, dtype: type) -> None:
    with np.errstate(over="ignore"):
        x = edge_blocks().astype(dtype)
    x = x[np.isfinite(x.astype(np.float32)).all(axis=1)]
    expected = oracle.encode(x.astype(np.float32), mxfp4.RULES[rule])
    got = mxfp4.encode(x, rule)
    np.testing.assert_array_equal(got[1][:, 0], expected[1][:, 0])
    np.testing.assert_array_equal(got[0], expected[0])


@pytest.mark.parametrize("rule", ["ocp", "ggml", "even", "mse"])
def test_requantising_keeps_every_value(backend: str, rule: str) -> None:
    blocks, scales = random_weights(500, 4, seed=2)
    values = mxfp4.decode(blocks, np.minimum(scales, 252))
    again = mxfp4.decode(*mxfp4.encode(values, rule))
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("rule", ["ocp", "even", "mse"])
def test_canonical_blocks_come_back_byte_for_byte(backend: str, rule: str) -> None:
    x = np.random.default_rng(3).standard_normal((300, 64)).astype(np.float32)
    first = mxfp4.encode(x, rule)
    again = mxfp4.encode(mxfp4.decode(*first), rule)
    assert [a.tobytes() for a in again] == [f.tobytes() for f in first]


def test_mse_rule_is_never_worse(backend: str) -> None:
    x = np.random.default_rng(4).standard_normal((2000, 32)).astype(np.float32)
    error = {r: float(((mxfp4.decode(*mxfp4.encode(x, r)) - x) ** 2).sum(dtype=np.float64)) for r in mxfp4.RULES}
    assert error["mse"] < error["even"] < error["ocp"] < error["triton"]


def hard_blocks(dtype: type) -> np.ndarray:
    """Finite blocks: the edge cases, flat ones whose best scale is a small one, and ones with a lone large value."""
    rng = np.random.default_rng(7)
    flat = rng.uniform(0.05, 1.2, (300, 32)) * rng.choice([-1, 1], (300, 32))
    lone = np.where(np.arange(32) == 5, rng.uniform(4, 8, (300, 1)), flat)
    with np.errstate(over="ignore"):
        x = np.concatenate(
            [edge_blocks(), flat, lone, lone * 2.0**-128, lone * 2.0**124, np.round(lone * 4) / 4]
        ).astype(dtype)
    return x[np.isfinite(x.astype(np.float32)).all(axis=1)]


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_no_scale_of_all_gives_less_error_than_the_mse_rule(dtype: type) -> None:
    x = hard_blocks(dtype)
    a = np.abs(x.astype(np.float64))
    least = np.full(len(a), np.inf)
    for scale in range(oracle.MAX_SCALE + 1):
        grid = np.ldexp(oracle.E2M1[:8].astype(np.float64), scale - 127)
        up = np.clip(np.searchsorted(grid, a), 0, 7)
        nearest = np.minimum(np.abs(grid[up] - a), np.abs(grid[np.maximum(up - 1, 0)] - a))
        unit = np.ldexp(1.0, 127 - scale)  # squares of the smallest values underflow otherwise
        least = np.minimum(least, ((nearest * unit) ** 2).sum(axis=1) * (1 / unit) ** 2 * 2.0**120)
    q = mxfp4.decode(*mxfp4.encode(x, "mse")).astype(np.float64)
    got = (((q - x.astype(np.float64)) * 2.0**60) ** 2).sum(axis=1)
    assert (got <= least * (1 + 1e-9)).all()


@pytest.mark.parametrize("rule", list(mxfp4.RULES))
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_hard_blocks_are_the_oracles_and_finite(backend: str, rule: str, dtype: type) -> None:
    x = hard_blocks(dtype)
    blocks, scales = mxfp4.encode(x, rule)
    expected = oracle.encode(x.astype(np.float32), mxfp4.RULES[rule])
    np.testing.assert_array_equal(scales, expected[1])
    np.testing.assert_array_equal(blocks, expected[0])
    assert np.isfinite(mxfp4.decode(blocks, scales, BF16).astype(np.float32)).all()


@pytest.mark.parametrize("rule", list(mxfp4.RULES))
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_scales_from_brings_every_dequantised_byte_back(backend: str, rule: str, dtype: type) -> None:
    blocks, scales = random_weights(3, 257, 5, seed=8)
    blocks[:, ::7] = 0x80  # zero blocks, every other zero negative
    blocks[:, 1::7] &= 0x99  # largest magnitude .5: scales that no rule would choose
    scales = np.minimum(scales, 252)
    again = mxfp4.encode(mxfp4.decode(blocks, scales, dtype), rule, scales_from=scales)
    assert [a.tobytes() for a in again] == [blocks.tobytes(), scales.tobytes()]


@pytest.mark.parametrize("rule", list(mxfp4.RULES))
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_scales_from_touches_no_block_that_does_not_fit(backend: str, rule: str, dtype: type) -> None:
    rng = np.random.default_rng(9)
    x = hard_blocks(dtype)
    given = rng.integers(0, 256, (len(x), 1), np.uint8)
    given[::2] = mxfp4.encode(x[::2], "ocp")[1]
    blocks, scales = mxfp4.encode(x, rule, scales_from=given)
    expected = oracle.encode(x.astype(np.float32), mxfp4.RULES[rule], given)
    assert [blocks.tobytes(), scales.tobytes()] == [e.tobytes() for e in expected]
    plain = mxfp4.encode(x, rule)
    inexact = (mxfp4.decode(blocks, scales) != x.astype(np.float32)).any(axis=1)
    assert (
        inexact.any()
        and blocks[inexact].tobytes() == plain[0][inexact].tobytes()
        and scales[inexact].tobytes() == plain[1][inexact].tobytes()
    )
    with pytest.raises(ValueError, match="scales_from"):
        mxfp4.encode(x, rule, scales_from=given[:-1])


@pytest.mark.parametrize("rule", list(mxfp4.RULES))
def test_encode_survives_flushed_denormals(backend: str, rule: str) -> None:
    import torch

    x = hard_blocks(np.float32)
    x = np.concatenate([x, x * np.float32(2.0**-100)])
    given = mxfp4.encode(x, "ocp")[1]
    expected = mxfp4.encode(x, rule), mxfp4.encode(x, rule, given)
    torch.set_flush_denormal(True)
    try:
        got = mxfp4.encode(x, rule), mxfp4.encode(x, rule, given)
    finally:
        torch.set_flush_denormal(False)
    if backend != "numpy":  # numpy's own arithmetic obeys the flag
        assert [a.tobytes() for pair in got for a in pair] == [e.tobytes() for pair in expected for e in pair]


def test_of_equally_bad_tensors_the_first_by_name_is_shown() -> None:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    made = mxfp4.encode(x, "mse")
    for names in ("ab", "ba"):  # as threads happen to finish
        stats = mxfp4.QuantStats()
        for name in names:
            stats.add(name, x, made[0], made[1])
        assert "worst tensor: a, " in stats.text()


def test_statistics_are_what_they_say_in_any_order(backend: str) -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal((64, 8, 32)).astype(BF16)
    x[3, 1] = 0
    x[3, 2, :5] = -0.0
    base = mxfp4.encode(x, "ocp")
    made = mxfp4.encode(x, "mse")
    pieces = [slice(i, i + 8) for i in range(0, 64, 8)]
    one, other = mxfp4.QuantStats(), mxfp4.QuantStats()
    for stats, order in ((one, pieces), (other, pieces[::-1])):
        for p in order:
            stats.add("w", x[p].reshape(8, -1), made[0][p], made[1][p], (base[0][p], base[1][p]))
    assert one["w"] == other["w"] == one.total
    t, wide = one["w"], x.astype(np.float64)
    q = mxfp4.decode(*made, np.float64).reshape(wide.shape)
    assert t.relative_mse == pytest.approx(((q - wide) ** 2).sum() / (wide**2).sum(), rel=1e-12)
    differs = (made[0] != base[0]).any(-1) | (made[1] != base[1])
    assert (t.blocks, t.compared, t.changed) == (512, 512, int(differs.sum())) and 0 < t.changed < 512
    codes = oracle.codes(made[0])
    assert t.minus_zeros == (codes == 8).sum() >= 5 and t.zero_blocks == 1 == t.max_codes[0] and sum(t.max_codes) == 512
    assert t.max_codes[6] == ((codes & 7).max(-1) == 6).sum()
    assert "differ from the base's" in one.text() and one.as_dict()["total"]["changed"] == t.changed


def test_ggml_rule_writes_ggufs_bytes(backend: str) -> None:
    x = np.random.default_rng(5).standard_normal((64, 96)).astype(BF16).astype(np.float32) * np.float32(0.02)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(mxfp4.hf_to_ggml(*mxfp4.encode(x, "ggml")), theirs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_what_mxfp4_cannot_hold(backend: str, bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 40] = bad
    with pytest.raises(BadInput, match=r"NaN or Inf in block 3 \(values 96"):
        mxfp4.encode(x)


def test_an_unknown_or_impossible_choice_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sse9", "unknown GPTOSS_MXFP4"), ("neon", "cannot run it")):
        if name in usable_backends():
            continue
        monkeypatch.setenv("GPTOSS_MXFP4", name)
        library.library.cache_clear()
        with pytest.raises(UsageError, match=text):
            mxfp4.backend()
    monkeypatch.undo()
    library.library.cache_clear()


def test_import_needs_no_torch() -> None:
    code = "import sys, gptoss_adapters.mxfp4; print(sorted({'torch', 'ml_dtypes', 'triton'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"
