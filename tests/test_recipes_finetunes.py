"""The fine-tune recipes run: every `gptoss-convert` line, in order, on a small base, a tune of it and an adapter."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.crafted import GOLD
from helpers.documents import ROOT, commands, start_of
from helpers.kinds import write_kind
from safetensors.numpy import save_file

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare

BASE, TUNE = GOLD / "src" / "tiny-mxfp4", GOLD / "src" / "tiny-bf16"


def adapter(folder: Path) -> None:
    """Attention and fused experts of the gold checkpoint: H 96, I 64, E 8."""
    rng, at = np.random.default_rng(0), "base_model.model.model.layers.1"
    shapes = {
        "self_attn.q_proj.lora_A": (4, 96),
        "self_attn.q_proj.lora_B": (128, 4),
        "mlp.experts.base_layer.lora_A": (32, 96),
        "mlp.experts.base_layer.lora_B": (128, 32),
        "mlp.experts.lora_A": (32, 64),
        "mlp.experts.lora_B": (96, 32),
    }
    folder.mkdir()
    save_file(
        {f"{at}.{n}.weight": (0.1 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "peft_version": "0.21.2"})
    )


@pytest.mark.parametrize("name", ["peft_trl", "unsloth", "axolotl"])
def test_recipe_runs(name: str, tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    shutil.copytree(TUNE, tmp_path / "merged-bf16")
    write_kind(TUNE, "hf-defused", tmp_path / "unsloth-merged", shards=2)
    adapter(tmp_path / "my-adapter")
    ran = 0
    for program, *arguments in commands(ROOT / "recipes" / "finetunes" / f"{name}.md"):
        if program == "gptoss-convert":
            done = subprocess.run(
                [*start_of(program), *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (arguments, done.stderr)
            ran += 1
    assert ran >= 5
    if name == "axolotl":
        assert compare(open_checkpoint(tmp_path / "tune-mxfp4"), open_checkpoint(tmp_path / "tune-original")).ok
