"""A report's files: report.json, and what is made from it alone: report.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptoss_adapters.errors import OutputError
from gptoss_adapters.parity.report import html, markdown
from gptoss_adapters.parity.report.schema import Report

FORMATS = {"md": markdown.render, "html": html.render}


def write_report(report: Report, folder: Path) -> list[Path]:
    """report.json, report.md and report.html in `folder`, which is made if need be. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder / "report.json")
    except OSError as error:
        raise OutputError(f"cannot write the report: {error.strerror}", file=folder) from error
    return [folder / "report.json", *write_renderings(report, folder)]


def write_renderings(report: Report, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """report.md and report.html. The same report gives the same bytes. Raises OutputError."""
    written = []
    for name in formats:
        path = folder / f"report.{name}"
        try:
            path.write_text(FORMATS[name](report), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror}", file=path) from error
        written.append(path)
    return written
