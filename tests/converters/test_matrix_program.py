"""Conversions by the program: what a target cannot say, statistics, and the way back to every byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gptoss_converters.cli.options import open_input, rounding_for
from gptoss_converters.rows.quantised import Quantised, Rounding
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_metal import plan_metal
from helpers.blobs import write_blob
from helpers.convert_cli import run
from helpers.crafted import GOLD, with_config
from helpers.exports import INPUTS
from helpers.kinds import save, write_kind
from safetensors.numpy import load_file

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"][2, 7, 9] = np.nan
    save(folder / "model.safetensors", tensors)


REFUSED: dict[str, tuple[str, Callable[[Path], object], list[str], str]] = {
    "SwiGLU limit in a GGUF": (
        "hf-mxfp4",
        lambda f: with_config(f, lambda c: c.update(swiglu_limit=5.0)),
        ["to-gguf"],
        "swiglu_limit",
    ),
    "layer pattern in OpenAI's config": (
        "hf-mxfp4",
        lambda f: with_config(f, lambda c: c.update(layer_types=["full_attention"] * 3)),
        ["to-openai"],
        "layer_types cannot be expressed",
    ),
    "eps in OpenAI's config": (
        "hf-bf16",
        lambda f: with_config(f, lambda c: c.update(rms_norm_eps=1e-6)),
        ["to-openai"],
        "rms_norm_eps cannot be expressed",
    ),
    "NaN in bf16 experts": ("hf-bf16", _nan, ["to-hf"], "NaN or Inf"),
    "NaN, kept dense": ("hf-bf16", _nan, ["to-hf", "--experts", "bf16"], "NaN or Inf"),
    "float16 that would overflow": (
        "hf-mxfp4",
        lambda f: _scale(f, 150),
        ["to-gguf", "--experts", "f16"],
        "float16 cannot hold exactly",
    ),
    "experts": (
        "hf-defused",
        lambda f: with_config(f, lambda c: c.update(num_local_experts=4)),
        ["to-hf"],
        "another number of experts",
    ),
    "scales of another model": (
        "hf-bf16",
        lambda f: None,
        ["to-hf", "--scales-from", GOLD / "src" / "tiny-mxfp4"],
        "no MXFP4 scales for this model",
    ),
    "scales of a dense model": (
        "hf-bf16",
        lambda f: None,
        ["to-hf", "--scales-from", GOLD / "src" / "tiny-bf16"],
        "no MXFP4 scales for this model",
    ),
    "a side file of another model": (
        "hf-bf16",
        lambda f: save(f / "original-scales.mxfp4", {"x": np.zeros(4, np.uint8)}),
        ["to-hf"],
        "does not hold the scales of this model",
    ),
}


def _scale(folder: Path, value: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 7, 1] = value
    save(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_exit_3_and_nothing_written(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, change, command, said = REFUSED[name]
    folder = write_kind(bases["odd"], kind, tmp_path / "c")
    change(folder)
    out = tmp_path / ("o.gguf" if command[0] == "to-gguf" else "o")
    done = run(
        command[0], folder, "-o", out, *command[1:], *(["--tokenizer", "none"] if command[0] != "to-openai" else [])
    )
    assert done.returncode == 3, done.stderr
    assert said in done.stderr and done.stderr.splitlines()[-1].startswith("error: ") and not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_usage_errors(bases: dict[str, Path], tmp_path: Path) -> None:
    for options, said in ((["--rounding", "best"], "unknown rule"), (["--lora-order", "trl"], "peft or unsloth")):
        done = run("to-hf", bases["odd"], "-o", tmp_path / "o", *options)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "o").exists()


def test_statistics_are_printed_and_recorded(
    bases: dict[str, Path], inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    import json

    done = run("to-hf", inputs("odd", "hf-bf16"), "-o", tmp_path / "o", "--scales-from", bases["odd"], "--json")
    assert done.returncode == 0, done.stderr
    said, recorded = (
        json.loads(done.stdout)["quantisation"],
        json.loads((tmp_path / "o" / "quantisation.json").read_text()),
    )
    assert said["total"]["changed"] == 0 and said["total"]["relative_mse"] == 0 and said["total"]["blocks"] == 21600
    assert recorded == {"rule": "mse", **said} and len(said["tensors"]) == 6
    text = run("to-hf", inputs("odd", "hf-bf16"), "-o", tmp_path / "p", "--rounding", "triton").stdout
    assert "relative MSE" in text and "zero blocks" in text


def test_any_thread_count_and_an_interrupted_run_give_the_same_bytes(
    inputs: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantising, killed half way and resumed: the same files, and statistics of all blocks."""
    source, made = inputs("odd", "hf-defused"), []

    def plan(out: Path) -> tuple[Plan, Rounding]:
        out.mkdir(exist_ok=True)
        c = open_input(str(source), None)
        rounding = rounding_for(c, "even", None)
        return plan_hf(c, out, HfOptions(), rounding).plan, rounding

    for threads in (1, 3):
        whole, rounding = plan(tmp_path / str(threads))
        write(whole, threads=threads, sync=False)
        made.append(((tmp_path / str(threads) / "model.safetensors").read_bytes(), rounding.stats.as_dict()))
    assert made[0] == made[1]
    calls, produce = [], Quantised.produce

    def dying(self: Quantised, begin: int, end: int) -> object:
        calls.append(begin)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return produce(self, begin, end)

    monkeypatch.setattr(Quantised, "produce", dying)
    with pytest.raises(KeyboardInterrupt):
        write(plan(tmp_path / "cut")[0], threads=1)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again, rounding = plan(tmp_path / "cut")
    done = write(again, threads=1, resume=True)
    assert done.resumed and ((tmp_path / "cut" / "model.safetensors").read_bytes(), rounding.stats.as_dict()) == made[0]


