"""A mapped input that shrinks while a command reads it: one line and the exit code of bad input, not a crash by
SIGBUS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.crafted import GOLD, copy
from helpers.kinds import write_kind
from safetensors.numpy import save_file

BASE = GOLD / "src" / "tiny-mxfp4"
# The command line of `gptoss-convert`, with the victim cut short just before the first tensor is read.
PROGRAM = """
import os, sys
from gptoss_adapters.checkpoint import compare
from gptoss_adapters.checkpoint.writing import writer
from gptoss_converters.cli import program

victim = sys.argv.pop(1)

def cutting(real):
    def run(*arguments, **options):
        os.truncate(victim, 4096)
        return real(*arguments, **options)
    return run

writer._Run.carry_out = cutting(writer._Run.carry_out)
compare._judge = cutting(compare._judge)
program.main()
"""


def adapter(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {
        "q_proj.lora_A": (16, 96),
        "q_proj.lora_B": (128, 16),
        "o_proj.lora_A": (16, 128),
        "o_proj.lora_B": (96, 16),
    }
    names = {f"base_model.model.model.layers.{n}.self_attn.{k}.weight": s for n in range(4) for k, s in shapes.items()}
    folder.mkdir()
    save_file(
        {n: rng.standard_normal(s).astype(np.float32) for n, s in names.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16, "peft_version": "0.21.2"})
    )
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("case", ["lora", "experts apart", "gguf", "verify"])
def test_one_line_and_exit_code_3(case: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if case == "lora":
        victim = adapter(tmp_path / "adapter")
        command = [
            "to-hf",
            str(copy(tmp_path / "c")),
            "-o",
            str(out),
            "--experts",
            "bf16",
            "--lora",
            str(victim.parent),
        ]
    elif case == "experts apart":
        folder = write_kind(GOLD / "src" / "tiny-bf16", "hf-defused", tmp_path / "c")
        victim = folder / "model.safetensors"
        command = ["to-gguf", str(folder), "-o", str(out), "--tokenizer", "none", "--experts", "mxfp4"]
    else:
        victim = tmp_path / "c.gguf"
        subprocess.run(
            [sys.executable, "-m", "gptoss_converters.cli", "to-gguf", str(BASE), "-o", str(victim)],
            check=True,
            capture_output=True,
        )
        command = (
            ["verify", str(BASE), str(victim)]
            if case == "verify"
            else ["to-hf", str(victim), "-o", str(out), "--experts", "bf16"]
        )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(victim), *command], capture_output=True, text=True, timeout=120
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == 3 and len(errors) == 1, (done.returncode, done.stderr)
    assert errors[0].startswith(f"error: {victim}: the file ") and "run again when nothing writes to it" in errors[0]
    assert not out.exists() or not any(not p.name.startswith(".") for p in out.iterdir()), (
        "something stands under a final name"
    )
