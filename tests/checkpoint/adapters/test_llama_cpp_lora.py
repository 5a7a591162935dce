"""A GGUF LoRA as llama.cpp applies it, against a model into which we merged it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.foreign_adapters import gguf_tensors, made_by_llama_cpp
from helpers.peft_cases import write_tiny
from safetensors.numpy import load_file, save_file

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.lora import with_adapters
from gptoss_adapters.checkpoint.writing.writer import write

LOGITS = """
import ctypes, sys
import llama_cpp, numpy
from gptoss_adapters.backends.llama_cpp import LlamaCpp
engine = LlamaCpp(sys.argv[1], n_ctx=64)
if len(sys.argv) > 3:
    adapter = llama_cpp.llama_adapter_lora_init(engine._model, sys.argv[3].encode())
    assert adapter
    one = (llama_cpp.llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    assert llama_cpp.llama_set_adapters_lora(engine._context, one, 1, (ctypes.c_float * 1)(float(sys.argv[4]))) == 0
numpy.save(sys.argv[2], numpy.concatenate(list(engine.rows([5, 17, 80, 2, 33, 60, 7, 90], 0))))
"""


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_applies_what_we_merge(tmp_path: Path) -> None:
    """In float32 on both sides; half the adapter, so that the scale counts too. llama.cpp runs in a child process."""
    base = write_tiny(tmp_path / "base")
    file = next(base.glob("*.safetensors"))
    save_file({name: tensor.astype(np.float32) for name, tensor in load_file(file).items()}, file)
    small = {name: tensor * np.asarray(0.2, tensor.dtype) for name, tensor in gguf_tensors().items()}
    adapter = made_by_llama_cpp(tmp_path / "a.gguf", small)
    options = GgufOptions(dense="f32", experts="f32", tokenizer="none")
    plain = open_checkpoint(base)
    for name, c in (("plain", plain), ("merged", with_adapters(plain, [(adapter, 0.5)]))):
        write(plan_gguf(c, tmp_path / f"{name}.gguf", options).plan, sync=False, read_back=False)

    def ask(model: str, *with_lora: str) -> np.ndarray:
        out = tmp_path / f"{model}{len(with_lora)}.npy"
        command = [sys.executable, "-c", LOGITS, str(tmp_path / f"{model}.gguf"), str(out), *with_lora]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return np.load(out)

    applied = ask("plain", str(adapter), "0.5")
    assert np.abs(applied - ask("plain")).max() > 1
    assert np.abs(applied - ask("merged")).max() < 0.02
