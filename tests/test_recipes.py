"""Every recipe's commands parse, use options that exist, and run where this machine can run them (on small
checkpoints).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers.documents import RECIPES, blocks, check_options, check_syntax, commands, start_of

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

LLAMA_CPP = [recipe for recipe in RECIPES if recipe.parent.name == "llama_cpp"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_parses(recipe: Path) -> None:
    assert blocks(recipe, "bash") + blocks(recipe, "python"), "a recipe without commands"
    check_syntax(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_uses_options_that_exist(recipe: Path) -> None:
    check_options(recipe)


@pytest.mark.parametrize("recipe", LLAMA_CPP, ids=lambda p: p.stem)
def test_llama_cpp_recipe_runs(recipe: Path, tmp_path: Path) -> None:
    """All `gptoss-convert` lines, in order, with a small checkpoint of the same layout for the published one."""
    write(plan_new("pocket", tmp_path / "small"), sync=False, read_back=False)
    ran = 0
    for program, *arguments in commands(recipe):
        if program == "gptoss-convert":
            small = [re.sub(r"^openai/gpt-oss-\d+b$", str(tmp_path / "small"), a) for a in arguments]
            small = [re.sub(r"^40G$", "30M", a) for a in small]
            done = subprocess.run(
                [*start_of(program), *small],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (arguments, done.stderr)
            ran += 1
    assert ran >= 3
