"""docs/inputs.md: each row names a test that is there."""

from __future__ import annotations

import re

from helpers.documents import ROOT


def test_every_row_is_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "inputs.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if not set(row) <= set("|- ") and not row.endswith("| test |")]
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = [re.findall(r"`(test_\w+)[^`]*` \|$", row) for row in rows]
    assert len(rows) >= 20 and all(named), [row for row, found in zip(rows, named, strict=True) if not found]
    missing = [start for (start,) in named if not any(name.startswith(start) for name in tests)]
    assert missing == []
