"""`n` choices in Chat, whole and streamed; penalties and biases through the server, on real engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.outputs import ids_of
from helpers.serve_fakes import Served
from openai import BadRequestError

CHAT = "/v1/chat/completions"
SAID = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}.<|return|>"
LETTERS = "ABC"


def ask(**extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}]} | extra


@pytest.fixture(scope="module", params=[1, 2])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An engine that says A, B, C, A, ... in turn, in one or two slots."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "outputs").write_text("".join(json.dumps(ids_of(SAID.format(x))) + "\n" for x in LETTERS))
    options = ("--model", "m", "--slots", str(request.param), "--queue", "0")
    with Served("helpers.serve_fakes:Scripted=outputs", folder, *options) as running:
        yield running


def test_choices_whole(server: Served) -> None:
    one = server.client.chat.completions.create(model="m", messages=ask()["messages"])
    answer = server.client.chat.completions.create(model="m", messages=ask()["messages"], n=5, logprobs=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4]
    assert {choice.message.content for choice in answer.choices} == {"A.", "B.", "C."}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    for choice in answer.choices:
        assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    assert one.usage and answer.usage
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens == 5 * one.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5 * (
        one.usage.completion_tokens_details.reasoning_tokens
    )
    server.until(lambda: server.lines()[-1].get("completion_tokens") == answer.usage.completion_tokens)


def test_choices_streamed(server: Served) -> None:
    texts, reasons, usages, idents = {}, {}, [], set()
    options = {"include_usage": True}
    for chunk in server.client.chat.completions.create(
        model="m", messages=ask()["messages"], n=3, stream=True, stream_options=options
    ):
        idents.add(chunk.id)
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert sorted(texts) == [0, 1, 2] and len(idents) == 1 and len(usages) == 1
    assert set(texts.values()) <= {"A.", "B.", "C."} and reasons == dict.fromkeys(range(3), "stop")
    text = server.http.post(CHAT, json=ask(n=2, stream=True)).text
    assert text.endswith("data: [DONE]\n\n") and text.count('"finish_reason":"stop"') == 2 and '"usage"' not in text


def test_what_is_not_done_is_said_once(server: Served) -> None:
    extra = {"n": 3, "presence_penalty": 1.5, "x": 1}
    answer = server.http.post(CHAT, json=ask(**extra)).json()
    assert [text.split(":")[0] for text in answer["warnings"]] == ["x", "presence_penalty"]
    streamed = server.http.post(CHAT, json=ask(stream=True, **extra)).text
    assert streamed.count('"warnings"') == 1


def test_too_many_choices(server: Served) -> None:
    with pytest.raises(BadRequestError, match="less than or equal to 16") as caught:
        server.client.chat.completions.create(model="m", messages=ask()["messages"], n=17)
    assert caught.value.param == "n"


def test_an_engine_that_fails_between_two_choices(tmp_path: Path) -> None:
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", "--set", 'trouble="fail"') as server:
        assert server.http.post(CHAT, json=ask(n=2)).status_code == 503
        text = server.http.post(CHAT, json=ask(n=2, stream=True)).text
        assert '"code":"backend_failed"' in text and "Traceback" not in text
        assert server.health()["running"] == 0


ENGINES = [
    pytest.param("torch=pocket", marks=pytest.mark.backend("torch")),
    pytest.param("llama_cpp=pocket.gguf", marks=pytest.mark.backend("llama_cpp")),
    pytest.param("llama_server=pocket.gguf", marks=pytest.mark.backend("llama_server")),
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, pocket: Path) -> Iterator[Served]:
    with Served(request.param, pocket, "--model", "m", "--strict-arguments", "--log-contents") as running:
        yield running


def written(server: Served, **extra: Any) -> str:
    """All that the engine wrote, headers included."""
    answer = server.http.post(CHAT, json=ask(max_tokens=16, temperature=0, seed=1) | extra)
    assert answer.status_code == 200, answer.text
    ident = answer.headers["x-request-id"]
    server.until(lambda: any(line.get("request") == ident for line in server.lines()))
    return str(next(line["completion"] for line in server.lines() if line.get("request") == ident))


def test_penalties_and_biases_reach_the_engine(engine: Served) -> None:
    plain = written(engine)
    assert plain == written(engine, presence_penalty=0, frequency_penalty=0.0, repetition_penalty=1.0, logit_bias={})
    assert written(engine, repetition_penalty=5.0) == written(engine, repeat_penalty=5.0) != plain
    assert "<|channel|>" in plain and "<|channel|>" not in written(engine, logit_bias={"200005": -100})
    letters = {str(ids_of("x")[0]): 100, str(ids_of("y")[0]): 90}
    assert written(engine, logit_bias=letters) == 16 * "x"
    for name in ("presence_penalty", "frequency_penalty"):
        assert written(engine, logit_bias=letters | {str(ids_of("y")[0]): 99}, **{name: 2.0}).count("y") > 0
    assert set(written(engine, logit_bias=letters, presence_penalty=-2, frequency_penalty=-2)) == {"x"}


def test_choices_have_seeds_of_their_own(engine: Served) -> None:
    body = ask(n=3, max_tokens=24, temperature=2.0, seed=5)
    first, second = (engine.http.post(CHAT, json=body).json()["choices"] for _ in range(2))
    assert [choice["message"] for choice in first] == [choice["message"] for choice in second]
    single = [engine.http.post(CHAT, json=body | {"n": 1, "seed": 5 + i}).json()["choices"][0] for i in range(3)]
    assert [choice["message"] for choice in first] == [choice["message"] for choice in single]
    assert len({json.dumps(choice["message"]) for choice in first}) > 1


@pytest.mark.parametrize(
    ("bias", "words"), [({"x": 1}, "ids of tokens"), ({"300000": 1}, "0..201087"), ({"5": 101}, "less than or equal")]
)
def test_a_bias_of_no_token(engine: Served, bias: dict[str, float], words: str) -> None:
    answer = engine.http.post(CHAT, json=ask(logit_bias=bias))
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"].startswith("logit_bias")


def test_a_json_object_with_a_schema_and_penalties_beside_it(engine: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    body = ask(response_format={"type": "json_object", "schema": schema}, max_tokens=200, temperature=0)
    name = engine.health()["engine"]
    answer = engine.http.post(CHAT, json=body).json()
    if name == "torch":  # it takes no grammar
        assert "does not keep to the schema" in answer["warnings"][0]
    else:
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": 1}
    penalised = engine.http.post(CHAT, json=body | {"presence_penalty": 1})
    assert penalised.status_code == (400 if name == "llama_server" else 200), penalised.text
    if name == "llama_server":
        assert "while a schema or tool_choice holds" in penalised.json()["error"]["message"]


def test_an_input_is_held_to_its_grammar(engine: Served) -> None:
    name = engine.health()["engine"]
    grammars = [
        ("regex", r"[a-c]{3}-\d{2}\n"),
        ("lark", 'start: "a" B~3 "|" | "<"\nB: /[xy]{1,2}/ ","'),
        ("regex", "a(?=b)"),
    ]
    patterns = [r"[a-c]{3}-\d{2}\n", r"a([xy]{1,2},){3}\||<", r"(?s).*"]
    for (syntax, definition), pattern in zip(grammars, patterns, strict=True):
        form = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
        tools = [{"type": "custom", "custom": {"name": "write", "format": form}}]
        answer = engine.http.post(CHAT, json=ask(tools=tools, tool_choice="required", max_tokens=120, seed=1)).json()
        if name == "torch" or definition == "a(?=b)":  # the server is strict
            assert answer["error"]["param"] == "tools[0].format"
            assert ("takes no grammar" if name == "torch" else "look around") in answer["error"]["message"]
        else:
            call = answer["choices"][0]["message"]["tool_calls"][0]
            assert call["type"] == "custom" and re.fullmatch(pattern, call["custom"]["input"]), call


HOLDING = [
    ("torch=pocket", "", True),
    ("torch=pocket", "--no-hold-headers", False),
    ("llama_cpp=pocket.gguf", "", True),
    ("llama_server=pocket.gguf", "", False),
    ("llama_server=pocket.gguf", "--hold-headers", True),
]


@pytest.mark.parametrize(("spec", "option", "held"), HOLDING)
def test_held_headers(pocket: Path, spec: str, option: str, held: bool) -> None:
    """The model is pushed to `search`, which it was not given: only what holds its headers keeps it from that name."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    pushed = {str(ids_of("search")[0]): 100, str(ids_of("get")[0]): -100, str(ids_of("<|message|>")[0]): 60}
    question = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [tool]}
    with Served(spec, pocket, "--model", "m", "--log-contents", *option.split()) as server:
        body = question | {"max_tokens": 24, "temperature": 0, "tool_choice": "auto", "logit_bias": pushed}
        answer = server.http.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
        server.until(lambda: "completion" in server.lines()[-1])
        written = server.lines()[-1]["completion"]
        said = next(line for line in server.lines() if line.get("event") == "hold_headers")
    assert ("search" not in written.partition("<|message|>")[0]) == held == said["on"], written
