"""The instruction sets of the native library that this machine runs, for tests that run once on each."""

from __future__ import annotations

import pytest

from gptoss_adapters.kernels import library


def usable_backends() -> list[str]:
    """The oracles, "numpy", included."""
    native = library._load()
    return [n for n in library.NAMES if n == "numpy" or (native and native.select(n.encode()))]


native_only = pytest.mark.parametrize("backend", [n for n in usable_backends() if n != "numpy"], indirect=True)
