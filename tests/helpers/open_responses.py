"""What Open Responses requires of answers, as a table (tests/data/serve/open_responses.json) and its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLE: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "serve" / "open_responses.json").read_text()
)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
ENDS = ("response.completed", "response.incomplete", "response.failed")


def check_response(response: dict[str, Any]) -> None:
    """Raises AssertionError with the path of a field that is missing or of a wrong type."""
    _check(response, "response", "response")
    if response["status"] == "completed":
        assert response["completed_at"] >= response["created_at"] and response["usage"], response
        assert response["error"] is response["incomplete_details"] is None, response


def check_events(events: list[dict[str, Any]]) -> None:
    """A whole stream: its events, their order, and that it ends as the API says."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] for event in events if event["type"] in ENDS] == [events[-1]["type"]]
    for i, event in enumerate(events):
        _check(event, "event", f"events[{i}]")
    check_response(events[-1]["response"])


def read_events(data: str) -> list[dict[str, Any]]:
    """The events of a stream as it was sent."""
    blocks = [block.split("\n") for block in data.removesuffix("\n\n").split("\n\n")]
    events = []
    for name, text in blocks:
        events.append(json.loads(text.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def check_answer(data: bytes) -> None:
    """The body of a 200 of /v1/responses, whole or streamed."""
    if data[:1] == b"{":
        check_response(json.loads(data))
    else:
        check_events(read_events(data.decode()))


def _check(value: Any, kind: str, where: str) -> None:
    assert isinstance(value, dict), where
    rows = TABLE[kind] | TABLE.get(f"{kind}:{value.get('type')}", {})
    for name, words in rows.items():
        assert name in value, f"{where}.{name} is missing"
        allowed = words.split()
        assert any(_fits(value[name], word, f"{where}.{name}") for word in allowed), (
            f"{where}.{name}: expected {words}, got {value[name]!r}"
        )


def _fits(value: Any, word: str, where: str) -> bool:
    form, colon, kind = word.partition(":")
    if not colon:
        return isinstance(value, _TYPES[word]) and (word == "boolean" or not isinstance(value, bool))
    if form == "const":
        return bool(value == kind)
    if form == "of":
        if isinstance(value, dict):
            _check(value, kind, where)
        return isinstance(value, dict)
    for i, one in enumerate(value if isinstance(value, list) else ()):
        _check(one, kind, f"{where}[{i}]")
    return isinstance(value, list)
