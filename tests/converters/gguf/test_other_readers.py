"""Other programs' GGUF readers load our files and agree on names, shapes, types, offsets and metadata."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.crafted import GOLD
from test_to_gguf import convert

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.gguf import GgufFile

NPM_PACKAGE = "@huggingface/gguf@0.4.6"
VARIANTS = {
    "default": GgufOptions(),
    "q8_0": GgufOptions(dense="q8_0"),
    "f32": GgufOptions(dense="f32", experts="f32"),
    "hashed": GgufOptions(sha256=True),
    "no vocabulary": GgufOptions(tokenizer="none"),
}


@pytest.fixture(params=VARIANTS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, tuple[str, list[int], int]]]:
    """A file, and what the plan says is in it: name -> type, ggml shape, offset in the file."""
    options = VARIANTS[request.param]
    out = convert(GOLD / "src" / "tiny-mxfp4", tmp_path / "out.gguf", options)
    planned = plan_gguf(open_checkpoint(GOLD / "src" / "tiny-mxfp4"), out, options).plan.files[0]
    return out, {
        t.name: (t.dtype, list(t.shape)[::-1], o) for t, o in zip(planned.tensors, planned.offsets, strict=True)
    }


def ours(path: Path) -> dict[str, Any]:
    """Metadata as our own reader sees it, in plain types."""
    return {
        k: list(v) if not isinstance(v, str | int | float | bool) else v for k, v in GgufFile(path).metadata.items()
    }


def test_gguf_py(made: tuple[Path, Any]) -> None:
    path, planned = made
    reader = gguf.GGUFReader(path)
    assert {t.name: (t.tensor_type.name, t.shape.tolist(), t.data_offset) for t in reader.tensors} == planned
    seen = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    expected = ours(path)
    assert list(seen) == list(expected)
    assert all(
        np.allclose(v, expected[k], rtol=1e-7) if isinstance(v, float) else v == expected[k] for k, v in seen.items()
    )


@pytest.fixture(scope="session")
def npm_reader() -> Path:
    """A folder with the npm package installed; kept between sessions."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptoss-adapters-tests" / "npm"
    if not (folder / "node_modules" / "@huggingface" / "gguf").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm")
        assert npm, "npm is needed for this test"
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), NPM_PACKAGE],
            check=True,
            capture_output=True,
            timeout=240,
        )
    return folder


SCRIPT = """
import { gguf } from "@huggingface/gguf";
const r = await gguf(process.argv[2], { allowLocalFile: true });
const big = (_, v) => typeof v === "bigint" ? Number(v) : v;
console.log(JSON.stringify({ metadata: r.metadata, tensors: r.tensorInfos, data: r.tensorDataOffset }, big));
"""


def test_huggingface_gguf(made: tuple[Path, Any], npm_reader: Path, tmp_path: Path) -> None:
    path, planned = made
    script = npm_reader / "read.mjs"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["node", str(script), str(path)], capture_output=True, text=True, cwd=npm_reader, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    types = {v.value: k for k, v in gguf.GGMLQuantizationType.__members__.items()}
    seen = {t["name"]: (types[t["dtype"]], t["shape"], t["offset"] + read["data"]) for t in read["tensors"]}
    assert seen == planned
    expected = ours(path)
    metadata = {k: v for k, v in read["metadata"].items() if k not in ("version", "tensor_count", "kv_count")}
    assert metadata.keys() == expected.keys()
    for key, value in metadata.items():
        assert (
            value == pytest.approx(expected[key], rel=1e-6) if isinstance(value, float) else value == expected[key]
        ), key


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_python_reads_metadata_and_vocabulary(tmp_path: Path) -> None:
    """In a child: a file that it does not like aborts the process."""
    out = convert(GOLD / "src" / "tiny-mxfp4", tmp_path / "out.gguf")
    code = """
import hashlib, json, sys, llama_cpp
m = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
tokens = [llama_cpp.llama_vocab_get_text(m._model.vocab, i).decode() for i in range(m.n_vocab())]
print(json.dumps({"metadata": m.metadata, "tokens": hashlib.sha256("\\n".join(tokens).encode()).hexdigest()}))
"""
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    read, expected = json.loads(done.stdout.splitlines()[-1]), ours(out)
    assert read["tokens"] == hashlib.sha256("\n".join(expected["tokenizer.ggml.tokens"]).encode()).hexdigest()
    for key, value in read["metadata"].items():
        if isinstance(expected[key], str) and key != "tokenizer.chat_template":
            assert value == expected[key]
        elif isinstance(expected[key], bool):
            assert value == str(expected[key]).lower()
        elif isinstance(expected[key], int | float):
            assert float(value) == pytest.approx(expected[key], rel=1e-5)
    assert {"gpt-oss.block_count", "tokenizer.ggml.pre", "gptoss_adapters.source_kind"} <= read["metadata"].keys()
