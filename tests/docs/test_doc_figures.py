"""What the docs quote is what was measured, what the programs say, and what the code has."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import PAGES, PROGRAMS, ROOT, help_of, prose

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results"
MAKEFILE = (ROOT / "Makefile").read_text()


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def words(text: str) -> list[str]:
    return text.replace("|", " ").split()


def test_tables_and_help_are_up_to_date() -> None:
    """`python scripts/docs_fill.py` would change nothing; how wide a terminal is does not matter."""
    code = "import docs_fill; print(docs_fill.filled(open(PAGE).read()))"
    stale = []
    for page in [page for page in PAGES if "<!-- fill:" in page.read_text()]:
        command = [sys.executable, "-c", code.replace("PAGE", repr(str(page)))]
        done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
        if words(done.stdout) != words(page.read_text()):
            stale.append(page.name)
    assert stale == []


def test_every_command_has_its_help() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    for program in PROGRAMS:
        assert f"<!-- fill: help {program} -->" in page
        listed = help_of(program, "").partition("\nCommands:\n")[2]
        for command in re.findall(r"^  (\S+)  ", listed, re.MULTILINE):
            assert f"<!-- fill: help {program} {command} -->" in page


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"\]\(", README)) >= 25
    for picture in ("report-light.png", "report-dark.png"):
        assert f"docs/images/{picture}" in README
        assert (ROOT / "docs" / "images" / picture).stat().st_size < 200_000


def test_yarn_bounds_are_those_of_gpt_oss() -> None:
    """The dimensions that turn 32 times and once in 4096 positions: 8.093 and 17.398, rounded outwards 8 and 18."""
    half, base, length = 32, 150_000.0, 4096
    low, high = (half * math.log(length / (turns * 2 * math.pi)) / math.log(base) for turns in (32, 1))
    assert f"{low:.3f} and {high:.3f}" in README
    assert f"{math.floor(low)} and {math.ceil(high)}" in README


def test_yarn_is_so_many_times_the_noise() -> None:
    in_float32 = [seed["tiers"]["p1 float32"]["faults"]["yarn_truncate"] for seed in results("parity_faults")["seeds"]]
    assert min(fault["excess"] for fault in in_float32) >= 1e10 and "10 000 000 000 times" in README
    cell = next(
        cell
        for cell in results("parity_matrix_full")["results"]
        if (cell["kind"], cell["exporter"], cell["backend"]) == ("gguf", "none", "llama_cpp")
    )
    assert cell["worst_excess"] == 68.2 and "68.2 times the noise" in README


def test_the_comparison_has_as_many_rows_as_the_readme_says() -> None:
    rows = re.findall(r"^\| .* \|$", prose(ROOT / "docs" / "comparison.md"), re.MULTILINE)
    assert len(rows) - 1 == 15 and "All fifteen rows" in README  # the header apart


@pytest.mark.parametrize("quoted", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_make_bench_measures_what_is_quoted(quoted: Path) -> None:
    """Every file of results comes from a script that `make bench` runs, or says which machine it is from."""
    script = re.sub(r"_(amx|xeon|full)$", "", quoted.stem)
    assert (ROOT / "bench" / f"{script}.py").exists()
    recipe = re.search(r"^bench:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe and re.search(rf"\b{script}\b", recipe[1])


def test_make_help_lists_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert targets and {line.split()[0] for line in done.stdout.splitlines()} == set(targets[1].split())
