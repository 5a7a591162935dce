"""What every `gptoss-convert` command shares: one output object, progress on a terminal, sizes and plans as text."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_adapters.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def count_workers(threads: int | None) -> int:
    """How many threads a command that only reads runs; the writer has the same rule."""
    from gptoss_adapters.checkpoint.writing.writer import MAX_THREADS

    return threads or min(os.cpu_count() or 1, MAX_THREADS)


class Output:
    """The result on stdout, as text or as one JSON object; notes on stderr."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def note(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(f"note: {line}", file=sys.stderr)

    def show(self, text: str, **data: Any) -> None:
        print(json.dumps(data, indent=2, default=str) if self.as_json else text)


class ProgressBar:
    """A bar with bytes, rate and time left while a plan is written; nothing at all unless stderr is a terminal."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                TextColumn("{task.description:>9}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.bar:
            if phase not in self.tasks:
                self.tasks[phase] = self.bar.add_task(phase, total=total)
            self.bar.update(self.tasks[phase], completed=done)


def parse_size(text: str | None) -> int | None:
    """`4G`, `500M`, `1000000`: bytes, in powers of 1000 as upstream counts them. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise UsageError("a size is a number with K, M, G or T", expected="4G", got=text)
    return int(match[1]) * _UNITS[match[2]]


def format_size(nbytes: float) -> str:
    """13 761 264 768 -> `13.8 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def record(path: Path, rule: str, statistics: dict[str, Any]) -> None:
    """What quantising did, beside the output. The file is not part of the model: it may be removed."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps({"rule": rule, **statistics}, indent=2) + "\n")
    part.replace(path)


def plan_to_json(plan: Any) -> dict[str, Any]:
    """A plan as `--dry-run --json` prints it."""
    tensors = [
        {"file": f.path.name, **asdict(t), "offset": o}
        for f in plan.files
        for t, o in zip(f.tensors, f.offsets, strict=True)
    ]
    return {"bytes": plan.nbytes, "files": {f.path.name: f.size for f in plan.files}, "tensors": tensors}


def plan_to_text(plan: Any) -> str:
    """A plan as `--dry-run` prints it."""
    lines = []
    for file in plan.files:
        lines.append(f"{file.path}: {file.size} bytes ({format_size(file.size)}), {len(file.tensors)} tensors")
        for t, offset in zip(file.tensors, file.offsets, strict=True):
            shape = "x".join(map(str, t.shape))
            lines.append(f"  {offset:>12} {t.nbytes:>12}  {t.dtype:<5} {shape:<16} {t.name:<34} <- {t.source}")
    return "\n".join(lines)
