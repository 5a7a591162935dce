"""A test that needs an engine must not be skipped quietly: `@pytest.mark.backend(name)` turns a skip into a failure,
and so is the skip of a whole module.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.isas import usable_backends

from gptoss_adapters.checkpoint.writing import plan
from gptoss_adapters.kernels import library

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


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped:  # no mark can say whether an engine was wanted
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} was skipped as a whole: {report.longrepr}"
    return report


@pytest.fixture(params=usable_backends())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test runs once on each instruction set and on the oracles; `isas.native_only` leaves these out."""
    monkeypatch.setenv("GPTOSS_MXFP4", request.param)
    library.library.cache_clear()
    yield request.param
    monkeypatch.undo()
    library.library.cache_clear()


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's jobs are small, so that a small file takes several."""
    monkeypatch.setattr(plan, "JOB_BYTES", 10_000)
