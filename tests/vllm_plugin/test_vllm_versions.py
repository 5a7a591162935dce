"""The matrix of vLLM's versions: what is committed is what a run finds, for the newest release and an old one here, for
all of them in `make test-slow`.

Both are fetched from the package index, as `make vllm-matrix` does: without it these tests fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED: dict[str, Any] = json.loads((ROOT / "tests/data/vllm_versions.json").read_text())
NEWEST, OLD = "0.33.0", "0.27.1"
REST = [version for version in COMMITTED if version not in (NEWEST, OLD) and "engines" in COMMITTED[version]]

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(1200)]


def run_again(version: str, out: Path, *more: str) -> dict[str, Any]:
    """Beside what is committed of the others, whose greedy tokens it must give too."""
    out.write_text(json.dumps({name: found for name, found in COMMITTED.items() if name != version}))
    command = [sys.executable, "scripts/vllm_matrix.py", version, "--out", str(out), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())[version]
    return found


def test_the_newest_release_is_as_committed(tmp_path: Path) -> None:
    found = run_again(NEWEST, tmp_path / "found.json")
    assert found == COMMITTED[NEWEST]
    assert {kind: run["model"].split(".")[0] for kind, run in found["engines"].items()} == {
        "hf-mxfp4": "vllm",
        "hf-defused": "gptoss_adapters",
    }


def test_the_parser_reaches_back(tmp_path: Path) -> None:
    found = run_again(OLD, tmp_path / "found.json", "--only", "parser_tests")
    assert found["parser_tests"] == COMMITTED[OLD]["parser_tests"] and not found["parser_tests"]["failed"]
    assert found["hooks"] == COMMITTED[OLD]["hooks"]


@pytest.mark.slow
@pytest.mark.parametrize("version", REST)
def test_every_other_release_is_as_committed(version: str, tmp_path: Path) -> None:
    assert run_again(version, tmp_path / "found.json") == COMMITTED[version]


def test_what_the_package_says_was_tested_was() -> None:
    from gptoss_adapters.vllm_plugin.policy import TESTED

    ran = {version.rpartition(".")[0] for version, found in COMMITTED.items() if "parser_tests" in found}
    assert ran == set(TESTED)
    for version, found in COMMITTED.items():
        if "parser_tests" in found:
            assert not found["parser_tests"]["failed"] and found["parser_tests"]["passed"] >= 20, version
