"""Imported before anything of ours: the sources of this checkout, and what its tests lend, come before what is
installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
TESTS = ROOT / "tests"
sys.path[:0] = [
    str(TESTS),
    str(TESTS / "harmony" / "rendering"),  # of test_differential's checks
    str(ROOT),
    str(ROOT / "harmony"),
    str(ROOT / "converters"),
]
