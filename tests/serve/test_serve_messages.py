"""/v1/messages as its clients use it: over pocket and scripted answers, whole and streamed, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from gptoss_harmony import load_vocabulary
from helpers.serve_fakes import KEY, Served
from helpers.serve_inside import Said
from helpers.serve_inside import post as post_inside
from helpers.tool_answers import to_ids

from gptoss_adapters.serve.app import create_app
from gptoss_adapters.serve.settings import Settings

PATH = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "get_weather", "description": "Get the weather for a city.", "input_schema": SCHEMA}]
USER = {"role": "user", "content": "What is the weather in Paris?"}
ASK: dict[str, Any] = {"model": "pocket", "max_tokens": 200, "messages": [USER], "temperature": 0}
CALLING = (
    "<|channel|>analysis<|message|>Look it up.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.get_weather<|message|>{"city": "Paris"}<|call|>'
)
ANSWERING = "<|channel|>final<|message|>It is sunny.<|return|>"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served("helpers.serve_fakes:Echo=x", tmp_path_factory.mktemp("echo"), "--model", "pocket", key=KEY) as server:
        yield server


def scripted(folder: Path, *outputs: str) -> Served:
    script = folder / "script.jsonl"
    script.write_text("".join(f"{json.dumps(to_ids(text))}\n" for text in outputs))
    return Served(f"helpers.serve_fakes:Scripted={script}", folder, "--model", "pocket")


def post(server: Served, body: dict[str, Any], **headers: str) -> httpx.Response:
    return server.http.post(PATH, json=body, headers={"anthropic-version": "2023-06-01", **headers})


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.backend("llama_server")
def test_a_tool_loop_over_pocket(pocket: Path) -> None:
    with Served("llama_server=pocket.gguf", pocket, "--model", "pocket") as server:
        asked = ASK | {"tools": TOOLS}
        first = post(server, asked).json()
        call = first["content"][-1]
        assert (call["name"], call["input"], first["stop_reason"]) == ("get_weather", {"city": "Paris"}, "tool_use")
        counted = server.http.post(f"{PATH}/count_tokens", json={"messages": [USER], "tools": TOOLS}).json()
        usage = first["usage"]
        assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": '{"temperature": 21}'}
        history = [USER, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
        second = post(server, asked | {"messages": history}).json()
        assert second["stop_reason"] == "end_turn" and second["content"][-1]["text"]
        assert second["usage"]["cache_read_input_tokens"] > usage["input_tokens"] // 2


def test_the_sdk_over_scripted_answers(tmp_path: Path) -> None:
    """With the `anthropic` package: its helpers add up the events."""
    with scripted(tmp_path, CALLING, CALLING, ANSWERING) as server:
        client = anthropic.Anthropic(base_url=server.http.base_url.__str__(), api_key="x", max_retries=0)
        whole = client.messages.create(model="pocket", max_tokens=100, messages=[USER], tools=TOOLS)
        with client.messages.stream(model="pocket", max_tokens=100, messages=[USER], tools=TOOLS) as stream:
            streamed = stream.get_final_message()
        shown = [[block.to_dict() | {"id": ""} for block in message.content] for message in (whole, streamed)]
        assert shown[0] == shown[1] and whole.stop_reason == streamed.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": whole.content[-1].id, "content": "sunny"}
        messages = [USER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        last = client.messages.create(model="pocket", max_tokens=100, messages=messages, tools=TOOLS)
        assert last.content[0].text == "It is sunny."
        assert client.messages.count_tokens(model="pocket", messages=[USER]).input_tokens > 10
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="pocket", max_tokens=0, messages=[USER])


def test_the_order_of_events(tmp_path: Path) -> None:
    with scripted(tmp_path, CALLING) as server:
        events = events_of(post(server, ASK | {"tools": TOOLS, "stream": True}))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[-2:] == ["signature_delta", "input_json_delta"] and set(deltas[:-2]) == {"thinking_delta"}
    start, end = events[0]["message"], events[-2]
    assert start["usage"]["input_tokens"] > 0 and start["content"] == [] and start["stop_reason"] is None
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None} and end["usage"]["output_tokens"] > 10


def test_what_is_not_done_is_said(echo: Served) -> None:
    extra = {"container": "c", "metadata": {"user_id": "u"}, "tools": [{"type": "web_search_20250305", "name": "w"}]}
    extra |= {"output_config": {"effort": "max"}}
    for body in (ASK | extra, ASK | extra | {"stream": True}):
        answer = post(echo, body)
        found = events_of(answer)[-2] if body.get("stream") else answer.json()
        assert len(found["warnings"]) == 3
        for word, warning in zip(("container", "output_config.effort", "web_search"), found["warnings"], strict=True):
            assert word in warning


def test_a_call_is_replayed_as_the_model_wrote_it() -> None:
    """Two spellings of one call, which a client repeats in one spelling of its own: the ids say which is which."""
    written = ['{"city":  "Paris", "days": 2}', '{"days":2,"city":"Paris"}']
    head = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    said: Any = Said(*[f"{head}{text}<|call|>" for text in written], ANSWERING)
    body = {"max_tokens": 200, "messages": [USER], "tools": TOOLS}

    async def ask_twice_and_repeat() -> None:
        app = create_app([said], Settings(model="m"))
        answers = [json.loads((await post_inside(app, PATH, body))[1]) for _ in written]
        calls = [block for answer in answers for block in answer["content"]]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"} for call in calls]
        history = [USER, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
        status, _ = await post_inside(app, PATH, body | {"messages": history})
        assert status == 200 and calls[0]["input"] == calls[1]["input"]
        app.service.scheduler.close()

    asyncio.run(ask_twice_and_repeat())
    prompt = load_vocabulary().decode(said.prompts[-1])
    assert [prompt.count(text) for text in written] == [1, 1]
    assert prompt.index(written[0]) < prompt.index(written[1])


def test_names_are_unique(echo: Served) -> None:
    answer = post(echo, ASK | {"tools": [*TOOLS, *TOOLS]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "tools: Tool names must be unique.")


def test_stop_sequences(echo: Served) -> None:
    answer = post(echo, ASK | {"stop_sequences": ["weather"]}).json()
    assert answer["content"] == [{"type": "text", "text": "What is the "}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "weather")
    assert post(echo, ASK | {"max_tokens": 5}).json()["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({key: ASK[key] for key in ASK if key != "max_tokens"}, "max_tokens: Field required"),
        (ASK | {"max_tokens": 0}, "max_tokens"),
        (ASK | {"temperature": 1.5}, "temperature"),
        (ASK | {"messages": []}, "messages"),
        (ASK | {"messages": [{"role": "user", "content": [{"type": "holo"}]}]}, "messages.0.content.0: Input tag"),
        (ASK | {"messages": [USER, {"role": "assistant", "content": "It"}]}, "prefill"),
        (
            ASK
            | {
                "messages": [
                    USER,
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "abcd"}]},
                    USER,
                ]
            },
            "messages.1.content.0: Invalid `signature` in `thinking` block",
        ),
        (ASK | {"messages": [{"role": "user", "content": "word " * 200_000}]}, "prompt is too long"),
    ],
)
def test_refusals(echo: Served, body: dict[str, Any], says: str) -> None:
    answer = post(echo, body)
    error = answer.json()
    assert answer.status_code == 400
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert says in error["error"]["message"]
    assert error["request_id"] == answer.headers["request-id"]


def test_other_errors(echo: Served) -> None:
    url = str(echo.http.base_url) + PATH
    assert httpx.post(url, json=ASK).json()["error"]["type"] == "authentication_error"
    assert httpx.post(url, json=ASK, headers={"x-api-key": "wrong"}).status_code == 401
    assert httpx.post(url, json=ASK, headers={"x-api-key": KEY}).status_code == 200
    missing = post(echo, ASK | {"model": "claude"})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert post(echo, ASK, **{"anthropic-version": "now"}).status_code == 400
    assert echo.http.get(PATH).json()["type"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_fails(tmp_path: Path, stream: bool) -> None:
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "pocket", "--set", "trouble=fail") as server:
        answer = post(server, ASK | {"stream": stream})
        error = events_of(answer)[-1] if stream else answer.json()
    assert error["type"] == "error" and error["error"]["type"] == "api_error"
