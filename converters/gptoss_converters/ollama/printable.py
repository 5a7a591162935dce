"""Which characters Go prints, and so which ones Ollama keeps in a Modelfile.

Ollama's parser asks Go's `strconv.IsPrint`, whose tables are those of Unicode 15.0, whatever the Unicode of the running
Python: the ranges stand in data/printable_unicode_15.txt, as Python 3.12 (Unicode 15.0) lists them.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from pathlib import Path

_RANGES = Path(__file__).parents[1] / "data" / "printable_unicode_15.txt"


@cache
def _read_bounds() -> list[int]:
    """First code point of a range and the one behind its last, in turn."""
    bounds = []
    for item in _RANGES.read_text("ascii").split():
        first, _, last = item.partition("-")
        bounds += [int(first, 16), int(last or first, 16) + 1]
    return bounds


def is_printable(character: str) -> bool:
    """Letters, marks, numbers, punctuation, symbols and the ASCII space of Unicode 15.0."""
    return bisect_right(_read_bounds(), ord(character)) % 2 == 1
