"""The first request of each real program, as captured, and what every backend owes it. Not a test module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from helpers.serve_fakes import Served

RECORDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "data" / "clients").glob("*.json"))
}
ANSWERED = ("claude", "cline", "codex", "opencode", "qwen")
ROOM = "n_ctx=65536"  # the longest of them is 20 000 tokens
SECONDS = 1800  # of one test: two answers on a busy machine
LAST_EVENT = {
    "/v1/chat/completions": ("data: [DONE]",),
    "/v1/messages?beta=true": ('data: {"type":"message_stop"}',),
    "/v1/responses": ('data: {"type":"response.completed"', 'data: {"type":"response.incomplete"'),
}
ENDINGS = ("stop", "length", "tool_calls", "end_turn", "max_tokens", "tool_use", "completed", "incomplete")


def post(server: Served, record: dict[str, Any], **changes: Any) -> httpx.Response:
    return server.http.post(
        record["path"],
        json={**record["body"], "model": "gpt-oss-20b", **changes},
        headers=record["headers"],
        timeout=SECONDS / 2,
    )


def check_answered(server: Served, record: dict[str, Any]) -> None:
    """As sent, then whole. Only its length is ours: the tests' models never end a text that they were not taught."""
    assert record["body"]["stream"] is True, "all of these programs stream"
    streamed = post(server, record, **_short(record))
    assert streamed.status_code == 200, streamed.text
    last = streamed.text.rstrip().rpartition("\n")[2]
    assert last.startswith(LAST_EVENT[record["path"]])
    assert '"error":{' not in streamed.text
    no_stream = {"stream": False} | ({"stream_options": None} if "stream_options" in record["body"] else {})
    whole = post(server, record, **no_stream, **_short(record))
    assert whole.status_code == 200, whole.text
    said = whole.json()
    assert _ending(said) in ENDINGS
    usage = said["usage"]
    prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    assert prompt > 2000


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """The name that the length of an answer has in its API."""
    return {"max_output_tokens" if record["path"] == "/v1/responses" else "max_tokens": 16}


def _ending(said: dict[str, Any]) -> str:
    if "choices" in said:
        return str(said["choices"][0]["finish_reason"])
    return str(said.get("stop_reason") or said["status"])
