"""The machine that a benchmark ran on."""

from __future__ import annotations

from pathlib import Path


def cpu_model() -> str:
    """As Linux names it; empty where it does not."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return ""
