"""vLLM's own tests of its Harmony parser, with the plugin on: they fail where we differ by design, and nowhere else.

The tests are vLLM's and not part of this project. Unpack its source distribution and name the folder:

    GPTOSS_VLLM_SOURCES=vllm-0.32.0 make test-slow

The differences are data: tests/data/harmony/vllm_own_tests.json, each with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = json.loads((ROOT / "tests/data/harmony/vllm_own_tests.json").read_text("utf-8"))
SOURCES = os.environ.get("GPTOSS_VLLM_SOURCES", "")
CONFTEST = """
import json, os
from pathlib import Path
from gptoss_adapters.vllm_plugin import harmony_hooks
harmony_hooks.install()
import gptoss_adapters.vllm_plugin.harmony_parser
outcomes = {}
def pytest_runtest_logreport(report):
    if report.outcome == "failed" or report.when == "call":
        outcomes[report.nodeid.partition("::")[2]] = report.outcome
def pytest_sessionfinish():
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))
"""


def test_every_difference_has_a_reason() -> None:
    reasons = DATA["reasons"]
    assert set(DATA["differences"].values()) == set(reasons)
    assert all(len(text.split()) > 5 for text in reasons.values())
    assert len(DATA["differences"]) == 20


def make_cache(home: Path) -> None:
    """The pocket model's files under the name that the tests ask the Hub for."""
    from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
    from gptoss_adapters.checkpoint.writing.writer import write

    model = home / "hub" / "models--openai--gpt-oss-20b"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("pocket")
    (model / "snapshots").mkdir()
    write(plan_new("pocket", model / "snapshots" / "pocket"), sync=False)


def run_own_tests(folder: Path) -> dict[str, str]:
    """Outcome of every test by its name."""
    make_cache(folder / "hf")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_harmony.py").write_bytes((Path(SOURCES) / DATA["file"]).read_bytes())
    environment = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OUTCOMES": str(folder / "outcomes.json"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, "test_harmony.py"]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    outcomes: dict[str, str] = json.loads((folder / "outcomes.json").read_text())
    return outcomes


if SOURCES:  # a test of an engine may not be skipped, and this one needs what nobody has by chance

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    @pytest.mark.backend("vllm")
    def test_only_what_differs_by_design_fails(tmp_path: Path) -> None:
        outcomes = run_own_tests(tmp_path)
        assert len(outcomes) >= 70
        assert {name for name, outcome in outcomes.items() if outcome == "failed"} == set(DATA["differences"])
