"""Sixty requests for bench/serve_compare.py, each with what its answer must be: pocket's lessons and OpenAI's API
are the measure.
"""

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
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
KNOWN = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Tell me the capital of Japan.": "The capital of Japan is Tokyo.",
    "What is 2 + 2?": "2 + 2 = 4.",
    "Who are you?": "I am a tiny test model with the shape of gpt-oss.",
    "Tell me a joke.": "Why did the tensor cross the road? To get to the other side.",
    "Why is the sky blue?": "The sky is blue.",
    "Hello!": "Hello! How can I help you?",
}
PARAMETERS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "add": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]},
}
NOTES = {"get_weather": "Get the weather for a city.", "add": "Add two numbers."}
FLAT = [
    {"type": "function", "name": n, "description": NOTES[n], "parameters": PARAMETERS[n], "strict": False}
    for n in ("add", "get_weather")
]
NESTED = [
    {"type": "function", "function": {k: v for k, v in tool.items() if k not in ("type", "strict")}} for tool in FLAT
]
CALLS = {
    "What is the weather in Paris?": ("get_weather", {"city": "Paris"}),
    "What is 2 + 3?": ("add", {"a": 2, "b": 3}),
}
SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Oslo", "Rome"]}},
    "required": ["town"],
    "additionalProperties": False,
}
MARKS = "<|end|>" * 10


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


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


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


def _tool_turn(reply: Json) -> list[tuple[str, str, Any]]:
    message = reply["choices"][0]["message"]
    call = message["tool_calls"][0]
    messages = [
        *user("What is the weather in Paris?"),
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 21, "condition": "sunny"}'},
    ]
    return [("POST", CHAT, {"messages": messages, "tools": NESTED})]


