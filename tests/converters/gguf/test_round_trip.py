"""GGUF -> canonical tensors -> Hugging Face layout gives back the source's bytes, for every preset and gold
checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.crafted import GOLD
from test_to_gguf import CHECKPOINTS, convert

from gptoss_adapters.checkpoint import Checkpoint, layouts, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.storage import BLOCKS, SWAPPED, Part
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.spec import GPT_OSS_120B

NO_VOCABULARY = GgufOptions(tokenizer="none")


def assert_comes_back(gguf: Checkpoint, source: Checkpoint) -> None:
    """Every stored tensor of `source`, made again from the canonical tensors of `gguf`, one at a time."""
    stored = {s.name: s for t in source.tensors.values() for s in t.sources}
    made: dict[str, bytes] = {}
    for name, parts in layouts.parts(source.kind, gguf.config).items():
        for part, data in zip(parts, as_stored(gguf, name, parts), strict=True):
            made[part.name] = made.get(part.name, b"") + data  # q, k and v follow each other in the fused tensor
            if len(made[part.name]) == stored[part.name].nbytes:
                assert made.pop(part.name) == source.raw(stored.pop(part.name)).tobytes(), part.name
    assert not stored and not made


def as_stored(gguf: Checkpoint, name: str, parts: tuple[Part, ...]) -> list[bytes]:
    if parts[0].storage == BLOCKS:
        return [array.tobytes() for array in gguf.mxfp4(name)]
    values = np.asarray(gguf.read(name, np.float32)).astype(ml_dtypes.bfloat16)
    return [(values.swapaxes(-1, -2) if parts[0].storage == SWAPPED else values).tobytes()]


@pytest.mark.parametrize(
    "folder",
    [
        *(CHECKPOINTS / m / k for m in ("tiny", "tiny-margin") for k in ("original", "hf-mxfp4", "hf-bf16")),
        GOLD / "src" / "tiny-mxfp4",
        GOLD / "src" / "tiny-bf16",
    ],
    ids=lambda p: f"{p.parent.name}-{p.name}",
)
def test_gold(folder: Path, tmp_path: Path) -> None:
    assert_comes_back(open_checkpoint(convert(folder, tmp_path / "out.gguf", NO_VOCABULARY)), open_checkpoint(folder))


@pytest.mark.parametrize("kind", ["hf-mxfp4", "hf-bf16", "openai"])
@pytest.mark.parametrize("preset", ["odd-shape", "pocket"])
def test_presets(preset: str, kind: str, tmp_path: Path) -> None:
    write(plan_new(preset, tmp_path / "c", kind=kind), sync=False, read_back=False)
    assert_comes_back(
        open_checkpoint(convert(tmp_path / "c", tmp_path / "out.gguf", NO_VOCABULARY)), open_checkpoint(tmp_path / "c")
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["20b-shape", "120b-shape"])
def test_true_shapes(preset: str, tmp_path: Path) -> None:
    """Two layers of the true shapes, through the program and back."""
    run("new", preset, "-o", tmp_path / "c", "--layers", 2)
    run("to-gguf", tmp_path / "c", "-o", tmp_path / "out.gguf", "--tokenizer", "none")
    assert "BYTES EQUAL" in run("verify", tmp_path / "c", tmp_path / "out.gguf")
    assert_comes_back(open_checkpoint(tmp_path / "out.gguf"), open_checkpoint(tmp_path / "c"))


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sparse_120b(folder: Path) -> Path:
    """A checkpoint of 120b's config and tensor list whose 65 GB of zeros take no space."""
    plan = plan_new("120b-shape", folder)
    for file in plan.files:
        with file.path.open("wb") as f:
            f.write(file.header)
            f.truncate(file.size)
    small = {
        file.path.name: work.fill
        for work in plan.works
        for file in [plan.files[work.places[0].file]]
        if file.size < 100_000_000
    }
    for file in plan.files:
        if file.path.name in small:
            fill = small[file.path.name]
            with file.path.open("r+b") as f:
                fill.write(0, fill.rows, [(f.fileno(), file.offsets[0])])
    return folder


def test_the_whole_120b_is_planned_in_seconds(tmp_path: Path) -> None:
    folder = sparse_120b(tmp_path / "c")
    checkpoint = open_checkpoint(folder)
    assert (
        checkpoint.config.num_hidden_layers == GPT_OSS_120B.num_hidden_layers and len(stored_names(checkpoint)) == 687
    )
    plan = plan_gguf(checkpoint, tmp_path / "out.gguf", NO_VOCABULARY).plan
    tensors = plan.files[0].tensors
    assert len(tensors) == 687 and sum(t.nbytes for t in tensors) == expected_bytes()
    printed = json.loads(
        run("to-gguf", folder, "-o", tmp_path / "out.gguf", "--tokenizer", "none", "--dry-run", "--json")
    )
    assert printed["bytes"] == plan.nbytes and len(printed["tensors"]) == 687
    split = plan_gguf(
        checkpoint, tmp_path / "out.gguf", GgufOptions(tokenizer="none", split_max_size=4_000_000_000)
    ).plan
    assert len(split.files) >= 17 and all(sum(t.nbytes for t in f.tensors) <= 4_000_000_000 for f in split.files)
    assert not (tmp_path / "out.gguf").exists()


def stored_names(c: Checkpoint) -> set[str]:
    return {s.name for t in c.tensors.values() for s in t.sources}


def expected_bytes() -> int:
    """The published 120b: experts at 17 bytes for 32 values, matrices bf16, all else f32."""
    c = GPT_OSS_120B
    h, i, e, n = c.hidden_size, c.intermediate_size, c.num_experts, c.num_hidden_layers
    experts = n * 3 * e * h * i // 32 * 17
    matrices = 2 * (2 * c.vocab_size * h + n * (h * (c.q_rows + 2 * c.kv_rows) + c.q_rows * h))
    small = n * (c.q_rows + 2 * c.kv_rows + h + c.num_attention_heads + 2 * h + h * e + e + 2 * i * e + h * e) + h
    return experts + matrices + 4 * small


@pytest.mark.backend("llama_cpp")
@pytest.mark.slow
def test_two_layers_of_120b_run_in_llama_cpp(tmp_path: Path) -> None:
    from gptoss_adapters.backends import open_backend

    run("new", "120b-shape", "-o", tmp_path / "c", "--layers", 2)
    run("to-gguf", tmp_path / "c", "-o", tmp_path / "out.gguf")
    report = compare(open_checkpoint(tmp_path / "c"), open_checkpoint(tmp_path / "out.gguf"))
    assert report.ok and report.counts["BYTES EQUAL"] == 2 * 17 + 3
    with open_backend(f"llama_cpp={tmp_path / 'out.gguf'}", n_ctx=64) as backend:
        logits = backend.logits([1, 2, 3, 4])
    assert logits.shape == (4, 201088) and np.isfinite(logits).all()
