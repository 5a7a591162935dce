"""The first request of each real client, as captured: whole and streamed, over a script and llama.cpp's two engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.serve_fakes import Served

DATA = Path(__file__).parents[1] / "data" / "clients"
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
ANSWERED = ("claude", "cline", "opencode", "qwen")
ROOM = "n_ctx=65536"  # the longest of them is 20 000 tokens
BACKENDS = {
    "echo": ["helpers.serve_fakes:Echo=x"],
    "llama_cpp": ["llama_cpp=pocket.gguf", "--set", ROOM],
    "llama_server": ["llama_server=pocket.gguf", "--set", ROOM],
}
ENDS = {"/v1/chat/completions": "data: [DONE]", "/v1/messages?beta=true": 'data: {"type":"message_stop"}'}


def post(server: Served, record: dict[str, Any], **changes: Any) -> httpx.Response:
    return server.http.post(
        record["path"],
        json={**record["body"], "model": "gpt-oss-20b", **changes},
        headers=record["headers"],
        timeout=300,
    )


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("echo") if request.param == "echo" else request.getfixturevalue("pocket")
    with Served(BACKENDS[request.param][0], folder, "--model", "gpt-oss-20b", *BACKENDS[request.param][1:]) as started:
        yield started


@pytest.fixture(params=ANSWERED)
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECORDS[request.param]


def test_a_first_request_is_answered_as_sent(server: Served, record: dict[str, Any]) -> None:
    """Only the answer's length is ours: the models of the tests never end a text that they were not taught."""
    assert record["body"]["stream"] is True, "all of these programs stream"
    answer = post(server, record, max_tokens=16)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith(ENDS[record["path"]])
    assert '"error"' not in answer.text


def test_a_first_request_is_answered_whole(server: Served, record: dict[str, Any]) -> None:
    answer = post(server, record, stream=False, stream_options=None, max_tokens=16)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    ended = said["choices"][0]["finish_reason"] if "choices" in said else said["stop_reason"]
    assert ended in ("stop", "length", "tool_calls", "end_turn", "max_tokens", "tool_use")
    usage = said["usage"]
    prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert prompt > 2000


def test_nothing_personal_is_kept() -> None:
    """Neither a path nor a session; no long text but our own."""
    for name, record in RECORDS.items():
        text = json.dumps(record)
        assert not any(word in text for word in ("/tmp/", "/home/", "/root/", "hostname")), name
    assert set(RECORDS) >= set(ANSWERED)
