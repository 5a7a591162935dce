"""The recipe of the `ollama` client, against a server on loopback that speaks Ollama's API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fake_ollama import FakeOllama, fake_ollama


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    with fake_ollama() as server:
        yield server


def test_the_recipe_runs(server: FakeOllama) -> None:
    """Every Python block of the recipe, with answers such as a model gives."""
    server.models["my-tune"] = {"model": "my-tune"}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
    }
    texts = ["391", "391", "391", call, "Sunny.", '{"city": "Paris", "people": 2}', "Hello."]
    server.answers += [
        [
            {
                "model": "my-tune",
                "message": t if isinstance(t, dict) else {"role": "assistant", "content": t},
                "done": True,
            }
        ]
        for t in texts
    ]
    blocks = re.findall(
        r"^```python\n(.*?)^```",
        (Path(__file__).parents[2] / "recipes" / "ollama" / "think_and_tools.md").read_text(),
        re.M | re.S,
    )
    env = os.environ | {"OLLAMA_HOST": server.url}
    said = [
        subprocess.run([sys.executable, "-c", b], env=env, capture_output=True, text=True, check=True).stdout
        for b in blocks
    ]
    assert (
        said[0].splitlines()[0] == "low | None | 391"
        and said[1:3] == ["Sunny.\n", "{'city': 'Paris', 'people': 2}\n"]
        and "Hello." in said[3]
    )
    asked = [body for method, path, body in server.asked if path == "/api/chat"]
    assert [a.get("think") for a in asked] == ["low", "medium", "high", "low", None, None, "low"]
    assert asked[4]["messages"][2] == {"role": "tool", "tool_name": "get_weather", "content": "20 C and sunny in Paris"}
