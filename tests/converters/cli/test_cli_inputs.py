"""What people give to `gptoss-convert`, and what it says to them."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import gguf
import pytest
from gptoss_converters.cli.to_gguf import _suggest_commands
from helpers.convert_cli import SOURCE, data_of, run
from helpers.crafted import MODEL, copy

GGML_TYPE_MXFP4 = 39


def test_links_are_followed_when_asked(tmp_path: Path) -> None:
    folder = copy(tmp_path / "x")
    (folder / MODEL).rename(tmp_path / "elsewhere")
    (folder / MODEL).symlink_to(tmp_path / "elsewhere")
    refused = run("to-hf", folder, "-o", tmp_path / "o", "--tokenizer", "none")
    assert refused.returncode == 3 and "--follow-links" in refused.stderr and refused.stderr.count("\n") == 1
    assert run("to-hf", folder, "-o", tmp_path / "o", "--tokenizer", "none", "--follow-links").returncode == 0
    assert data_of(run("inspect", folder, "--no-histograms", "--follow-links", "--json"))["kind"] == "hf-mxfp4"
    assert run("verify", folder, tmp_path / "o", "--follow-links").returncode == 0


def test_what_is_not_obeyed_is_said_by_an_exporter(tmp_path: Path) -> None:
    folder = copy(tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"my_key": 1, "eos_token_id": [5, 6]}))
    done = run("to-hf", folder, "-o", tmp_path / "o", "--tokenizer", "none")
    assert done.returncode == 0 and "note: config.json: keys that are not of gpt-oss" in done.stderr
    kept = json.loads((tmp_path / "o" / "config.json").read_text())
    assert kept == config | {"my_key": 1, "eos_token_id": [5, 6]}


def test_check_modelfile_prints_an_error_once(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text("FROM ./nothing.gguf\nPARAMETER nonsense 1\n")
    done = run("check-modelfile", tmp_path / "Modelfile")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "nonsense" in line]
    assert done.returncode == 1 and len(lines) == 1 and re.search(r"error: .*Modelfile: \d+ errors", done.stderr)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://example.com/x/y", "is not an address of the Hugging Face Hub"),
        ("https://huggingface.co/datasets/a/b", "is not the address of a model's files"),
        ("ftp://a/b", "is not an address of the Hugging Face Hub"),
        ("not there", "no such file or folder"),
    ],
)
def test_a_path_that_is_none_is_said_in_one_line(path: str, words: str) -> None:
    done = run("inspect", path)
    assert done.returncode == 3 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.backend("llama_cpp")
def test_llama_quantize_takes_our_files_and_leaves_the_experts(tmp_path: Path) -> None:
    """The suggested line, by llama.cpp's own library, whose program it is; we read the experts of what it made."""
    import llama_cpp
    from llama_cpp.llama_cpp import llama_model_tensor_override

    source, out = tmp_path / "tiny.gguf", tmp_path / "tiny-Q4_K_M.gguf"
    assert run("to-gguf", SOURCE, "-o", source, "--tokenizer", "none").returncode == 0
    (line,) = [one for one in _suggest_commands(source, "x", True, packed=True) if one.startswith("llama-quantize")]
    assert line == f"llama-quantize --imatrix imatrix.gguf --tensor-type exps=mxfp4 {source} {out} Q4_K_M"
    assert "exps=mxfp4" not in "".join(_suggest_commands(source, "x", True, packed=False))
    keep = (llama_model_tensor_override * 2)()
    keep[0].pattern, keep[0].type = b"exps", GGML_TYPE_MXFP4
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype, options.tt_overrides = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, keep
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options)) == 0
    before, after = ({t.name: t for t in gguf.GGUFReader(file).tensors} for file in (source, out))
    experts = [name for name in before if name.endswith("exps.weight")]
    assert len(experts) == 12 and out.stat().st_size < 0.8 * source.stat().st_size
    assert all(before[name].data.tobytes() == after[name].data.tobytes() for name in experts)
