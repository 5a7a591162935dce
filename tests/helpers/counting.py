"""How much work a call does, in calls of functions: the same on every machine, however busy. Not a test module."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from typing import Any

FEW_CALLS = 200_000
"""Some tenths of a second. Opening a small file takes a tenth of it; what believes a count that a file claims does not
end with it.
"""


class CallCounter:
    """Counts in `calls` the Python and C functions that are called inside its `with`, in this thread."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> CallCounter:
        self._profile = cProfile.Profile(subcalls=False)
        self._profile.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.disable()
        self.calls = sum(entry.callcount for entry in self._profile.getstats())


def count_calls(work: Callable[[], Any]) -> int:
    with CallCounter() as counter:
        work()
    return counter.calls
