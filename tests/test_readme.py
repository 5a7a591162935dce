"""The README's examples are run, and what it shows is what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
VOLATILE = re.compile(r"\d+(\.\d+)? (s|MB/s|tokens/s|times)\b|\d+(\.\d+)? with it|\S*pocket\.gguf|\d+ tokens, .*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run, one after the other: later ones use what earlier ones made."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def shell(command: str, folder: Path) -> str:
    """Runs one line with our programs first on PATH; stdout and stderr together, as a terminal shows them."""
    bin_dir = folder / "bin"
    if not bin_dir.exists():
        bin_dir.mkdir()
        for program, module in (
            ("convert", "gptoss_converters.cli.program"),
            ("harmony", "gptoss_harmony.cli"),
            ("chat", "gptoss_adapters.chat"),
            ("parity", "gptoss_adapters.parity.cli"),
        ):
            script = bin_dir / f"gptoss-{program}"
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from {module} import main; main()" "$@"\n')
            script.chmod(0o755)
    env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def steady(line: str) -> str:
    return VOLATILE.sub("*", line.rstrip())


@pytest.mark.backend("llama_server")
@pytest.mark.parametrize("block", CONSOLE, ids=range(len(CONSOLE)))
def test_console_examples_print_what_the_readme_shows(block: str, folder: Path) -> None:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip().split("\n")
        printed = [steady(line) for line in shell(command, folder).splitlines()]
        for line in shown:
            if line != "...":
                assert steady(line) in printed, (command, line)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(block: str, folder: Path) -> None:
    if not (folder / "pocket").exists():
        shell("gptoss-convert new pocket -o pocket", folder)
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
