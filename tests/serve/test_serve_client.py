"""The openai client drives everything against pocket, on several backends: the same answers and events, ids aside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.pocket_client import CHAT_TOOLS, CONVERSATION, REQUESTS, WEATHER, ask, chat_agent, responses_agent
from helpers.serve_fakes import Served

BACKENDS = [
    pytest.param("torch=pocket", marks=pytest.mark.backend("torch")),
    pytest.param("llama_cpp=pocket.gguf", marks=pytest.mark.backend("llama_cpp")),
    pytest.param("llama_server=pocket.gguf", marks=pytest.mark.backend("llama_server")),
]


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
def test_the_answers_to_chats_are_right(reference: Any) -> None:
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


@pytest.mark.backend("torch")
def test_the_calls_of_chats_are_right(reference: Any) -> None:
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


@pytest.mark.backend("torch")
def test_the_log_probabilities_of_chats_are_right(reference: Any) -> None:
    entries = reference("chat, logprobs")["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "Hello! How can I help you?"
    assert all(entry["logprob"] <= 0 for entry in entries)
    streamed = [
        e for c in reference("chat, logprobs, streamed") for e in (c["choices"][0]["logprobs"] or {}).get("content", [])
    ]
    assert streamed == entries


@pytest.mark.backend("torch")
def test_the_answers_to_responses_are_right(reference: Any) -> None:
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
    with Served("llama_cpp=pocket.gguf", pocket, "--log-contents", "--builtin-tools=browser,python") as server:
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
