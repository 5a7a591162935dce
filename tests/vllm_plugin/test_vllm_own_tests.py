"""vLLM's own tests of its Harmony parser, with the plugin on: they fail where we differ by design, and nowhere else.

The tests are vLLM's and not part of this project. Unpack its source distribution and name the folder:

    GPTOSS_VLLM_SOURCES=vllm-0.32.0 make test-slow

The differences are data: tests/data/harmony/vllm_own_tests.json, each with its reason. Most tests that differ declare
no tools, so their calls are no calls. A second run shows calls all the same: what then fails has a reason of its own.
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
NO_TOOLS = "no_tools"
SOURCES = os.environ.get("GPTOSS_VLLM_SOURCES", "")
CONFTEST = """
import json, os
from pathlib import Path
from gptoss_adapters.vllm_plugin import harmony_hooks
harmony_hooks.install()
from gptoss_adapters.vllm_plugin import harmony_parser
if os.environ["CALLS"] == "shown":
    harmony_parser.TolerantHarmonyParser._surfaces_calls = lambda self, request: True
outcomes = {}
def pytest_runtest_logreport(report):
    if report.outcome == "failed" or report.when == "call":
        outcomes[report.nodeid.partition("::")[2]] = report.outcome
def pytest_sessionfinish():
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))
"""


def test_every_difference_has_a_reason() -> None:
    reasons = DATA["reasons"]
    differences, shown = DATA["differences"], DATA["with_calls_shown"]
    assert {*differences.values(), *shown.values()} == set(reasons)
    assert all(len(text.split()) > 5 for text in reasons.values())
    assert len(differences) == 20
    assert NO_TOOLS not in shown.values()
    assert {name for name, reason in differences.items() if reason != NO_TOOLS} <= set(shown)


def make_cache(home: Path) -> None:
    """The pocket model's files under the name that the tests ask the Hub for."""
    from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
    from gptoss_adapters.checkpoint.writing.writer import write

    model = home / "hub" / "models--openai--gpt-oss-20b"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("pocket")
    (model / "snapshots").mkdir()
    write(plan_new("pocket", model / "snapshots" / "pocket"), sync=False)


def run_own_tests(folder: Path, calls: str) -> set[str]:
    """Names of the tests that fail. calls: "shown" whatever a request declares, or "as declared"."""
    make_cache(folder / "hf")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_harmony.py").write_bytes((Path(SOURCES) / DATA["file"]).read_bytes())
    environment = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "CALLS": calls,
        "OUTCOMES": str(folder / "outcomes.json"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, "test_harmony.py"]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    outcomes: dict[str, str] = json.loads((folder / "outcomes.json").read_text())
    assert len(outcomes) >= 70
    return {name for name, outcome in outcomes.items() if outcome == "failed"}


if SOURCES:  # a test of an engine may not be skipped, and this one needs what nobody has by chance

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    @pytest.mark.backend("vllm")
    @pytest.mark.parametrize(("calls", "listed"), [("as declared", "differences"), ("shown", "with_calls_shown")])
    def test_only_what_differs_by_design_fails(tmp_path: Path, calls: str, listed: str) -> None:
        assert run_own_tests(tmp_path, calls) == set(DATA[listed])
