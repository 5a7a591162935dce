"""Sixty requests for bench/serve_compare.py, each with what its answer must be: pocket's lessons and OpenAI's API
are the measure.
"""

from __future__ import annotations

from typing import Any

from _serve_checks import (
    Case,
    Json,
    chat_calls,
    chat_says,
    chat_streams,
    json_answer,
    logprobs_of,
    marks_are_text,
    ok,
    refused,
    response_calls,
    response_says,
    response_streams,
    then,
)

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
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
CALLS: dict[str, tuple[str, Json]] = {
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


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


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


HELLO_WITH_USAGE = {"messages": user("Hello!"), "stream": True, "stream_options": {"include_usage": True}}
CHATS = [
    *(Case(f"chat: {q}", CHAT, {"messages": user(q)}, chat_says(a)) for q, a in KNOWN.items()),
    *(
        Case(
            f"chat, effort {e}",
            CHAT,
            {"messages": user("Tell me a joke."), "reasoning_effort": e},
            chat_says(KNOWN["Tell me a joke."]),
        )
        for e in ("low", "high")
    ),
    *(
        Case(f"chat, streamed: {q}", CHAT, {"messages": user(q), "stream": True}, chat_streams(a))
        for q, a in KNOWN.items()
    ),
    Case("chat, streamed with usage", CHAT, HELLO_WITH_USAGE, chat_streams(KNOWN["Hello!"], usage=True)),
]


def tool_cases(question: str, name: str, arguments: Json) -> list[Case]:
    asked = {"messages": user(question), "tools": NESTED}
    named = {"type": "function", "function": {"name": name}}
    return [
        Case(f"chat, tools: {name}", CHAT, asked, chat_calls(name, arguments)),
        Case(f"chat, tools, streamed: {name}", CHAT, {**asked, "stream": True}, chat_streams(None, (name, arguments))),
        Case(f"chat, required: {name}", CHAT, {**asked, "tool_choice": "required"}, chat_calls(name, arguments)),
        Case(f"chat, named: {name}", CHAT, {**asked, "tool_choice": named}, chat_calls(name, arguments)),
        Case(
            f"responses, tools: {name}",
            RESPONSES,
            {"input": question, "tools": FLAT},
            response_calls(name, arguments),
        ),
    ]


HISTORY = [
    *user("What is the capital of France?"),
    {"role": "assistant", "content": "The capital of France is Paris."},
    *user("Tell me a joke."),
]
JOKE = KNOWN["Tell me a joke."]
FORCED = {
    "messages": user("Tell me a joke."),
    "tools": NESTED,
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "max_tokens": 200,
}
SCHEMA_CHAT = {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA, "strict": True}}
SCHEMA_TEXT = {"format": {"type": "json_schema", "name": "town", "schema": SCHEMA, "strict": True}}
CHAT_FIELDS = [
    Case(
        "chat, tool_choice none",
        CHAT,
        {"messages": user("What is the weather in Tokyo?"), "tools": NESTED, "tool_choice": "none"},
        chat_says("I cannot see the weather in Tokyo without a tool."),
    ),
    Case("chat, named against the model's will", CHAT, FORCED, chat_calls("add", None)),
    Case(
        "chat, a tool's result",
        CHAT,
        {"messages": user("What is the weather in Paris?"), "tools": NESTED},
        then(chat_calls("get_weather", {"city": "Paris"}), chat_says("The tool says: sunny, 21.")),
        _tool_turn,
    ),
    Case("chat, a second turn", CHAT, {"messages": HISTORY}, chat_says(JOKE)),
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
        chat_says(KNOWN["Why is the sky blue?"]),
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
        {"messages": user("Tell me a joke."), "response_format": SCHEMA_CHAT, "max_tokens": 200},
        json_answer,
    ),
    Case("chat, control-token text", CHAT, {"messages": user(MARKS), "max_tokens": 5}, marks_are_text),
]
ANSWERS = [
    *(Case(f"responses: {q}", RESPONSES, {"input": q}, response_says(a)) for q, a in KNOWN.items()),
    *(
        Case(f"responses, streamed: {q}", RESPONSES, {"input": q, "stream": True}, response_streams(a))
        for q, a in list(KNOWN.items())[3:6]
    ),
]
SUMMARY = {"input": "Tell me a joke.", "reasoning": {"effort": "high", "summary": "auto"}}
FRANCE = {"input": "What is the capital of France?", "store": True}
STORED = [
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
        FRANCE,
        then(ok, response_says(JOKE)),
        lambda r: [("POST", RESPONSES, {"input": "Tell me a joke.", "previous_response_id": r["id"]})],
    ),
    Case(
        "responses, retrieve",
        RESPONSES,
        FRANCE,
        then(ok, response_says("The capital of France is Paris.")),
        lambda r: [("GET", f"{RESPONSES}/{r['id']}", None)],
    ),
    Case(
        "responses, input items",
        RESPONSES,
        FRANCE,
        then(ok, ok),
        lambda r: [("GET", f"{RESPONSES}/{r['id']}/input_items", None)],
    ),
    Case(
        "responses, delete",
        RESPONSES,
        FRANCE,
        then(ok, ok, refused(404)),
        lambda r: [("DELETE", f"{RESPONSES}/{r['id']}", None), ("GET", f"{RESPONSES}/{r['id']}", None)],
    ),
]
RESPONSE_FIELDS = [
    Case("responses, effort and summary", RESPONSES, SUMMARY, response_says(JOKE)),
    Case(
        "responses, a limit",
        RESPONSES,
        {"input": "Tell me a joke.", "max_output_tokens": 16},
        response_says(None, "incomplete"),
    ),
    Case(
        "responses, a schema",
        RESPONSES,
        {"input": "Tell me a joke.", "text": SCHEMA_TEXT, "max_output_tokens": 200},
        json_answer,
    ),
    Case("responses, control-token text", RESPONSES, {"input": MARKS, "max_output_tokens": 16}, marks_are_text),
]
REFUSED = [
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
CASES = [
    *CHATS,
    *(case for question, (name, arguments) in CALLS.items() for case in tool_cases(question, name, arguments)),
    *CHAT_FIELDS,
    *ANSWERS,
    *STORED,
    *RESPONSE_FIELDS,
    *REFUSED,
]
