"""The recipes of recipes/serve, run: the server as the recipe starts it, then the recipe's Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fake_ollama import fake_ollama
from helpers.serve_fakes import ROOT, Served


def block(recipe: str, language: str) -> str:
    found = re.search(
        rf"^```{language}\n(.*?)^```", (ROOT / "recipes" / "serve" / recipe).read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


def served_arguments(recipe: str) -> list[str]:
    """The recipe's options of gptoss-serve, without those that a test chooses itself."""
    line = next(line for line in block(recipe, "bash").splitlines() if line.startswith("gptoss-serve"))
    words = shlex.split(line)[1:]
    kept = list(zip(words[::2], words[1::2], strict=True))
    return [word for pair in kept if pair[0] not in ("--backend", "--port", "--store", "--date") for word in pair]


def run_python(recipe: str, server: Served) -> str:
    done = subprocess.run(
        [sys.executable, "-c", block(recipe, "python")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GPTOSS_URL": server.url},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.backend("llama_server")
def test_claude_code_and_its_sdk(pocket: Path) -> None:
    """Claude Code itself runs in tests/clients; this is the recipe's Python, through the `anthropic` package."""
    with Served("llama_server=pocket.gguf", pocket, *served_arguments("claude_code.md")) as server:
        out = run_python("claude_code.md", server)
    assert "  get_weather({'city': 'Paris'})" in out and "The tool says: sunny, 21." in out


@pytest.mark.backend("llama_cpp")
def test_the_agent(pocket: Path) -> None:
    with Served("llama_cpp=pocket.gguf", pocket, *served_arguments("agent.md")) as server:
        out = run_python("agent.md", server)
    assert (
        '  get_weather({"city":"Paris"})' in out and "What is the weather in Paris? -> The tool says: sunny, 21." in out
    )
    assert '  add({"a":2,"b":3})' in out and "What is 2 + 3? -> The tool says: 5." in out


@pytest.mark.backend("ollama")
def test_in_front_of_ollama(tmp_path: Path) -> None:
    """Against a server of Ollama's shape; what it answers is made up here."""
    pieces = [
        "<|channel|>",
        "analysis",
        "<|message|>",
        "Easy",
        ".",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
        "Paris",
        ".",
    ]
    with fake_ollama() as ollama:
        ollama.models["gpt-oss:20b"] = {}
        ollama.answers.append(
            [
                *({"model": "m", "response": piece, "done": False} for piece in pieces),
                {"model": "m", "response": "", "done": True, "done_reason": "stop"},
            ]
        )
        with Served(
            "ollama=gpt-oss:20b", tmp_path, *served_arguments("ollama.md"), "--set", f"host={ollama.url}"
        ) as server:
            out = run_python("ollama.md", server)
        asked = next(body for method, path, body in ollama.asked if path == "/api/generate")
    body = asked if isinstance(asked, dict) else json.loads(asked)
    assert body["raw"] is True and body["prompt"].endswith("<|start|>assistant") and "Reasoning: low" in body["prompt"]
    assert out.startswith("Easy.Paris.")
