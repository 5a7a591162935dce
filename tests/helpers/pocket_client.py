"""What clients of OpenAI's API ask of the pocket model: requests, and two agents with tools. Not a test module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NUMBERS = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}
NOTES = {"get_weather": "Get the weather for a city.", "add": "Add two numbers."}
SCHEMAS = {"get_weather": WEATHER, "add": NUMBERS}
CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": n, "description": NOTES[n], "parameters": SCHEMAS[n]}}
    for n in ("add", "get_weather")
]
TOOLS: list[Any] = [
    {"type": "function", "name": n, "description": NOTES[n], "parameters": SCHEMAS[n], "strict": False}
    for n in ("add", "get_weather")
]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def plain(value: Any) -> Any:
    """JSON without ids, times, cache counts and the last digits of log-probabilities."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    aside = {
        "id",
        "item_id",
        "call_id",
        "created",
        "created_at",
        "completed_at",
        "previous_response_id",
        "cached_tokens",
        "first_id",
        "last_id",
        "top_logprobs",
    }
    return {k: round(v, 2) if k == "logprob" else plain(v) for k, v in value.items() if k not in aside}


def chat(client: OpenAI, **request: Any) -> Any:
    answer = client.chat.completions.create(model="pocket", temperature=0, **request)
    if request.get("stream"):
        chunks = [chunk.to_dict() for chunk in answer]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk, strict=True)
        assert len({chunk["id"] for chunk in chunks}) == 1
        return plain(chunks)
    ChatCompletion.model_validate(answer.to_dict(), strict=True)
    return plain(answer.to_dict())


def respond(client: OpenAI, **request: Any) -> Any:
    answer = client.responses.create(model="pocket", temperature=0, **request)
    if request.get("stream"):
        events = [event.to_dict() for event in answer]
        for event in events:
            EVENT.validate_python(event)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        return plain(events)
    Response.model_validate(answer.to_dict())
    return plain(answer.to_dict())


def chained(client: OpenAI) -> Any:
    first = client.responses.create(model="pocket", input="What is the capital of France?", temperature=0)
    second = client.responses.create(
        model="pocket", input="Tell me a joke.", previous_response_id=first.id, temperature=0
    )
    assert second.previous_response_id == first.id
    return [
        plain(second.to_dict()),
        plain(client.responses.input_items.list(second.id).to_dict()),
        plain(client.responses.retrieve(first.id).to_dict()),
    ]


REQUESTS: dict[str, Callable[[OpenAI], Any]] = {
    "chat": lambda c: chat(c, messages=ask("What is the capital of France?")),
    "chat, streamed": lambda c: chat(
        c, messages=ask("What is 2 + 2?"), stream=True, stream_options={"include_usage": True}
    ),
    "chat, effort": lambda c: chat(c, messages=ask("Tell me a joke."), reasoning_effort="high"),
    "chat, tools": lambda c: chat(c, messages=ask("What is the weather in Paris?"), tools=CHAT_TOOLS),
    "chat, tools, streamed": lambda c: chat(
        c, messages=ask("What is 2 + 3?"), tools=CHAT_TOOLS, stream=True, parallel_tool_calls=False
    ),
    "chat, no tools": lambda c: chat(
        c, messages=ask("What is the weather in Tokyo?"), tools=CHAT_TOOLS, tool_choice="none"
    ),
    "chat, required": lambda c: chat(
        c, messages=ask("What is the weather in Paris?"), tools=CHAT_TOOLS, tool_choice="required"
    ),
    "chat, named": lambda c: chat(
        c,
        messages=ask("What is 2 + 3?"),
        tools=CHAT_TOOLS,
        tool_choice={"type": "function", "function": {"name": "add"}},
    ),
    "chat, stop": lambda c: chat(c, messages=ask("Why is the sky blue?"), stop=[" blue", "never"]),
    "chat, stop, streamed": lambda c: chat(c, messages=ask("Why is the sky blue?"), stop=" is blue", stream=True),
    "chat, limit": lambda c: chat(c, messages=ask("Tell me a joke."), max_completion_tokens=25, stream=True),
    "chat, logprobs": lambda c: chat(c, messages=ask("Hello!"), logprobs=True, top_logprobs=3),
    "chat, logprobs, streamed": lambda c: chat(c, messages=ask("Hello!"), logprobs=True, stream=True),
    "responses": lambda c: respond(c, input="Who are you?"),
    "responses, streamed": lambda c: respond(c, input="Who are you?", instructions="Answer briefly.", stream=True),
    "responses, summary": lambda c: respond(
        c, input="Tell me a joke.", reasoning={"effort": "high", "summary": "concise"}, stream=True
    ),
    "responses, tools": lambda c: respond(c, input="How is the weather in Berlin today?", tools=TOOLS),
    "responses, tools, streamed": lambda c: respond(c, input="What is the weather in Paris?", tools=TOOLS, stream=True),
    "responses, named": lambda c: respond(
        c, input="What is 2 + 3?", tools=TOOLS, tool_choice={"type": "function", "name": "add"}
    ),
    "responses, not stored": lambda c: respond(c, input=ask("Hello!"), store=False, metadata={"a": "b"}),
    "responses, limit": lambda c: respond(c, input="Tell me a joke.", max_output_tokens=20, stream=True),
    "responses, logprobs": lambda c: respond(c, input="Hello!", include=["message.output_text.logprobs"], stream=True),
    "responses, stop": lambda c: respond(c, input="Why is the sky blue?", extra_body={"stop": ["blue"]}),
    "responses, chained": chained,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "get_weather": lambda city: {"temperature": 21, "condition": "sunny"},
    "add": lambda a, b: {"result": a + b},
}
CONVERSATION = (("What is the weather in Paris?", "The tool says: sunny, 21."), ("What is 2 + 3?", "The tool says: 5."))


def chat_agent(client: OpenAI) -> Iterator[tuple[str, int, int]]:
    """(answer, prompt tokens, cached ones) of each turn; tools are called until the model answers."""
    messages: list[Any] = []
    for question, _ in CONVERSATION:
        messages.append({"role": "user", "content": question})
        while True:
            answer = client.chat.completions.create(model="pocket", messages=messages, tools=CHAT_TOOLS, temperature=0)
            message = answer.choices[0].message
            messages.append(message.to_dict())
            if not message.tool_calls:
                usage = answer.usage
                assert usage and usage.prompt_tokens_details and message.content
                yield message.content, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0
                break
            for call in message.tool_calls:
                assert call.type == "function"
                result = FUNCTIONS[call.function.name](**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})


def responses_agent(client: OpenAI) -> Iterator[tuple[str, int, int]]:
    previous: str | None = None
    for question, _ in CONVERSATION:
        given: list[Any] = [{"role": "user", "content": question}]
        while True:
            answer = client.responses.create(
                model="pocket", input=given, tools=TOOLS, previous_response_id=previous, temperature=0
            )
            previous, calls = answer.id, [item for item in answer.output if item.type == "function_call"]
            if not calls:
                assert answer.usage
                yield answer.output_text, answer.usage.input_tokens, answer.usage.input_tokens_details.cached_tokens
                break
            results = [json.dumps(FUNCTIONS[call.name](**json.loads(call.arguments))) for call in calls]
            given = [
                {"type": "function_call_output", "call_id": call.call_id, "output": text}
                for call, text in zip(calls, results, strict=True)
            ]
