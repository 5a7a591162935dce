"""Writes what the docs show but nobody types: tables of bench/results and the programs' --help.

    python scripts/docs_fill.py [--check]

A page says `<!-- fill: table convert -->` or `<!-- fill: help gptoss-convert to-gguf -->`; what stands from there to
`<!-- end -->` is replaced. With --check nothing is written and a page that is out of date is an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- fill: (\w+) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PROGRAMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def help_text(program: str, *command: str) -> str:
    """What `PROGRAM COMMAND --help` prints on a terminal of 80 columns."""
    module, _, function = PROGRAMS[program].partition(":")
    start = f"import sys; sys.argv[0] = {program!r}; from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", start, *command, "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def filling(kind: str, name: str) -> str:
    if kind == "table":
        return TABLES[name]() + "\n"
    if kind == "help":
        return f"```text\n{help_text(*name.split())}\n```\n"
    raise ValueError(f"nothing fills {kind} {name}")


def filled(page: str) -> str:
    """The page with every block made anew; the blocks of one page are made side by side."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda block: filling(block[2], block[3]), BLOCK.finditer(page))
        return BLOCK.sub(lambda block: block[1] + next(made) + block[4], page)


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        old = page.read_text()
        new = filled(old)
        if new != old:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    print("out of date:" if check else "written:", ", ".join(stale) or "none")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
