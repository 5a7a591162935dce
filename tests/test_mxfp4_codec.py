"""Every codec path against ml_dtypes, gguf-py and the numpy oracle, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from gptoss_adapters import mxfp4
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.mxfp4 import library, oracle

BF16 = ml_dtypes.bfloat16
ALL_SCALES = np.arange(256, dtype=np.uint8)


def usable_backends() -> list[str]:
    native = library._load()
    return [n for n in library.NAMES if n == "torch" or (native and native.select(n.encode()))]


@pytest.fixture(params=usable_backends())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GPTOSS_MXFP4", request.param)
    library.library.cache_clear()
    yield request.param
    monkeypatch.undo()
    library.library.cache_clear()


def random_weights(*lead: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*lead, 16), np.uint8), rng.integers(0, 255, lead, np.uint8)


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    """256 rows of one block that holds all 16 codes twice, one row per scale byte."""
    row = oracle.pack(np.tile(np.arange(16, dtype=np.uint8), 2))
    return np.tile(row, (256, 1, 1)), ALL_SCALES[:, None]


def test_the_native_library_is_built_and_chosen() -> None:
    assert library._load() is not None, "run `make native`: CI must test the compiled kernels"
    assert {"portable", "torch"} < set(usable_backends())


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
    torch = pytest.importorskip("torch")
    blocks, scales = every_pair()
    expected = mxfp4.decode(blocks, scales)
    torch.set_flush_denormal(True)
    try:
        got = mxfp4.decode(blocks, scales)
    finally:
        torch.set_flush_denormal(False)
    if backend != "torch":  # numpy's own arithmetic obeys the flag
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
    with pytest.raises(BadInput, match=r"^x\.safetensors: w_scales: 1 MXFP4 scale bytes are 255 \(NaN\), the first at \[1, 0, 2\]$"):
        mxfp4.check_scales(scales, "x.safetensors", "w_scales")


def edge_blocks() -> np.ndarray:
    """Blocks that broke quantisers: zeros, subnormals, ties at every threshold, single values, the largest finite."""
    rng = np.random.default_rng(1)
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    blocks = [np.zeros(32), -np.zeros(32), np.full(32, tiny), np.full(32, huge), np.r_[huge, np.zeros(31)]]
    ties = np.r_[oracle.THRESHOLDS, -oracle.THRESHOLDS, 4, 6, -6, 7, 7.5, 7.99, 5.5, 3.5, 3.49, np.zeros(9)]
    blocks += [ties * 2.0**e for e in range(-140, 125, 5)]
    blocks += [np.r_[m * 2.0**e, np.zeros(31)] for e in (-149, -130, -127, -126, -125, -3, 0, 100) for m in (1, 1.4999, 1.5, 1.75, 1.9)]
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


def test_dense_conversions_are_exact_or_rounded_like_numpy(backend: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    finite = every[(every & 0x7F80) != 0x7F80]
    np.testing.assert_array_equal(mxfp4.to_f32(finite), finite.view(BF16).astype(np.float32))
    assert mxfp4.to_f32(every.view(BF16).reshape(256, 256)).shape == (256, 256)
    with np.errstate(over="ignore"):
        assert mxfp4.to_f16(finite).tobytes() == finite.view(BF16).astype(np.float32).astype(np.float16).tobytes()
        halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        near = np.concatenate([halves, np.nextafter(halves, np.float32(1e9)), (halves[1:] + halves[:-1]) / 2, -halves, np.float32([1e9, -1e9, 65520])])
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
    root = Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
