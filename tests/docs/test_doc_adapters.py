"""docs/adapters.md names a test for every row, and each one exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in (ROOT / "docs/adapters.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith("| tool")]
    assert len(rows) >= 18
    for row in rows:
        named = re.fullmatch(r"`(.+\.py)::(\w+)`", row.split("|")[-2].strip())
        assert named, row
        assert f"def {named[2]}(" in (ROOT / "tests" / named[1]).read_text(), row
