"""A test that needs an engine must not be skipped quietly: `@pytest.mark.backend(name)` turns a skip into a failure."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

if not Path("/dev/nvidiactl").exists():  # read when triton is first imported, which torch does on its own
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    marker = item.get_closest_marker("backend")
    if report.skipped and marker is not None and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs {marker.args[0]} and was skipped: {report.longrepr}"
    return report
