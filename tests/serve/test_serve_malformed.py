"""Whatever a model writes: never a 500, never a lost answer. Ten thousand malformed outputs through a scripted
backend.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gptoss_harmony import Parser, Role, parse
from gptoss_harmony.parsing.flags import is_unfinished
from helpers.random_streams import any_stream
from helpers.serve_fakes import STOPS, TESTS
from helpers.serve_inside import post
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from gptoss_adapters.backends import open_backend
from gptoss_adapters.serve.app import create_app
from gptoss_adapters.serve.settings import Settings

N = 10_000
TOOL = {"name": "f", "parameters": {"type": "object"}}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "go"}],
    "tools": [{"type": "function", "function": TOOL}, {"type": "python"}],
}
RESPONSES: dict[str, Any] = {
    "input": "go",
    "tools": [{"type": "function", **TOOL}, {"type": "code_interpreter"}],
    "store": False,
}
NAMES = ["functions.f", "python"]


def outputs() -> list[list[int]]:
    """Malformed in every way that the parser's own fuzz knows; an engine ends at the first stop id."""
    found = []
    for seed in range(N):
        _, ids = any_stream(random.Random(seed))
        cut = next((i + 1 for i, ident in enumerate(ids) if ident in STOPS), len(ids))
        found.append(ids[:cut] or [200002])
    return found


def texts_of_chat(answer: dict[str, Any]) -> list[str]:
    message = answer["choices"][0]["message"]
    calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    return [text for text in (message["content"], message["reasoning_content"], *calls) if text]


def texts_of_response(answer: dict[str, Any]) -> list[str]:
    return [
        item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        for item in answer["output"]
    ]


def joined_chunks(data: bytes) -> list[str]:
    """What a client has put together at the end of a chat stream."""
    lines = data.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    fields: dict[Any, str] = Counter()  # type: ignore[assignment]
    for chunk in map(json.loads, (line.removeprefix("data: ") for line in lines[:-2])):
        delta = chunk["choices"][0]["delta"]
        for key in ("content", "reasoning_content"):
            fields[key] = (fields[key] or "") + (delta.get(key) or "")
        for call in delta.get("tool_calls", ()):
            fields[call["index"]] = (fields[call["index"]] or "") + call["function"]["arguments"]
    assert chunk["choices"][0]["finish_reason"]
    return [text for text in fields.values() if text]


def last_event(data: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data.decode().strip().rpartition("data: ")[2])
    assert event["type"] in ("response.completed", "response.incomplete")
    return dict(event["response"])


def wanted(ids: list[int]) -> list[tuple[str, bool]]:
    """Everything that the model said as itself, up to where it went on as somebody else after a call, but for what
    it never got as far as saying: a header given up. True: JSON arguments, of which only the first value counts.
    """
    parser = Parser("assistant", tools=NAMES)
    parser.feed(ids)
    parser.finish()
    said, called = [], False
    for message in parser.messages:
        if is_unfinished(message.flags):
            continue
        recipient = "" if "abandoned_call" in message.flags else message.recipient or ""
        if message.role is not Role.ASSISTANT or (message.recipient, message.channel) == (
            "assistant",
            "commentary",
        ):
            if called:
                break
            continue
        call = recipient not in ("", "assistant", "user", "all")
        said.append((message.text, call and message.text.lstrip()[:1] in ("{", "[")))
        called = called or call
    return [(text, arguments) for text, arguments in said if text.strip()]


def check(kind: int, status: int, data: bytes, ids: list[int]) -> None:
    assert status == 200, data
    if kind == 0:
        answer = json.loads(data)
        ChatCompletion.model_validate(answer)
        texts = texts_of_chat(answer)
    elif kind == 1:
        texts = joined_chunks(data)
    else:
        answer = json.loads(data) if kind == 2 else last_event(data)
        Response.model_validate(answer)
        texts = texts_of_response(answer)
    everything = "\0".join(texts)
    for text, arguments in wanted(ids):
        inside = json.dumps(text, ensure_ascii=False)[1:-1]  # the code of python is an argument in JSON
        first = arguments and any(given.strip() and text.startswith(given) for given in texts)
        assert text in everything or inside in everything or first, (kind, ids, text, texts)


def test_ten_thousand_malformed_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *(p for p in sys.path if p)]))
    scripts = outputs()
    repaired = sum(any(message.flags for message in parse(ids, "assistant")) for ids in scripts[:1000])
    assert repaired > 600  # they are malformed
    (tmp_path / "outputs").write_text("".join(json.dumps(ids) + "\n" for ids in scripts))

    async def run() -> None:
        with open_backend(f"helpers.serve_fakes:Scripted={tmp_path / 'outputs'}") as backend:
            app = create_app([backend], Settings("m", builtin_tools=frozenset({"python"})))
            for n, ids in enumerate(scripts):
                kind = n % 4
                path, body = (("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSES))[kind // 2]
                status, data = await post(app, path, {**body, "stream": kind % 2 == 1})
                check(kind, status, data, ids)
            assert app.service.metrics.text().count('status="500"') == 0
            app.service.scheduler.close()

    asyncio.run(run())
