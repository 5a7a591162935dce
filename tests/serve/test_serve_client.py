"""The openai client drives everything against pocket, on several backends: the same answers and events, ids aside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.serve_fakes import Served
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
OURS = {"reasoning_content", "reasoning"}  # in Chat Completions, beside what the API has
BACKENDS = [
    pytest.param("torch=pocket", marks=pytest.mark.backend("torch")),
    pytest.param("llama_cpp=pocket.gguf", marks=pytest.mark.backend("llama_cpp")),
    pytest.param("llama_server=pocket.gguf", marks=pytest.mark.backend("llama_server")),
]


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


@pytest.fixture(scope="module")
def served(pocket: Path) -> Iterator[Callable[[str], Served]]:
    """Servers by backend, one of each."""
    running: dict[str, Served] = {}

    def get(backend: str) -> Served:
        if backend not in running:
            running[backend] = Served(backend, pocket, "--model", "pocket")
        return running[backend]

    yield get
    for server in running.values():
        server.__exit__()


@pytest.fixture(scope="module")
def reference(served: Callable[[str], Served]) -> Callable[[str], Any]:
    """What torch answers."""
    return cache(lambda name: REQUESTS[name](served("torch=pocket").client))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", REQUESTS)
def test_every_backend_gives_the_same_events(name: str, backend: str, served: Any, reference: Any) -> None:
    assert REQUESTS[name](served(backend).client) == reference(name)


def content(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@pytest.mark.backend("torch")
def test_the_answers_are_right(reference: Any) -> None:
    """... and not only the same everywhere."""
    message = reference("chat")["choices"][0]["message"]
    assert message["content"] == "The capital of France is Paris."
    assert message["reasoning_content"] == "The user asks about a capital. I answer in one sentence."
    assert content(reference("chat, streamed")) == "2 + 2 = 4."
    usage = reference("chat, streamed")[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert "Let me think" in reference("chat, effort")["choices"][0]["message"]["reasoning"]
    assert content(reference("chat, stop, streamed")) == "The sky"
    assert reference("chat, stop")["choices"][0] | {"message": 0} == {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": None,
        "message": 0,
    }
    assert reference("chat, stop")["choices"][0]["message"]["content"] == "The sky is"
    assert reference("chat, limit")[-1]["choices"][0]["finish_reason"] == "length"
    for name, arguments in (
        ("chat, tools", {"city": "Paris"}),
        ("chat, required", {"city": "Paris"}),
        ("chat, named", {"a": 2, "b": 3}),
    ):
        choice = reference(name)["choices"][0]
        assert (choice["finish_reason"], json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])) == (
            "tool_calls",
            arguments,
        )
    assert (
        reference("chat, no tools")["choices"][0]["message"]["content"]
        == "I cannot see the weather in Tokyo without a tool."
    )
    entries = reference("chat, logprobs")["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "Hello! How can I help you?"
    assert all(entry["logprob"] <= 0 for entry in entries)
    streamed = [
        e for c in reference("chat, logprobs, streamed") for e in (c["choices"][0]["logprobs"] or {}).get("content", [])
    ]
    assert streamed == entries
    assert reference("responses, limit")[-1]["type"] == "response.incomplete"
    assert reference("responses, limit")[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    output = reference("responses, tools")["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"] and json.loads(
        output[1]["arguments"]
    ) == {"city": "Berlin"}
    summary = reference("responses, summary")[-1]["response"]["output"][0]["summary"]
    assert summary == [{"type": "summary_text", "text": "The user asks about a joke."}]
    logprobs = reference("responses, logprobs")[-1]["response"]["output"][-1]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in logprobs) == "Hello! How can I help you?"
    assert reference("responses, not stored")["store"] is False
    second, items, first = reference("responses, chained")
    assert second["output"][-1]["content"][0]["text"].startswith("Why did the tensor")
    assert items["data"][0]["content"] == [{"type": "input_text", "text": "Tell me a joke."}]
    assert first["output"][-1]["content"][0]["text"] == "The capital of France is Paris."


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("agent", [chat_agent, responses_agent])
def test_an_agent_with_two_tools_ends_with_the_right_answers(agent: Any, backend: str, served: Any) -> None:
    turns = list(agent(served(backend).client))
    assert [text for text, _, _ in turns] == [answer for _, answer in CONVERSATION]
    assert all(0 < cached < prompt for _, prompt, cached in turns)


@pytest.mark.backend("llama_cpp")
def test_a_schema_is_enforced_by_a_grammar_where_there_is_one(served: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"town": {"enum": ["Oslo", "Rome"]}, "n": {"type": "integer"}},
        "required": ["town", "n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "town", "schema": schema, "strict": True}}
    client = served("llama_cpp=pocket.gguf").client
    answer = client.chat.completions.create(
        model="pocket", messages=ask("Tell me a joke."), response_format=wanted, temperature=0, max_tokens=200
    )
    value = json.loads(answer.choices[0].message.content)
    assert value["town"] in ("Oslo", "Rome") and isinstance(value["n"], int) and not hasattr(answer, "warnings")
    named = {"type": "function", "function": {"name": "add"}}
    call = client.chat.completions.create(
        model="pocket",
        messages=ask("Tell me a joke."),
        tools=CHAT_TOOLS,
        tool_choice=named,
        temperature=0,
        max_tokens=200,
    )
    assert (
        call.choices[0].message.tool_calls[0].function.name == "add" and call.choices[0].finish_reason == "tool_calls"
    )
    text = {"format": {"type": "json_schema", "name": "town", "schema": schema, "strict": True}}
    response = client.responses.create(model="pocket", input="Hello!", text=text, temperature=0, max_output_tokens=200)
    assert set(json.loads(response.output_text)) == {"town", "n"}


@pytest.mark.backend("torch")
def test_a_schema_is_checked_and_reported_where_there_is_no_grammar(served: Any) -> None:
    client = served("torch=pocket").client
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "town", "schema": WEATHER}}
    answer = client.chat.completions.create(
        model="pocket", messages=ask("Tell me a joke."), response_format=wanted, temperature=0
    )
    assert "does not keep to the schema: not JSON" in answer.warnings[0] and answer.choices[0].message.content
    missed = client.chat.completions.create(
        model="pocket",
        messages=ask("Hello!"),
        tools=[{"type": "function", "function": {"name": "xyzzy_unheard"}}],
        tool_choice="required",
        temperature=0,
    )
    assert bool(missed.choices[0].message.tool_calls) != hasattr(missed, "warnings")


@pytest.mark.backend("llama_cpp")
def test_sampling_follows_the_seed(served: Any) -> None:
    client = served("llama_cpp=pocket.gguf").client

    def sampled(seed: int) -> str:
        return str(
            client.chat.completions.create(
                model="pocket", messages=ask("Tell me"), temperature=2, top_p=0.999, seed=seed, max_tokens=30
            ).choices[0]
        )

    assert sampled(1) == sampled(1) and len({sampled(seed) for seed in range(4)}) > 1


@pytest.mark.backend("llama_cpp")
def test_built_in_tools_come_back_as_calls_and_are_in_the_prompt(pocket: Path) -> None:
    """Nothing is run here; pocket was not taught these tools, so only the prompt can be looked at."""
    with Served("llama_cpp=pocket.gguf", pocket, "--log-contents", "--model", "pocket") as server:
        tools: Any = [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}]
        answer = server.client.responses.create(model="pocket", input="Hello!", tools=tools, max_output_tokens=5)
        assert [tool.type for tool in answer.tools] == ["web_search", "code_interpreter"]
        prompt = server.line_of(answer._request_id)["prompt"]
        assert "## browser" in prompt and "## python" in prompt and "Hello!" in prompt


@pytest.mark.backend("llama_cpp")
def test_an_append_only_chat_prefills_only_new_tokens(served: Any) -> None:
    """All of the last prompt is in the cache; of a tool loop also the call, as the model wrote it."""
    client = served("llama_cpp=pocket.gguf").client
    messages: list[Any] = ask("What is the weather in Paris?")
    first = client.chat.completions.create(model="pocket", messages=messages, tools=CHAT_TOOLS, temperature=0)
    message = first.choices[0].message
    messages += [message.to_dict(), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "cloudy"}]
    second = client.chat.completions.create(model="pocket", messages=messages, tools=CHAT_TOOLS, temperature=0)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.prompt_tokens + first.usage.completion_tokens - 1  # all but the closing <|call|>
    messages += [second.choices[0].message.to_dict(), *ask("Tell me a joke.")]
    third = client.chat.completions.create(model="pocket", messages=messages, tools=CHAT_TOOLS, temperature=0)
    assert (
        third.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    )  # finished reasoning leaves the prompt, by the format's rule


@pytest.mark.backend("llama_cpp")
def test_stored_responses_can_be_listed_and_deleted(served: Any) -> None:
    client = served("llama_cpp=pocket.gguf").client
    given: list[Any] = [{"role": "developer", "content": "Be brief."}, *ask("Hello!")]
    made = client.responses.create(model="pocket", input=given, temperature=0)
    assert client.responses.retrieve(made.id) == made
    ids = [
        item.id for item in client.responses.input_items.list(made.id, order="asc", limit=1)
    ]  # the client turns the pages
    assert len(ids) == 2 == len(set(ids))
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    unstored = client.responses.create(model="pocket", input="Hello!", store=False, temperature=0)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="pocket", input="Hello!", previous_response_id=unstored.id)


@pytest.mark.backend("llama_cpp")
def test_models(served: Any) -> None:
    client = served("llama_cpp=pocket.gguf").client
    assert [model.id for model in client.models.list()] == ["pocket"] == [client.models.retrieve("pocket").id]
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="gpt-4o", messages=ask("Hello!"))
