"""`gptoss-convert` run as a program. Not a test module."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from helpers.crafted import GOLD

SOURCE = GOLD / "src" / "tiny-mxfp4"
Done = subprocess.CompletedProcess[str]


def run(*arguments: object, **options: Any) -> Done:
    command = [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def data_of(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
