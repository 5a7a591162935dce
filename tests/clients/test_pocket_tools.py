"""A real model's calls, executed by its clients: the pocket checkpoint, an MCP server, and the recipes of two SDKs.

Pocket was taught `get_weather` as a function among few, so opencode is given no other tool here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.client_programs import PROGRAMS, add_opencode
from helpers.documents import blocks
from helpers.serve_fakes import ROOT, TESTS, Served

RECIPES = ROOT / "recipes" / "serve"
SERVER = TESTS / "helpers" / "mcp_weather.py"
ANSWER = "The tool says: sunny, 21."


@pytest.fixture(scope="module")
def server(pocket: Path) -> Iterator[Served]:
    backend = ("llama_server=pocket.gguf", pocket, "--set", "n_ctx=65536", "--model", "gpt-oss-20b")
    with Served(*backend) as started:
        yield started


def run(command: list[str | Path], url: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "GPTOSS_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.backend("llama_server")
def test_opencode_with_an_mcp_server(server: Served, tmp_path: Path) -> None:
    """opencode puts the server's name before the tool's: `get` and `weather` make `get_weather`."""
    log = tmp_path / "calls"
    home = tmp_path / "home"
    only = {
        "mcp": {"get": {"type": "local", "command": [sys.executable, str(SERVER), "weather", str(log)]}},
        "tools": {"*": False, "get_*": True},
        "agent": {"build": {"prompt": "Answer with tools.", "temperature": 0}, "title": {"disable": True}},
    }
    add_opencode(home, only)
    ended = PROGRAMS["opencode"].run(home, tmp_path / "work", server.url, "What is the weather in Paris?")
    assert ended.status == 0, ended.err
    assert json.loads(log.read_text()) == {"city": "Paris"}
    assert ANSWER in ended.out


@pytest.mark.backend("llama_server")
def test_the_agents_sdk_with_an_mcp_server(server: Served) -> None:
    python = ROOT / ".venv-clients" / "bin" / "python"
    program = blocks(RECIPES / "agents_sdk.md", "python")[0]
    out = run([python, "-c", program], server.url, WEATHER_SERVER=str(SERVER)).splitlines()
    assert "tool_call_output_item" in out
    assert out[-1] == ANSWER


@pytest.mark.backend("llama_server")
def test_the_ai_sdk(server: Served, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(TESTS / "clients" / "node" / "node_modules")
    program = tmp_path / "weather.mjs"
    program.write_text(blocks(RECIPES / "ai_sdk.md", "js")[0])
    out = run(["node", program], server.url)
    assert out.splitlines() == ["  get_weather(Paris)", "The tool says: 21."] * 2  # as pocket reads JSON without spaces
