"""Every recipe's commands parse, use options that exist, and run where this machine can run them (on small
checkpoints).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

ROOT = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(ROOT.rglob("*.md"))
PROGRAMS = {
    "gptoss-convert": "gptoss_converters.cli.program",
    "gptoss-chat": "gptoss_adapters.chat",
    "gptoss-harmony": "gptoss_harmony.cli",
    "gptoss-serve": "gptoss_adapters.serve.cli",
    "gptoss-parity": "gptoss_adapters.parity.cli",
}
# Of llama.cpp's common/arg.cpp; a recipe may use no other.
LLAMA_SERVER = {
    "-m",
    "-c",
    "-t",
    "-ngl",
    "-fa",
    "--jinja",
    "--host",
    "--port",
    "--n-cpu-moe",
    "--split-mode",
    "--tensor-split",
}


def blocks(recipe: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", recipe.read_text(), re.MULTILINE | re.DOTALL)


def commands(recipe: Path) -> list[list[str]]:
    lines = [line for block in blocks(recipe, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


@cache
def help_of(program: str, command: str) -> str:
    start = [
        sys.executable,
        "-c",
        f"from {PROGRAMS[program]} import main; main()",
        *([command] if command else []),
        "--help",
    ]
    done = subprocess.run(start, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, f"{program} {command}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_parses(recipe: Path) -> None:
    found = blocks(recipe, "bash") + blocks(recipe, "python")
    assert found, "a recipe without commands"
    for block in blocks(recipe, "bash"):
        assert (
            subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False).returncode == 0
        ), block
    for block in blocks(recipe, "python"):
        compile(block, str(recipe), "exec")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_uses_options_that_exist(recipe: Path) -> None:
    for program, *arguments in commands(recipe):
        options = {a.split("=")[0] for a in arguments if re.match(r"--?[a-z]", a)}
        if program == "llama-server":
            assert options <= LLAMA_SERVER, options - LLAMA_SERVER
        elif program in PROGRAMS:
            command = arguments[0] if program in ("gptoss-convert", "gptoss-harmony", "gptoss-parity") else ""
            text = help_of(program, command)
            assert all(re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text) for o in options), (program, options)


@pytest.mark.parametrize("recipe", sorted((ROOT / "llama_cpp").glob("*.md")), ids=lambda p: p.stem)
def test_llama_cpp_recipe_runs(recipe: Path, tmp_path: Path) -> None:
    """All `gptoss-convert` lines, in order, with a small checkpoint of the same layout for the published one."""
    write(plan_new("pocket", tmp_path / "small"), sync=False, read_back=False)
    ran = 0
    for program, *arguments in commands(recipe):
        if program == "gptoss-convert":
            small = [re.sub(r"^openai/gpt-oss-\d+b$", str(tmp_path / "small"), a) for a in arguments]
            small = [re.sub(r"^40G$", "30M", a) for a in small]
            done = subprocess.run(
                [sys.executable, "-m", PROGRAMS[program], *small],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (arguments, done.stderr)
            ran += 1
    assert ran >= 3