@pytest.mark.parametrize("split", [[], ["--split-max-size", "1M"]], ids=["whole", "split"])
def test_a_dequantised_gguf_carries_its_scales(split: list[str], bases: dict[str, Path], tmp_path: Path) -> None:
    assert (
        run(
            "to-gguf", bases["odd"], "-o", tmp_path / "d.gguf", "--experts", "bf16", "--tokenizer", "none", *split
        ).returncode
        == 0
    )
    assert (tmp_path / "d.gguf.original-scales.mxfp4").is_file()
    assert run("to-hf", min(tmp_path.glob("d*.gguf")), "-o", tmp_path / "o").returncode == 0
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (bases["odd"] / "model.safetensors").read_bytes()


def test_the_scales_of_a_replaced_gguf_go_with_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """They were taken for those of the new file, which then could not be converted back."""
    out, side = tmp_path / "d.gguf", tmp_path / "d.gguf.original-scales.mxfp4"
    assert run("to-gguf", bases["odd"], "-o", out, "--experts", "bf16", "--tokenizer", "none").returncode == 0
    tiny = ["to-gguf", GOLD / "src" / "tiny-bf16", "-o", out]
    out.unlink()
    refused = run(*tiny)
    assert (
        refused.returncode == 4
        and "original-scales.mxfp4: holds the scales of an earlier output" in refused.stderr
        and not out.exists()
    )
    assert run(*tiny, "--force").returncode == 0 and not side.exists()
    assert run("to-hf", out, "-o", tmp_path / "o").returncode == 0


def test_a_gguf_with_the_real_vocabulary_becomes_a_whole_folder(tmp_path: Path) -> None:
    """Weights, tokenizer and generation config of pocket, through a GGUF and back."""
    write(plan_new("pocket", tmp_path / "p"), sync=False, read_back=False)
    assert run("to-gguf", tmp_path / "p", "-o", tmp_path / "p.gguf").returncode == 0
    done = run("to-hf", tmp_path / "p.gguf", "-o", tmp_path / "o")
    assert done.returncode == 0 and "the vocabulary in the file is theirs" in done.stderr
    assert {f.name for f in (tmp_path / "o").iterdir()} == {f.name for f in (tmp_path / "p").iterdir()}
    for file in (tmp_path / "p").iterdir():
        assert (tmp_path / "o" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_ollama_blob_gets_what_llama_cpp_wants(bases: dict[str, Path], tmp_path: Path) -> None:
    blob = write_blob(bases["odd"], tmp_path / "blob", vocabulary=True)
    assert run("to-gguf", blob, "-o", tmp_path / "o.gguf").returncode == 0
    m = open_checkpoint(tmp_path / "o.gguf").metadata
    assert (
        m["tokenizer.ggml.pre"] == "gpt-4o"
        and m["tokenizer.ggml.eos_token_id"] == 200002
        and m["tokenizer.ggml.padding_token_id"] == 199999
    )
    assert (
        "<|channel|>" in m["tokenizer.chat_template"]
        and len(m["tokenizer.ggml.tokens"]) == 1003
        and m["gpt-oss.rope.scaling.type"] == "yarn"
    )


@pytest.mark.parametrize("base", ["odd", "tiny"])
@pytest.mark.parametrize("kind", INPUTS)
def test_metal_refuses_what_its_kernels_cannot_compute(
    base: str, kind: str, inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Its kernels want head_dim 64; what they take goes to Metal and back in test_to_metal.py."""
    with pytest.raises(BadInput, match="head_dim") as refused:
        plan_metal(open_input(str(inputs(base, kind)), None), tmp_path / "model.bin")
    assert refused.value.exit_code == 3 and not any(tmp_path.iterdir())