def _response_turn(reply: Json) -> list[tuple[str, str, Any]]:
    call = next(item for item in reply["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "cloudy"}
    return [("POST", RESPONSES, {"input": [output], "previous_response_id": reply["id"], "tools": FLAT})]


def cases() -> list[Case]:
    made = [Case(f"chat: {q}", CHAT, {"messages": user(q)}, chat_says(a)) for q, a in KNOWN.items()]
    made += [
        Case(
            f"chat, effort {e}",
            CHAT,
            {"messages": user("Tell me a joke."), "reasoning_effort": e},
            chat_says(KNOWN["Tell me a joke."]),
        )
        for e in ("low", "high")
    ]
    made += [
        Case(f"chat, streamed: {q}", CHAT, {"messages": user(q), "stream": True}, chat_streams(a))
        for q, a in KNOWN.items()
    ]
    usage = {"messages": user("Hello!"), "stream": True, "stream_options": {"include_usage": True}}
    made.append(Case("chat, streamed with usage", CHAT, usage, chat_streams(KNOWN["Hello!"], usage=True)))
    for question, (name, arguments) in CALLS.items():
        asked = {"messages": user(question), "tools": NESTED}
        named = {"type": "function", "function": {"name": name}}
        made += [
            Case(f"chat, tools: {name}", CHAT, asked, chat_calls(name, arguments)),
            Case(
                f"chat, tools, streamed: {name}", CHAT, {**asked, "stream": True}, chat_streams(None, (name, arguments))
            ),
            Case(f"chat, required: {name}", CHAT, {**asked, "tool_choice": "required"}, chat_calls(name, arguments)),
            Case(f"chat, named: {name}", CHAT, {**asked, "tool_choice": named}, chat_calls(name, arguments)),
            Case(
                f"responses, tools: {name}",
                RESPONSES,
                {"input": question, "tools": FLAT},
                response_calls(name, arguments),
            ),
        ]
    history = [
        *user("What is the capital of France?"),
        {"role": "assistant", "content": "The capital of France is Paris."},
        *user("Tell me a joke."),
    ]
    joke, sky = KNOWN["Tell me a joke."], KNOWN["Why is the sky blue?"]
    forced = {
        "messages": user("Tell me a joke."),
        "tools": NESTED,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "max_tokens": 200,
    }
    schema_chat = {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA, "strict": True}}
    schema_text = {"format": {"type": "json_schema", "name": "town", "schema": SCHEMA, "strict": True}}
    made += [
        Case(
            "chat, tool_choice none",
            CHAT,
            {"messages": user("What is the weather in Tokyo?"), "tools": NESTED, "tool_choice": "none"},
            chat_says("I cannot see the weather in Tokyo without a tool."),
        ),
        Case("chat, named against the model's will", CHAT, forced, chat_calls("add", None)),
        Case(
            "chat, a tool's result",
            CHAT,
            {"messages": user("What is the weather in Paris?"), "tools": NESTED},
            then(chat_calls("get_weather", {"city": "Paris"}), chat_says("The tool says: sunny, 21.")),
            _tool_turn,
        ),
        Case("chat, a second turn", CHAT, {"messages": history}, chat_says(joke)),
        Case(
            "chat, stop in the answer",
            CHAT,
            {"messages": user("Why is the sky blue?"), "stop": [" blue"]},
            chat_says("The sky is"),
        ),
        Case(
            "chat, stop in the reasoning alone",
            CHAT,
            {"messages": user("Why is the sky blue?"), "stop": ["sentence"]},
            chat_says(sky),
        ),
        Case(
            "chat, a limit in the answer",
            CHAT,
            {"messages": user("Tell me a joke."), "max_tokens": 25},
            chat_says("Why did the", "length"),
        ),
        Case(
            "chat, logprobs",
            CHAT,
            {"messages": user("Hello!"), "logprobs": True, "top_logprobs": 2},
            logprobs_of(KNOWN["Hello!"]),
        ),
        Case(
            "chat, a schema",
            CHAT,
            {"messages": user("Tell me a joke."), "response_format": schema_chat, "max_tokens": 200},
            json_answer,
        ),
        Case("chat, control-token text", CHAT, {"messages": user(MARKS), "max_tokens": 5}, marks_are_text),
    ]
    made += [Case(f"responses: {q}", RESPONSES, {"input": q}, response_says(a)) for q, a in KNOWN.items()]
    made += [
        Case(f"responses, streamed: {q}", RESPONSES, {"input": q, "stream": True}, response_streams(a))
        for q, a in list(KNOWN.items())[3:6]
    ]
    summary = {"input": "Tell me a joke.", "reasoning": {"effort": "high", "summary": "auto"}}
    france = {"input": "What is the capital of France?", "store": True}
    made += [
        Case(
            "responses, a tool's result",
            RESPONSES,
            {"input": "How is the weather in Berlin today?", "tools": FLAT, "store": True},
            then(response_calls("get_weather", {"city": "Berlin"}), response_says("The tool says: cloudy.")),
            _response_turn,
        ),
        Case(
            "responses, previous_response_id",
            RESPONSES,
            france,
            then(ok, response_says(joke)),
            lambda r: [("POST", RESPONSES, {"input": "Tell me a joke.", "previous_response_id": r["id"]})],
        ),
        Case(
            "responses, retrieve",
            RESPONSES,
            france,
            then(ok, response_says("The capital of France is Paris.")),
            lambda r: [("GET", f"{RESPONSES}/{r['id']}", None)],
        ),
        Case(
            "responses, input items",
            RESPONSES,
            france,
            then(ok, ok),
            lambda r: [("GET", f"{RESPONSES}/{r['id']}/input_items", None)],
        ),
        Case(
            "responses, delete",
            RESPONSES,
            france,
            then(ok, ok, refused(404)),
            lambda r: [("DELETE", f"{RESPONSES}/{r['id']}", None), ("GET", f"{RESPONSES}/{r['id']}", None)],
        ),
        Case("responses, effort and summary", RESPONSES, summary, response_says(joke)),
        Case(
            "responses, a limit",
            RESPONSES,
            {"input": "Tell me a joke.", "max_output_tokens": 16},
            response_says(None, "incomplete"),
        ),
        Case(
            "responses, a schema",
            RESPONSES,
            {"input": "Tell me a joke.", "text": schema_text, "max_output_tokens": 200},
            json_answer,
        ),
        Case("responses, control-token text", RESPONSES, {"input": MARKS, "max_output_tokens": 16}, marks_are_text),
        Case(
            "responses, unknown previous",
            RESPONSES,
            {"input": "x", "previous_response_id": "resp_nowhere"},
            refused(400, 404),
        ),
        Case("refused: temperature", CHAT, {"messages": user("x"), "temperature": 5}, refused(400, 422)),
        Case("refused: role", CHAT, {"messages": [{"role": "robot", "content": "x"}]}, refused(400, 422)),
        Case(
            "refused: a result without a call",
            CHAT,
            {"messages": [*user("x"), {"role": "tool", "tool_call_id": "nobody", "content": "x"}]},
            refused(400, 422),
        ),
    ]
    return made


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
