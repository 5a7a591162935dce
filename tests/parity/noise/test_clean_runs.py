"""No false alarms: one clean run in each engine on a checkpoint that is not among the committed ones, and those of
bench/parity_clean.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import parity_clean as clean

SEED = 21


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    chosen = clean.cases([SEED], ["p3"], runs=1)
    return {
        c.backend: row for c, row in zip(chosen, clean.results(chosen, tmp_path_factory.mktemp("clean")), strict=True)
    }


@pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.backend(b)) for b in clean.SETTINGS])
def test_sample(backend: str, rows: dict[str, dict[str, Any]]) -> None:
    assert not rows[backend]["false_alarm"], rows[backend]
    assert rows[backend]["control"] is not None and rows[backend]["control"] < 1  # the search for faults was on


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"verdict": "SAME", "suspects": [], "deviations": []}, False),
        ({"verdict": "SAME EXCEPT", "suspects": [], "deviations": ["yarn_truncate: confirmed"]}, False),
        ({"verdict": "SAME EXCEPT", "suspects": [], "deviations": ["win_plus1: confirmed"]}, True),
        ({"verdict": "SAME WITHIN NUMERICS", "suspects": ["win_plus1"], "deviations": []}, True),
        ({"verdict": "DIFFERENT", "suspects": [], "deviations": []}, True),
        ({"verdict": "NOT COMPARABLE", "suspects": [], "deviations": []}, True),
    ],
)
def test_what_an_alarm_is(row: dict[str, Any], expected: bool) -> None:
    assert clean.alarm(row) is expected


def test_committed_runs() -> None:
    made = json.loads(clean.RESULTS.read_text())
    rows = made["results"]
    assert made["summary"] == clean.summary(rows)
    count = Counter(r["backend"] for r in rows)
    assert set(count) == set(clean.SETTINGS) and min(count.values()) >= 20
    assert {r["preset"] for r in rows} >= set(clean.PRESETS[:6])
    assert {tuple(sorted(r["settings"].items())) for r in rows} == {
        tuple(sorted(s.items())) for choice in clean.SETTINGS.values() for s in choice
    }
    simulated = json.loads((clean.matrix.RESULTS / "parity_faults.json").read_text())["summary"]
    assert (
        made["summary"]["total"] + simulated["clean_runs"] >= 200
        and made["summary"]["total_false_alarms"] + simulated["false_alarms"] == 0
    )
    assert not any(clean.alarm(r) for r in rows)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("preset", clean.PRESETS)
def test_every_run_of_another_seed(preset: str, tmp_path: Path) -> None:
    """As many runs as are committed."""
    import torch

    torch.set_num_threads(1)
    alarms = [
        r
        for r in clean.results(
            clean.cases([22], [preset], 1 if preset in ("pocket", "gold") else clean.AT_ONCE), tmp_path
        )
        if r["false_alarm"]
    ]
    assert not alarms
