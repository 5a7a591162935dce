"""The Triton kernels as machine code of GPUs that need not be here: Triton brings NVIDIA's assembler and AMD's.

What is looked at is what a GPU's time hangs on: weights read 16 bytes at a time, few instructions a weight while
decoding (a GPU of 3.35 TB/s and 29.6e12 instructions a second has 4.4 for each weight it can read), tensor cores for
prompts, nothing spilled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "helpers" / "triton_compile_main.py"
NVIDIA = ("sm_80", "sm_90", "sm_120")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    said = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    return [json.loads(line) for line in said.stdout.splitlines()]


def of(made: list[dict[str, Any]], kernel: str, *targets: str, dtype: str | None = None) -> list[dict[str, Any]]:
    rows = [r for r in made if r["kernel"] == kernel and r["target"] in targets and dtype in (None, r["dtype"])]
    assert {r["target"] for r in rows} == set(targets)
    return rows


@pytest.mark.parametrize("kernel", ["_partial_rows", "_add_swiglu", "_add_combine", "_tile"])
def test_every_kernel_compiles_for_every_target(made: list[dict[str, Any]], kernel: str) -> None:
    rows = of(made, kernel, *NVIDIA, "gfx942")
    assert len(rows) == 4 * 2 * {"_partial_rows": 2, "_tile": 4}.get(kernel, 1)  # gate_up and down; few tokens and many
    assert all(r["shared"] <= 64 << 10 for r in rows if r["target"] == "gfx942") and all(
        r["shared"] <= 96 << 10 for r in rows
    )


def test_decoding_reads_wide_and_takes_few_instructions(made: list[dict[str, Any]]) -> None:
    for row in of(made, "_partial_rows", *NVIDIA):
        assert row["wide_loads"] >= 4 and row["registers"] <= 128 and row["stack"] == 0, row
        assert row["instructions_per_value"] <= 6, row


def test_prompts_run_on_tensor_cores(made: list[dict[str, Any]]) -> None:
    assert all(r["products"] > 0 and r["stack"] == 0 for r in of(made, "_tile", *NVIDIA))
