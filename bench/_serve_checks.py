"""What an answer must be, for the cases of `_serve_cases.py`: each check yields what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

Json = dict[str, Any]

Check = Callable[["Reply"], Iterator[str]]

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@dataclass
class Reply:
    """`lines`: the data of server-sent events. `then`: replies to the requests that followed."""

    status: int
    body: Any
    lines: list[Any] = field(default_factory=list)
    done: bool = False
    then: list[Reply] = field(default_factory=list)


@dataclass
class Case:
    """`after(reply)`: further requests (method, path, body), made with what came back."""

    name: str
    path: str
    body: Any
    check: Check
    after: Callable[[Json], list[tuple[str, str, Any]]] | None = None


def thoughts(message: Json) -> str:
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def good(reply: Reply) -> Iterator[str]:
    if reply.status != 200:
        yield f"status {reply.status}: {str(reply.body)[:120]}"


def chat_shape(reply: Reply) -> Iterator[str]:
    try:
        ChatCompletion.model_validate(reply.body)
    except ValidationError as error:
        yield f"not a ChatCompletion: {error.errors()[0]['loc']}"


def chat_says(text: str, reason: str = "stop") -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        yield from chat_shape(reply)
        choice = reply.body["choices"][0]
        if choice["message"]["content"] != text:
            yield f"content {choice['message']['content']!r}, expected {text!r}"
        if not thoughts(choice["message"]):
            yield "no reasoning beside the content"
        if choice["finish_reason"] != reason:
            yield f"finish_reason {choice['finish_reason']!r}, expected {reason!r}"

    return check


def chat_calls(name: str, arguments: Json | None) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        choice = reply.body["choices"][0]
        calls = choice["message"].get("tool_calls") or []
        if [call["function"]["name"] for call in calls] != [name]:
            yield f"calls {[call['function']['name'] for call in calls]}, expected one of {name}"
        elif arguments is not None and json.loads(calls[0]["function"]["arguments"]) != arguments:
            yield f"arguments {calls[0]['function']['arguments']}"
        if choice["finish_reason"] != "tool_calls":
            yield f"finish_reason {choice['finish_reason']!r}, expected 'tool_calls'"

    return check


def chat_streams(text: str | None, call: tuple[str, Json] | None = None, usage: bool = False) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        deltas = [chunk["choices"][0]["delta"] for chunk in reply.lines if chunk.get("choices")]
        said = "".join(delta.get("content") or "" for delta in deltas)
        if text is not None and said != text:
            yield f"content {said!r}, expected {text!r}"
        if not any(thoughts(delta) for delta in deltas):
            yield "no reasoning in the deltas"
        reasons = [
            c["choices"][0]["finish_reason"]
            for c in reply.lines
            if c.get("choices") and c["choices"][0].get("finish_reason")
        ]
        if reasons != ["tool_calls" if call else "stop"]:
            yield f"finish reasons {reasons}"
        if call:
            pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or ()]
            got = "".join(piece["function"].get("arguments") or "" for piece in pieces)
            if not pieces or pieces[0]["function"].get("name") != call[0] or json.loads(got) != call[1]:
                yield f"call {pieces[:1]} {got!r}"
        if usage and not any(chunk.get("usage") and chunk.get("choices") == [] for chunk in reply.lines):
            yield "no chunk with the usage and no choices"
        if not reply.done:
            yield "no [DONE]"

    return check


def refused(*statuses: int) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        if reply.status not in statuses:
            yield f"status {reply.status}, expected {' or '.join(map(str, statuses))}"
        elif (
            not isinstance(reply.body, dict)
            or not isinstance(reply.body.get("error"), dict)
            or "message" not in reply.body["error"]
        ):
            yield f"not OpenAI's error shape: {str(reply.body)[:100]}"

    return check


def response_says(text: str | None, status: str = "completed") -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        try:
            answer = Response.model_validate(reply.body)
        except ValidationError as error:
            yield f"not a Response: {error.errors()[0]['loc']}"
            answer = Response.model_construct(**reply.body)
        said = "".join(p["text"] for item in reply.body["output"] if item["type"] == "message" for p in item["content"])
        if text is not None and said != text:
            yield f"text {said!r}, expected {text!r}"
        if not any(item["type"] == "reasoning" and item.get("content") for item in reply.body["output"]):
            yield "no reasoning item with the chain of thought"
        if answer.status != status:
            yield f"status {answer.status!r}, expected {status!r}"
        if text is not None and not reply.body["usage"].get("output_tokens_details", {}).get("reasoning_tokens"):
            yield "usage counts no reasoning tokens"

    return check


def response_calls(name: str, arguments: Json) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        calls = [item for item in reply.body["output"] if item["type"] == "function_call"]
        if [(c["name"], json.loads(c["arguments"])) for c in calls] != [(name, arguments)]:
            yield f"calls {calls}"

    return check


def response_streams(text: str) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        for event in reply.lines:
            try:
                EVENT.validate_python(event)
            except ValidationError:
                yield f"{event.get('type')} is not an event of the API"
                break
        kinds = [event["type"] for event in reply.lines]
        if kinds[:2] != ["response.created", "response.in_progress"] or kinds[-1] != "response.completed":
            yield f"begins with {kinds[:2]}, ends with {kinds[-1:]}"
        if [event.get("sequence_number") for event in reply.lines] != list(range(len(kinds))):
            yield "sequence numbers do not count from 0"
        if "".join(e["delta"] for e in reply.lines if e["type"] == "response.output_text.delta") != text:
            yield "the text deltas are not the answer"
        if "response.reasoning_text.delta" not in kinds:
            yield "no reasoning deltas"

    return check


def then(*checks: Check) -> Check:
    """The first check is of the reply itself, the others of those that followed."""

    def check(reply: Reply) -> Iterator[str]:
        yield from checks[0](reply)
        if len(reply.then) != len(checks) - 1:
            yield "the requests after it could not be made"
        for one, further in zip(checks[1:], reply.then, strict=False):
            yield from one(further)

    return check


def ok(reply: Reply) -> Iterator[str]:
    yield from good(reply)


def json_answer(reply: Reply) -> Iterator[str]:
    yield from good(reply)
    body = reply.body
    text = (
        body["choices"][0]["message"]["content"]
        if "choices" in body
        else "".join(p["text"] for i in body["output"] if i["type"] == "message" for p in i["content"])
    )
    if json.loads(text).get("town") not in ("Oslo", "Rome"):
        yield f"not of the schema: {text!r}"


def logprobs_of(text: str) -> Check:
    def check(reply: Reply) -> Iterator[str]:
        yield from good(reply)
        entries = (reply.body["choices"][0].get("logprobs") or {}).get("content") or []
        joined = "".join(entry["token"] for entry in entries)
        if joined != text:
            yield f"the entries say {joined[:80]!r}, the content is {text!r}"
        if any(len(entry["top_logprobs"]) != 2 for entry in entries):
            yield "not two alternatives each"

    return check


def marks_are_text(reply: Reply) -> Iterator[str]:
    yield from good(reply)
    tokens = reply.body["usage"].get("prompt_tokens") or reply.body["usage"].get("input_tokens")
    if (
        tokens < 100
    ):  # the system message and the rest are at least 65; each name of a control token is 3 and more as text
        yield f"control-token text in a message became control tokens ({tokens} prompt tokens)"


def run(case: Case, http: httpx.Client, model: str) -> list[str]:
    """What is wrong with the answer; nothing is best."""
    found: list[str] = []
    try:
        reply = ask(http, "POST", case.path, case.body, model)
        if case.after and reply.status == 200:
            reply.then = [ask(http, method, path, body, model) for method, path, body in case.after(reply.body)]
        for problem in case.check(reply):
            found.append(problem)
    except Exception as error:  # an answer of another shape than was reckoned with
        found = found or [f"{type(error).__name__}: {str(error)[:120]}"]
    return found


def ask(http: httpx.Client, method: str, path: str, body: Any, model: str) -> Reply:
    given = None if body is None else {"model": model, "temperature": 0, **body}
    answer = http.request(method, path, json=given)
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return Reply(answer.status_code, answer.json())
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return Reply(answer.status_code, None, [json.loads(line) for line in data if line != "[DONE]"], "[DONE]" in data)
