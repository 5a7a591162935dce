"""The `ollama` backend and chats through the `ollama` client, against a server on loopback that speaks Ollama's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from gptoss_harmony import Message, load_vocabulary, render
from gptoss_harmony.openai.chat_completions import to_conversation
from gptoss_harmony.tokens import CALL, RETURN
from helpers.fake_ollama import FakeOllama, fake_ollama

from gptoss_adapters.backends import Backend, open_backend
from gptoss_adapters.backends.ollama import chat_arguments, chat_message
from gptoss_adapters.backends.prompt_texts import prompt_text, readable_length, text_ids
from gptoss_adapters.errors import BadInput, NotComparable, UsageError

VOCABULARY = load_vocabulary()
PROMPT = render(to_conversation({"messages": [{"role": "user", "content": "What is 2 + 2?"}]}), drop="none")
ANSWER = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>日本 4."
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    with fake_ollama() as server:
        server.models["tune"] = {"model": "tune"}
        yield server


@pytest.fixture
def backend(server: FakeOllama) -> Iterator[Backend]:
    with open_backend("ollama=tune", host=server.url, n_ctx=512) as backend:
        yield backend


def part(text: str, done: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"model": "tune", "response": text, "done": done is not None, "done_reason": done, "logprobs": logprobs}


def test_about(backend: Backend) -> None:
    assert (backend.info.engine, backend.info.vocab_size, backend.info.n_ctx) == ("ollama", 201088, 512)
    assert backend.info.capabilities.output == "top_k" and set(backend.info.stop_ids) == {199999, RETURN, CALL}
    with pytest.raises(NotComparable, match="gives top_k"):
        backend.logits([1])


def test_generation_by_text(server: FakeOllama, backend: Backend) -> None:
    server.answers.append([part(ANSWER), part("", "stop")])
    answer = backend.generate(PROMPT, max_tokens=50, temperature=0.5, top_k=3, seed=7)
    assert answer.ids == [*text_ids(ANSWER, VOCABULARY), RETURN] and answer.reason == "stop"
    asked = server.asked[-1][2]
    assert asked["raw"] is True and asked["prompt"] == VOCABULARY.decode(PROMPT)
    assert asked["options"] == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 3,
        "min_p": 0.0,
        "seed": 7,
        "num_predict": 50,
        "num_ctx": 512,
    }


def chat_answer(**more: Any) -> list[dict[str, Any]]:
    return [{"model": "tune", "message": {"role": "assistant", "content": "4"}, "done": True, **more}]


def test_every_call_keeps_to_one_context(server: FakeOllama, backend: Backend) -> None:
    """Another num_ctx, or none after one, would make Ollama load the model anew."""
    server.answers += [[part("x", "stop")], chat_answer(), [part("x", "stop")]]
    backend.generate(PROMPT)
    backend.chat({"messages": [{"role": "user", "content": "2+2?"}]})
    backend.generate(PROMPT)
    asked = [body["options"]["num_ctx"] for _, path, body in server.asked if path in ("/api/generate", "/api/chat")]
    assert asked == [512, 512, 512]


def test_the_modelfile_says_the_context_unless_asked(server: FakeOllama) -> None:
    server.models["tune"] = {"model": "tune", "parameters": {"temperature": 1.0, "num_ctx": 8192}}
    server.answers += [[part("x", "stop")], chat_answer()]
    with open_backend("ollama=tune", host=server.url) as backend:
        assert backend.info.n_ctx == 8192
        backend.generate(PROMPT)
        backend.chat({"messages": [{"role": "user", "content": "2+2?"}], "max_tokens": 5})
    assert all("num_ctx" not in body["options"] for _, path, body in server.asked if path != "/api/show" and body)


def test_a_format_comes_with_a_level() -> None:
    """Without thinking Ollama drops the format."""
    request = {"model": "m", "messages": [], "response_format": {"type": "json_object"}}
    thinks = {e: chat_arguments(request | {"reasoning_effort": e})["think"] for e in (None, "none", "low", "high")}
    assert thinks == {None: "medium", "none": "low", "low": "low", "high": "high"}


def test_a_call_ends_in_its_own_token(server: FakeOllama, backend: Backend) -> None:
    text = " to=functions.weather<|channel|>commentary <|constrain|>json<|message|>{}"
    server.answers.append([part(text, "stop")])
    assert backend.generate(PROMPT).ids == [*text_ids(text, VOCABULARY), CALL]


def test_the_length_limit(server: FakeOllama, backend: Backend) -> None:
    server.answers.append([part("one two", "length")])
    answer = backend.generate(PROMPT, max_tokens=2)
    assert answer.ids == VOCABULARY.encode("one two") and answer.reason == "length"


def test_logprobs_give_the_tokens(server: FakeOllama, backend: Backend) -> None:
    pieces = [("<|channel|>", -0.5), ("fin", -1.0), ("al", -0.25)]
    entries = [
        {"token": t, "logprob": p, "top_logprobs": [{"token": t, "logprob": p}, {"token": "x", "logprob": -3.0}]}
        for t, p in pieces
    ]
    server.answers.append([part("<|channel|>final", "length", entries)])
    answer = backend.generate(PROMPT, max_tokens=3, logprobs=2)
    assert [(VOCABULARY.decode([t.id]), t.logprob) for t in answer.tokens] == pieces
    assert [VOCABULARY.decode([i]) for i, _ in answer.tokens[1].top] == ["fin", "x"]


def test_without_logprobs_they_cannot_be_asked_for(server: FakeOllama, backend: Backend) -> None:
    server.answers.append([part("x", "stop")])
    with pytest.raises(NotComparable, match="gives no logprobs"):
        backend.generate(PROMPT, logprobs=1)


def test_a_character_in_several_tokens(server: FakeOllama, backend: Backend) -> None:
    server.answers.append(
        [part("🦄", "length", [{"token": "\ufffd", "logprob": -1.0}, {"token": "\ufffd", "logprob": -1.0}])]
    )
    assert backend.generate(PROMPT, max_tokens=9).ids == VOCABULARY.encode("🦄")


def test_ids_that_text_cannot_carry_are_refused(backend: Backend) -> None:
    injected = render([Message.user("<|end|>")])
    with pytest.raises(NotComparable, match="would not come back"):
        backend.generate(injected)
    assert prompt_text(PROMPT, VOCABULARY) == VOCABULARY.decode(PROMPT)


def alternatives(count: int, odd: int = 0) -> list[dict[str, Any]]:
    best = [{"token": VOCABULARY.decode([1000 + i]), "logprob": -1.0 - i} for i in range(count)]
    best[1:1] = [{"token": "\ufffd", "logprob": -1.5}] * odd
    return [part("x", "length", [{**best[0], "top_logprobs": best}])]


def test_log_probabilities_of_a_prompts_positions(server: FakeOllama, backend: Backend) -> None:
    server.answers += [alternatives(17, odd=3), alternatives(20)]
    ids, logprobs = backend.top_logprobs(PROMPT[:3], 10, start=1)
    assert ids.tolist() == [list(range(1000, 1010))] * 2 and logprobs[1].tolist() == [-1.0 - i for i in range(10)]
    asked = [body for _, path, body in server.asked if path == "/api/generate"]
    assert [body["prompt"] for body in asked] == [VOCABULARY.decode(PROMPT[:end]) for end in (2, 3)]
    assert all((b["raw"], b["top_logprobs"], b["options"]["num_predict"]) == (True, 20, 1) for b in asked)
    server.answers.append(alternatives(9))
    with pytest.raises(NotComparable, match="too few"):
        backend.top_logprobs(PROMPT[:1], 10)
    server.answers.append([part("x", "length")])
    with pytest.raises(NotComparable, match="gives no logprobs"):
        backend.top_logprobs(PROMPT[:1], 10)
    with pytest.raises(UsageError, match="argument k"):
        backend.top_logprobs(PROMPT, 11)
    with pytest.raises(NotComparable, match="of a prompt's tokens"):
        backend.prompt_logprobs(PROMPT)


def test_how_far_a_prompt_can_be_asked_about() -> None:
    unicorn = VOCABULARY.encode("🦄")
    assert readable_length(PROMPT) == len(PROMPT) and len(unicorn) > 1
    assert readable_length([*PROMPT, *unicorn]) == len(PROMPT)
    assert readable_length(VOCABULARY.encode("a") + VOCABULARY.encode("b")) == 1  # "ab" is one token


def test_cancel(server: FakeOllama, backend: Backend) -> None:
    server.answers.append([part("a"), part(" b"), part(" c", "stop")])
    stream = backend.stream(PROMPT)
    assert next(stream).id == VOCABULARY.encode("a")[0]
    stream.close()
    server.answers.append([part("x", "stop")])
    assert backend.generate(PROMPT).ids == [*VOCABULARY.encode("x"), RETURN]


def test_what_goes_wrong(server: FakeOllama) -> None:
    with pytest.raises(BadInput, match="Ollama has no such model: model 'nothing' not found"):
        open_backend("ollama=nothing", host=server.url)
    with pytest.raises(BadInput, match="no Ollama server answers"):
        open_backend("ollama=tune", host="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="needs a model's name"):
        open_backend("ollama")


# Chats ----------------------------------------------------------------------------------------------------------------

HISTORY = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I call.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "20 C"},
]


def test_a_chat_request() -> None:
    request = {
        "model": "tune",
        "messages": HISTORY,
        "tools": [WEATHER],
        "reasoning_effort": "high",
        "temperature": 0.0,
        "max_tokens": 9,
        "logprobs": True,
    }
    assert chat_arguments(request) == {
        "model": "tune",
        "tools": [WEATHER],
        "think": "high",
        "options": {"temperature": 0.0, "num_predict": 9},
        "logprobs": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "I call.",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
            },
            {"role": "tool", "content": "20 C", "tool_name": "weather"},
        ],
    }


@pytest.mark.parametrize(
    "effort,think",
    [
        (None, None),
        ("none", False),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("xhigh", "high"),
        ("max", "max"),
    ],
)
def test_think_levels_reach_the_server(server: FakeOllama, effort: str | None, think: Any) -> None:
    server.answers.append(
        [
            {
                "model": "tune",
                "message": {"role": "assistant", "content": "4", "thinking": "2+2"},
                "done": True,
                "done_reason": "stop",
            }
        ]
    )
    request = {"model": "tune", "messages": [{"role": "user", "content": "2+2?"}], "reasoning_effort": effort}
    answer = ollama.Client(server.url).chat(**chat_arguments(request))
    assert server.asked[-1][2].get("think") == think
    assert chat_message(answer) == {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "2+2",
        "finish_reason": "stop",
    }


def test_tools_and_format_reach_the_server(server: FakeOllama) -> None:
    message = {
        "role": "assistant",
        "content": "",
        "thinking": "t",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
    }
    server.answers.append([{"model": "tune", "message": message, "done": True, "done_reason": "stop"}])
    schema = {"type": "object", "properties": {"c": {"type": "integer"}}}
    request = {
        "model": "tune",
        "messages": HISTORY,
        "tools": [WEATHER],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    answer = ollama.Client(server.url).chat(**chat_arguments(request))
    asked = server.asked[-1][2]
    assert (
        asked["format"] == schema
        and asked["tools"][0]["function"]["name"] == "weather"
        and asked["messages"][3]["tool_name"] == "weather"
    )
    said = chat_message(answer)
    assert said["finish_reason"] == "tool_calls" and said["content"] is None
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "Zürich"}
    assert (
        chat_arguments({**request, "tool_choice": "none", "response_format": {"type": "json_object"}})["format"]
        == "json"
    )
    assert "tools" not in chat_arguments({**request, "tool_choice": "none"})


def test_an_unknown_model_is_a_404(server: FakeOllama) -> None:
    with pytest.raises(ollama.ResponseError) as error:
        ollama.Client(server.url).chat(**chat_arguments({"model": "nothing", "messages": []}))
    assert error.value.status_code == 404
