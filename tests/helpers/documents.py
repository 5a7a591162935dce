"""README, docs/ and recipes/ as tests read them: their blocks of code, their links, the programs that they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.md"))
PROGRAMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Program -> "module:function"."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Of llama.cpp's common/arg.cpp; a page may use no other.
_LLAMA_SERVER = {"-m", "-c", "-t", "-ngl", "-fa", "--jinja", "--host", "--port", "--swa-full"}
_LLAMA_SERVER |= {"--n-cpu-moe", "--split-mode", "--tensor-split"}
_WITH_COMMANDS = ("gptoss-convert", "gptoss-harmony", "gptoss-parity")


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(page.read_text()) if kind == language]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", page.read_text())


def start_of(program: str) -> list[str]:
    """The command line that starts a program of ours in this environment."""
    module, _, function = PROGRAMS[program].partition(":")
    code = f"import sys; sys.argv[0] = {program!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code]


@cache
def help_of(program: str, command: str) -> str:
    start = [*start_of(program), *([command] if command else []), "--help"]
    done = subprocess.run(start, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, f"{program} {command}: {done.stderr}"
    return done.stdout


def commands(page: Path) -> Iterator[list[str]]:
    """The single commands of the bash blocks, without variables before them."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words


def check_syntax(page: Path) -> None:
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, block
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def check_options(page: Path) -> None:
    """Every option of our programs and of llama-server exists."""
    for program, *arguments in commands(page):
        options = {a.split("=")[0] for a in arguments if re.match(r"--?[a-z]", a)}
        if program == "llama-server":
            assert options <= _LLAMA_SERVER, options - _LLAMA_SERVER
        elif program in PROGRAMS:
            text = help_of(program, arguments[0] if program in _WITH_COMMANDS else "")
            missing = {o for o in options if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)}
            assert not missing, (program, missing)
