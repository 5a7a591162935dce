"""bench/gpu.py, on a CPU and interpreted where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

TINY = Path(__file__).parent / "data" / "checkpoints" / "tiny" / "hf-mxfp4"


def test_the_gpu_benchmark_runs(tmp_path: Path) -> None:
    """Here on a CPU, interpreted: every part of the program but its figures. Without a GPU it says so and writes
    nothing.
    """
    program, out = Path(__file__).parents[1] / "bench" / "gpu.py", tmp_path / "gpu.json"
    command = [sys.executable, program, "--checkpoint", TINY, "--batches", "1", "17", "--rounds", "1", "--out", out]
    if not torch.cuda.is_available():
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 2 and "no CUDA device" in refused.stderr and not out.exists()
    subprocess.run(
        [*command, "--device", "cpu", "--transformers"], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True
    )
    made = json.loads(out.read_text())
    assert (
        [row["batch"] for row in made["decode"]] == [1, 17]
        and "ms_graph" in made["decode"][0]
        and "ms_graph" not in made["decode"][1]
    )
    assert all(row["of_bandwidth"] > 0 for row in made["experts"] + made["decode"]) and len(made["transformers"]) == 2
