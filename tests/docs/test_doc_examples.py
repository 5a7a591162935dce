"""The examples of README and docs/ are run, and what they show is what is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.documents import PAGES, PROGRAMS, ROOT, blocks, check_options, check_syntax, start_of, title
from helpers.serve_fakes import Served

SERVER = "http://127.0.0.1:8000"  # the server that a reader started by the block above
VOLATILE = re.compile(r"\d+(\.\d+)? (s|MB/s|tokens/s|times)\b|\d+(\.\d+)? with it|\S*pocket\.gguf|\d+ tokens, .*")


def examples(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{title(page)}-{n}") for page in PAGES for n, block in enumerate(blocks(page, language))
    ]


class Terminal:
    """Where the examples run, page by page: later ones use what earlier ones made, and a command that stands on two
    pages runs once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "recipes").symlink_to(ROOT / "recipes")
        programs = folder / "bin"
        programs.mkdir()
        for program in PROGRAMS:
            interpreter, flag, code = start_of(program)
            script = programs / program
            script.write_text(f'#!/bin/sh\nexec {interpreter} {flag} "{code}" "$@"\n')
            script.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        self._run_once = cache(self._run)

    def run(self, line: str) -> str:
        return "".join(self._run_once(command) for command in line.split(" && "))

    def _run(self, command: str) -> str:
        """One command in a shell; stdout and stderr together, as a terminal shows them."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    terminal = Terminal(tmp_path_factory.mktemp("docs"))
    terminal.run("gptoss-convert new pocket -o pocket && gptoss-convert to-gguf pocket -o pocket.gguf")
    return terminal


@pytest.fixture(scope="module")
def server(terminal: Terminal) -> Iterator[str]:
    with Served("llama_cpp=pocket.gguf", terminal.folder, "--model", "pocket") as served:
        yield served.url.removesuffix("/v1")


def with_server(text: str, request: pytest.FixtureRequest) -> str:
    return text.replace(SERVER, request.getfixturevalue("server")) if SERVER in text else text


def steady(line: str) -> str:
    return VOLATILE.sub("*", line.rstrip())


@pytest.mark.backend("llama_server")
@pytest.mark.parametrize("block", examples("console"))
def test_console_examples_print_what_they_show(block: str, terminal: Terminal, request: pytest.FixtureRequest) -> None:
    for part in re.split(r"^\$ ", with_server(block, request), flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip().split("\n")
        printed = [steady(line) for line in terminal.run(command).splitlines()]
        for line in shown:
            if line != "...":
                assert steady(line) in printed, (command, line)


@pytest.mark.backend("llama_server")
@pytest.mark.parametrize("block", examples("python"))
def test_python_examples_run(block: str, terminal: Terminal, request: pytest.FixtureRequest) -> None:
    done = subprocess.run(
        [sys.executable, "-c", with_server(block, request)],
        cwd=terminal.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_parse_and_use_options_that_exist(page: Path) -> None:
    check_syntax(page)
    check_options(page)
