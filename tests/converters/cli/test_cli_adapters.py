"""`--lora` wherever a checkpoint is read, with an adapter that resizes the vocabulary and brings its own tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.adapters import made, rand
from helpers.convert_cli import data_of, run
from helpers.foreign_adapters import HF, H, V, gguf_tensors, made_by_llama_cpp, peft_tensors
from helpers.peft_cases import TINY, write_tiny

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.lora import with_adapters

ROWS = V + 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cli") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, a router in Unsloth's spelling with its bias, and both tables with eight rows more."""
    tables = {
        "base_model.model.model.embed_tokens.weight": rand(ROWS, H, seed=5),
        "base_model.model.lm_head.weight": rand(ROWS, H, seed=6),
        f"{HF}.0.mlp.router.linear.weight": rand(TINY.num_experts, H, seed=7),
        f"{HF}.0.mlp.router.linear.bias": rand(TINY.num_experts, seed=8),
    }
    folder = made(base, tmp_path_factory.mktemp("adapter") / "a", peft_tensors() | tables)
    (folder / "tokenizer.json").write_text('{"the adapter": "its own"}')
    (folder / "chat_template.jinja").write_text("the adapter's template")
    return folder


@pytest.mark.parametrize("command", ["to-hf", "to-openai", "to-mlx", "to-gguf"])
def test_a_resized_vocabulary_in_every_output(command: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / ("out.gguf" if command == "to-gguf" else "out")
    extra = {"to-hf": ["--experts", "bf16"], "to-gguf": ["--tokenizer", "none"]}.get(command, [])
    done = run(command, base, "-o", out, "--lora", adapter, *extra)
    assert done.returncode == 0, done.stderr
    assert f"the vocabulary goes from {V} to {ROWS} rows" in done.stderr
    written, view = open_checkpoint(out), with_adapters(open_checkpoint(base), [(adapter, 1.0)])
    assert written.config.vocab_size == ROWS
    for name in ("embedding.weight", "unembedding.weight", "layers.0.router.weight", "layers.0.router.bias"):
        got, wanted = written.read(name), view.read(name)
        assert got.shape == wanted.shape and np.all(np.abs(got - wanted) <= np.abs(wanted) * 2.0**-8), name
    if command == "to-hf":
        assert (out / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
        assert (out / "chat_template.jinja").read_text() == "the adapter's template"


def test_inspect_and_verify_take_adapters(base: Path, tmp_path: Path) -> None:
    adapter = made_by_llama_cpp(tmp_path / "a.gguf", gguf_tensors())
    found = data_of(run("inspect", base, "--no-histograms", "--lora", f"{adapter}:0.5", "--json"))
    assert any("merged times 0.5: 7 pairs" in odd for odd in found["oddities"])
    done = run("to-hf", base, "-o", tmp_path / "out", "--experts", "bf16", "--lora", adapter)
    assert done.returncode == 0, done.stderr
    assert run("verify", base, tmp_path / "out", "--lora", adapter).returncode == 0
    assert run("verify", base, tmp_path / "out").returncode == 1


def test_an_adapter_as_the_model_is_one_line(base: Path, adapter: Path, tmp_path: Path) -> None:
    for command in (("inspect", adapter), ("to-gguf", adapter, "-o", tmp_path / "x.gguf")):
        done = run(*command)
        assert done.returncode == 3 and done.stderr.count("\n") == 1
        assert "is a LoRA adapter, not a model: name the model that it is for, and the adapter by --lora" in done.stderr
