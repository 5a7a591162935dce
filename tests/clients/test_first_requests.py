"""The first request of each real client, as captured: streamed and whole, on the reference and llama.cpp too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.serve_fakes import Served

DATA = Path(__file__).parents[1] / "data" / "clients"
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
ANSWERED = ("claude", "cline", "codex", "opencode", "qwen")
ROOM = "n_ctx=65536"  # the longest of them is 20 000 tokens
BACKENDS = {
    "echo": ["helpers.serve_fakes:Echo=x"],
    "torch": ["torch=pocket"],
    "llama_cpp": ["llama_cpp=pocket.gguf", "--set", ROOM],
    "llama_server": ["llama_server=pocket.gguf", "--set", ROOM],
}
LAST_EVENT = {
    "/v1/chat/completions": ("data: [DONE]",),
    "/v1/messages?beta=true": ('data: {"type":"message_stop"}',),
    "/v1/responses": ('data: {"type":"response.completed"', 'data: {"type":"response.incomplete"'),
}


ENDINGS = ("stop", "length", "tool_calls", "end_turn", "max_tokens", "tool_use", "completed", "incomplete")
QUESTION = "What is the weather in Paris?"


def short(record: dict[str, Any]) -> dict[str, Any]:
    """The name that the length of an answer has in its API."""
    return {"max_output_tokens" if record["path"] == "/v1/responses" else "max_tokens": 16}


def ending(said: dict[str, Any]) -> str:
    if "choices" in said:
        return str(said["choices"][0]["finish_reason"])
    return str(said.get("stop_reason") or said["status"])


def post(server: Served, record: dict[str, Any], **changes: Any) -> httpx.Response:
    return server.http.post(
        record["path"],
        json={**record["body"], "model": "gpt-oss-20b", **changes},
        headers=record["headers"],
        timeout=900,
    )


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("echo") if request.param == "echo" else request.getfixturevalue("pocket")
    with Served(BACKENDS[request.param][0], folder, "--model", "gpt-oss-20b", *BACKENDS[request.param][1:]) as started:
        yield started


@pytest.fixture(params=ANSWERED)
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECORDS[request.param]


@pytest.mark.timeout(1800)
def test_a_first_request_is_answered(server: Served, record: dict[str, Any]) -> None:
    """As sent, then whole. Only its length is ours: the tests' models never end a text that they were not taught."""
    assert record["body"]["stream"] is True, "all of these programs stream"
    streamed = post(server, record, **short(record))
    assert streamed.status_code == 200, streamed.text
    last = streamed.text.rstrip().rpartition("\n")[2]
    assert last.startswith(LAST_EVENT[record["path"]])
    assert '"error":{' not in streamed.text
    no_stream = {"stream": False} | ({"stream_options": None} if "stream_options" in record["body"] else {})
    whole = post(server, record, **no_stream, **short(record))
    assert whole.status_code == 200, whole.text
    said = whole.json()
    assert ending(said) in ENDINGS
    usage = said["usage"]
    prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    assert prompt > 2000


@pytest.mark.parametrize(
    ("recipient", "namespace", "name"),
    [("multi_agent_v1.close_agent", "multi_agent_v1", "close_agent"), ("functions.exec_command", None, "exec_command")],
)
def test_codex_s_calls_come_back_as_it_declared_them(
    tmp_path: Path, recipient: str, namespace: str | None, name: str
) -> None:
    record = RECORDS["codex"]
    call = f'<|channel|>commentary to={recipient} <|constrain|>json<|message|>{{"target": "a"}}<|call|>'
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"answers": [{"asks": QUESTION, "says": [call]}]}))
    with Served(f"helpers.question_engine:ByQuestion={answers}", tmp_path, "--model", "gpt-oss-20b") as server:
        whole = post(server, record, stream=False).json()
        streamed = post(server, record).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
    last = next(event["response"] for event in events if event["type"] == "response.completed")
    for response in (whole, last):
        (item,) = (item for item in response["output"] if item["type"] == "function_call")
        assert (item.get("namespace"), item["name"]) == (namespace, name)
        assert json.loads(item["arguments"]) == {"target": "a"}
    assert any("web_search" in warning for warning in whole["warnings"])


def test_nothing_personal_is_kept() -> None:
    """Neither a path nor a session; no long text but our own."""
    for name, record in RECORDS.items():
        text = json.dumps(record)
        assert not re.search(r"/(tmp|home|root)/|hostname", text), name
    assert set(RECORDS) >= set(ANSWERED)
