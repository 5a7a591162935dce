"""SIGKILL at random moments: the final name is absent or complete, and a resumed run gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 50


@pytest.mark.timeout(600)
def test_50_kills_all_clean_all_resumed_identical(tmp_path: Path) -> None:
    driver = Path(__file__).parents[2] / "helpers" / "crash_driver.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(driver.parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(KILLS), "1"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["files"] >= 4 and seen["killed between names"] >= 2 * (seen["files"] - 1) - 1, seen
    assert seen["kills"] >= KILLS and min(seen["unfinished"], seen["resumed"]) >= KILLS // 10, seen
