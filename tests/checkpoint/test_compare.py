"""`compare`: every verdict, on upstream's own files and on seeded changes."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.errors import NotComparable

DATA = Path(__file__).parents[1] / "data"
TINY, SRC, GGUF = DATA / "checkpoints" / "tiny", DATA / "gguf" / "src", DATA / "gguf" / "gguf"
B, V, R, D = "BYTES EQUAL", "VALUES EQUAL", "ROUNDED AS DECLARED", "DIFFERENT"

PAIRS = [
    (TINY / "original", TINY / "hf-mxfp4", {B: 71}, set()),
    (TINY / "original", TINY / "hf-bf16", {B: 63, V: 8}, set()),
    (SRC / "tiny-mxfp4", GGUF / "tiny-mxfp4.gguf", {B: 71}, set()),
    (SRC / "tiny-bf16", GGUF / "tiny-bf16.gguf", {B: 71}, set()),
    (SRC / "tiny-bf16-deq", GGUF / "tiny-deq-f32.gguf", {B: 71}, set()),
    (SRC / "tiny-bf16-deq", GGUF / "tiny-deq-f16.gguf", {B: 45, V: 21, R: 5}, {"a -> b: f16"}),
    (SRC / "tiny-bf16-deq", GGUF / "tiny-deq-q8_0.gguf", {B: 45, R: 26}, {"a -> b: q8_0"}),
    (
        SRC / "tiny-bf16",
        GGUF / "tiny-bf16-MXFP4_MOE.gguf",
        {B: 45, R: 26},
        {"a -> b: q8_0", "a -> b: mxfp4 by rule ggml"},
    ),
    (SRC / "tiny-bf16-deq", GGUF / "tiny-bf16-deq-MXFP4_MOE.gguf", {B: 45, V: 8, R: 18}, {"a -> b: q8_0"}),
    (SRC / "tiny-mxfp4", GGUF / "tiny-bf16-deq.gguf", {B: 63, V: 8}, set()),
    (SRC / "tiny-mxfp4", GGUF / "tiny-deq-q8_0.gguf", {B: 45, R: 26}, {"a -> b: q8_0"}),
    (GGUF / "tiny-deq-q8_0.gguf", GGUF / "tiny-deq-q8_0.gguf", {B: 71}, set()),
    (SRC / "tiny-bf16", SRC / "tiny-bf16-deq", {B: 63, D: 8}, set()),
]


@pytest.mark.parametrize(("a", "b", "counts", "rules"), PAIRS, ids=lambda p: getattr(p, "name", ""))
@pytest.mark.parametrize("turned", [False, True])
def test_verdicts_on_gold(a: Path, b: Path, counts: dict[str, int], rules: set[str], turned: bool) -> None:
    report = compare(open_checkpoint(b if turned else a), open_checkpoint(a if turned else b))
    assert {v: n for v, n in report.counts.items() if n} == counts
    assert {r.rule.replace("b -> a", "a -> b") for r in report.results if r.rule} == rules
    assert all(r.rule.startswith("b -> a" if turned else "a -> b") for r in report.results if r.rule)
    assert report.ok == (D not in counts) and not report.config
    json.dumps(report.as_dict())


@pytest.mark.parametrize("rule", sorted(mxfp4.RULES))
def test_the_rounding_rule_is_recognised(tmp_path: Path, rule: str) -> None:
    made = edited(SRC / "tiny-mxfp4", tmp_path, requantise=rule)
    report = compare(open_checkpoint(SRC / "tiny-bf16"), made)
    assert report.counts[R] == 8 and all(
        r.rule and r.rule.startswith("a -> b: mxfp4 by rule") for r in report.results if r.verdict == R
    )


def edited(source: Path, into: Path, *, requantise: str = "", **bits: tuple[int, int]) -> Checkpoint:
    """A copy of a checkpoint with some bytes of tensors xored, or all its experts quantised again from tiny-bf16."""
    shutil.copytree(source, into / "x")
    file = into / "x" / "model.safetensors"
    tensors = load_file(file)
    for name, (at, mask) in bits.items():
        array = tensors[name.replace("__", ".")]
        array.view(np.uint8).reshape(-1)[at] ^= mask
    for name in [n for n in tensors if n.endswith("_blocks")] if requantise else []:
        dense = load_file(SRC / "tiny-bf16" / "model.safetensors")[name.removesuffix("_blocks")]
        tensors[name], tensors[name.replace("_blocks", "_scales")] = mxfp4.encode(
            dense.astype(np.float32).swapaxes(1, 2), rule=requantise
        )
    save_file(tensors, file)
    return open_checkpoint(into / "x")


def test_one_nibble_is_found_and_shown(tmp_path: Path) -> None:
    """Byte 5 of block 1 of row 7 of expert 2: its low nibble is value 10 of the block."""
    at = ((2 * 96 + 7) * 2 + 1) * 16 + 5
    made = edited(TINY / "hf-mxfp4", tmp_path, model__layers__1__mlp__experts__down_proj_blocks=(at, 0x05))
    for other in (TINY / "original", TINY / "hf-bf16"):
        report = compare(open_checkpoint(other), made)
        (bad,) = [r for r in report.results if r.verdict == D]
        assert bad.name == "layers.1.experts.down.weight" and not report.ok
        worst = bad.worst
        assert worst is not None and worst.index == (2, 7, 32) and worst.differing == 1
        assert [i for i in range(32) if worst.a_values[i] != worst.b_values[i]] == [10]
        assert worst.max_abs == abs(worst.a_values[10] - worst.b_values[10]) > 0
        blocks, scales = made.mxfp4(bad.name)
        assert worst.b_bytes == bytes([scales[2, 7, 1], *blocks[2, 7, 1]]).hex(" ")


def test_sign_of_zero_is_values_equal(tmp_path: Path) -> None:
    c = open_checkpoint(TINY / "hf-mxfp4")
    blocks, _ = c.mxfp4("layers.0.experts.gate_up.weight")
    at = int(np.argmax((blocks.reshape(-1) & 0x0F) == 0x08))  # a byte whose low nibble is -0
    made = edited(TINY / "hf-mxfp4", tmp_path, model__layers__0__mlp__experts__gate_up_proj_blocks=(at, 0x08))
    report = compare(c, made)
    assert [r.name for r in report.results if r.verdict == V] == ["layers.0.experts.gate_up.weight"] and report.counts[
        B
    ] == 70


@pytest.mark.parametrize(
    "name",
    [
        "model__norm__weight",
        "model__layers__3__self_attn__v_proj__weight",
        "model__layers__3__mlp__experts__gate_up_proj_bias",
    ],
)
def test_one_bit_of_a_dense_tensor_is_found(tmp_path: Path, name: str) -> None:
    made = edited(TINY / "hf-mxfp4", tmp_path, **{name: (64, 0x01)})
    (bad,) = [r for r in compare(open_checkpoint(TINY / "original"), made).results if r.verdict == D]
    assert bad.worst and bad.worst.differing == 1 and len(bad.worst.a_bytes.split()) == len(bad.worst.a_values)


def test_nan_is_equal_to_itself_by_bytes_only(tmp_path: Path) -> None:
    shutil.copytree(TINY / "hf-mxfp4", tmp_path / "x")
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    tensors["model.norm.weight"][3] = ml_dtypes.bfloat16(np.nan)
    save_file(tensors, tmp_path / "x" / "model.safetensors")
    made = open_checkpoint(tmp_path / "x")
    assert compare(made, made).counts == {B: 71, V: 0, R: 0, D: 0}
    report = compare(made, open_checkpoint(TINY / "original"))
    (bad,) = [r for r in report.results if r.verdict == D]
    assert bad.worst and bad.worst.max_abs == np.inf and bad.worst.index == (0,)


def test_config_that_changes_the_model_is_not_ok(tmp_path: Path) -> None:
    shutil.copytree(TINY / "hf-mxfp4", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text()) | {"sliding_window": 9, "eos_token_id": 5}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    report = compare(open_checkpoint(TINY / "hf-mxfp4"), open_checkpoint(tmp_path / "x"))
    assert report.counts[B] == 71 and not report.ok
    assert report.config == ["sliding_window: 8 / 9"] and report.notes == ["eos_token_id: 2 / 5"]


def test_other_shapes_are_not_comparable() -> None:
    with pytest.raises(NotComparable, match=r"embedding\.weight: the shapes differ"):
        compare(open_checkpoint(TINY / "original"), open_checkpoint(SRC / "tiny-mxfp4"))


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    compare(
        open_checkpoint(TINY / "original"),
        open_checkpoint(TINY / "hf-mxfp4"),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] and len(seen) == 71
