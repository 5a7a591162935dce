"""Files that change, that the system does not read, and GGUF metadata that does not fit."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import U32, Gguf, write

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.errors import BadInput, OutputError

DATA = Path(__file__).parents[1] / "data"


GOLD = DATA / "checkpoints" / "tiny"


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(GOLD / "original", tmp_path / "x")
    c = open_checkpoint(tmp_path / "x")
    c.check_unchanged()
    os.utime(tmp_path / "x" / "model.safetensors", ns=(1, 1))
    with pytest.raises(BadInput, match=r"model\.safetensors: the file changed"):
        c.check_unchanged()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_an_operating_system_error_is_an_io_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    shutil.copytree(GOLD / "original", tmp_path / "x")

    def refuse(*args: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(
        "gptoss_adapters.checkpoint.files.os.open", refuse
    )  # the tests may run as root, who may read everything
    with pytest.raises(OutputError, match=r"model\.safetensors: cannot be opened"):
        open_checkpoint(tmp_path / "x")


GGUF_CONFIG: dict[str, tuple[str, int, bytes, str]] = {
    "another architecture": (
        "general.architecture",
        8,
        b"\x05\0\0\0\0\0\0\0llama",
        "general.architecture is not gpt-oss",
    ),
    "scaling linear": (
        "gpt-oss.rope.scaling.type",
        8,
        b"\x06\0\0\0\0\0\0\0linear",
        "rope.scaling.type is not one of gpt-oss",
    ),
    "value length": ("gpt-oss.attention.value_length", 4, U32.pack(64), "attention.value_length differs"),
    "rotary dimension": ("gpt-oss.rope.dimension_count", 4, U32.pack(16), "rope.dimension_count differs"),
    "layers": ("gpt-oss.block_count", 4, U32.pack(5), "blk.4."),
    "a billion layers": ("gpt-oss.block_count", 4, U32.pack(10**9), "num_hidden_layers exceeds"),
    "zero layers": ("gpt-oss.block_count", 4, U32.pack(0), "num_hidden_layers must be a positive integer"),
    "layers as a string": ("gpt-oss.block_count", 8, b"\x01\0\0\0\0\0\0\x004", "block_count must be an integer"),
    "pattern too long": (
        "gpt-oss.attention.sliding_window_pattern",
        9,
        U32.pack(7) + b"\x05\0\0\0\0\0\0\0\1\1\0\0\1",
        "layer_types must have 4 entries",
    ),
    "pattern of strings": (
        "gpt-oss.attention.sliding_window_pattern",
        9,
        U32.pack(8) + b"\0" * 8,
        "sliding_window_pattern must hold",
    ),
    "eps NaN": (
        "gpt-oss.attention.layer_norm_rms_epsilon",
        6,
        b"\0\0\xc0\x7f",
        "rms_norm_eps must be a positive number",
    ),
    "experts": ("gpt-oss.expert_count", 4, U32.pack(7), "another number of experts"),
    "vocabulary": (
        "tokenizer.ggml.tokens",
        9,
        U32.pack(8) + b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a",
        "the vocabulary does not fit the embedding",
    ),
}


@pytest.mark.parametrize("name", GGUF_CONFIG)
def test_gguf_metadata_that_does_not_fit(tmp_path: Path, name: str) -> None:
    key, kind, value, said = GGUF_CONFIG[name]
    g = Gguf.parse((DATA / "gguf" / "gguf" / "tiny-mxfp4.gguf").read_bytes())
    g.set(key, kind, value)
    with pytest.raises(BadInput) as e:
        open_checkpoint(write(tmp_path / "x.gguf", g.bytes()))
    assert said in str(e.value) and str(tmp_path) in str(e.value)
