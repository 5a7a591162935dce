"""The recipes of recipes/harmony run as they are written: every code block, in order, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "harmony"


def run(recipe: str, folder: Path) -> str:
    """Runs all blocks of a recipe and gives what they print."""
    programs = folder / "bin"
    programs.mkdir()
    for name, module in (("gptoss-harmony", "gptoss_harmony.cli"), ("gptoss-convert", "gptoss_converters.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "harmony"), str(ROOT), str(ROOT / "converters")])
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", (RECIPES / recipe).read_text(), re.S | re.M)
    assert blocks
    out = ""
    for language, code in blocks:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (code, done.stderr)
        out += done.stdout
    return out


def test_training_masks(tmp_path: Path) -> None:
    out = run("training_masks.md", tmp_path)
    assert "line 2: messages[1].channel: None is no channel of an assistant message" in out
    assert "2 conversations, 1 with problems" in out
    assert "\x1b[1;35m<|return|>" in out
    (row,) = [json.loads(line) for line in (tmp_path / "train.tokens.jsonl").read_text().splitlines()]
    assert len(row["input_ids"]) == len(row["labels"])
    counted = [token for token in row["labels"] if token != -100]
    assert counted[0] == 200005 and counted[-1] == 200002


def test_switch_from_openai_harmony(tmp_path: Path) -> None:
    out = run("switch_from_openai_harmony.md", tmp_path)
    assert "final '4'" in out
    assert "MessageEnd(reason='call'" in out


def test_the_switched_program_runs_on_openai_harmony_too(tmp_path: Path) -> None:
    """The same block, with the import switched back, prints the same."""
    code = re.findall(r"^```python\n(.*?)^```$", (RECIPES / "switch_from_openai_harmony.md").read_text(), re.S | re.M)[
        0
    ]
    theirs = (
        "import sys; sys.path.append(%r); from helpers.harmony_oracle import oracle; import openai_harmony; e = "
        "oracle(); openai_harmony.load_harmony_encoding = lambda name: e\n"
    )
    outputs = []
    for program in (code, theirs % str(ROOT / "tests") + code.replace("gptoss_harmony.compat.", "")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "harmony")},
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_grammar(tmp_path: Path) -> None:
    out = run("llama_cpp_grammar.md", tmp_path)
    assert '"finish_reason": "tool_calls"' in out
    assert '"name": "get_weather"' in out


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.md")))
def test_every_recipe_has_a_test(recipe: str) -> None:
    assert f'"{recipe}"' in Path(__file__).read_text()
