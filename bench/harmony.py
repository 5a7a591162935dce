"""gptoss_harmony against openai_harmony, side by side in one run: CPU time, interleaved, best of several.

    python bench/harmony.py [--repeats 7] [--out bench/results/harmony.json]

A row meets its promise if the geometric mean of its cells reaches the target and no cell is below 0.75 of it.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import _paths
from _harmony_parse import parse_rows
from _harmony_render import render_rows, start_rows

PARTS = {"start": start_rows, "render": render_rows, "parse": parse_rows}
"""Section of the report -> function(repeats) giving its rows."""


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """Adds `mean` and `meets` (None where nothing is promised)."""
    if "cells" not in row:
        return {**row, "meets": None if row["limit"] is None else row["seconds"] <= row["limit"]}
    ratios = [cell["ratio"] for cell in row["cells"].values()]
    mean, target = prod(ratios) ** (1 / len(ratios)), row["target"]
    return {**row, "mean": mean, "meets": None if target is None else mean >= target and min(ratios) >= 0.75 * target}


def line(row: dict[str, Any]) -> str:
    verdict = {True: "ok", False: "SHORT", None: ""}[row["meets"]]
    if "cells" not in row:
        return f"{row['what']:36} {row['seconds'] * 1000:8.1f} ms   {verdict}"
    cells = "  ".join(f"{kind} {cell['ratio']:7.1f}x" for kind, cell in row["cells"].items())
    size = row.get("messages") or row.get("tokens")
    return f"{row['what']:36} {size:6}  {cells}   mean {row['mean']:7.1f}x  (promised {row['target'] or '-'}) {verdict}"


def conditions() -> dict[str, str]:
    cpu = next(
        (
            text.split(":")[1].strip()
            for text in Path("/proc/cpuinfo").read_text().splitlines()
            if text.startswith("model name")
        ),
        "",
    )
    packages = {name: version(name) for name in ("openai-harmony", "tiktoken", "toktok-rs")}
    return {"python": platform.python_version(), "cpu": cpu, "clock": "CPU time of the process, one thread", **packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=_paths.RESULTS / "harmony.json")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    report: dict[str, Any] = {"conditions": conditions(), "repeats": options.repeats}
    for name in options.parts:
        report[name] = [judge(row) for row in PARTS[name](options.repeats)]
        print(*map(line, report[name]), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
