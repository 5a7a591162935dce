"""Ollama as a target, judged by the log-probabilities that it gives of raw prompts; llama.cpp computes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.ollama_over_llama import ollama_over_llama

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.parity.cli import app

pytestmark = pytest.mark.backend("llama_server")


def judge(pocket: Path, gguf: Path, folder: Path) -> dict[str, Any]:
    with ollama_over_llama(gguf) as url, pytest.raises(SystemExit):
        arguments = ["run", str(pocket), "--no-text", "-t", f"ollama[host={url}]=pocket", "-o", str(folder)]
        app(arguments, standalone_mode=False)
    (target,) = json.loads((folder / "report.json").read_text())["targets"]
    assert isinstance(target, dict)
    return target


def test_the_same_model_passes(pocket: Path, pocket_gguf: Path, tmp_path: Path) -> None:
    target = judge(pocket, pocket_gguf, tmp_path)
    assert target["verdict"] in ("SAME", "SAME EXCEPT"), target["reason"]


def test_another_rotation_does_not(pocket: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(pocket)
    changed = checkpoint.with_config(replace(checkpoint.config, rope_theta=1000.0))
    write(plan_gguf(changed, tmp_path / "x.gguf", GgufOptions()).plan, sync=False)
    assert judge(pocket, tmp_path / "x.gguf", tmp_path)["verdict"] == "DIFFERENT"
