"""Tool calls: what real engines answer, and that each kind of wrong answer is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import END

from gptoss_adapters.backends import open_backend
from gptoss_adapters.backends.prompt_texts import text_ids
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.errors import NotComparable
from gptoss_adapters.parity.report.schema import FAIL, LOOK, PASS, SKIPPED, ToolCalls
from gptoss_adapters.parity.text.corpus import WEATHER, questions
from gptoss_adapters.parity.text.tool_calls import check_tool_calls, chunkings, streams_alike

ANSWER = (
    "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city":"Paris","unit":"C"}<|call|>'
)


def ids(text: str) -> list[int]:
    return text_ids(text, load_vocabulary())


def refuse(*_: object) -> Any:
    raise NotComparable("no chat")


def judged(checkpoint: Checkpoint, answer: str, lead: float = 5.0, chat: Callable[..., Any] = refuse) -> ToolCalls:
    """Every request is answered with ANSWER by the reference and with `answer` by the target."""
    fake: Any = SimpleNamespace(generate=lambda prompt, max_tokens: SimpleNamespace(ids=ids(answer)), chat=chat)
    return check_tool_calls(checkpoint, fake, lambda prompt: (ids(ANSWER), [lead] * len(ids(ANSWER))))


@pytest.fixture(scope="module")
def checkpoint(pocket: Path) -> Checkpoint:
    return open_checkpoint(pocket)


def test_equal_answers_pass(checkpoint: Checkpoint) -> None:
    calls = judged(checkpoint, ANSWER)
    assert calls.verdict == PASS and len(calls.cases) == len(questions())
    assert all(case.round_trip_equal and case.stream_equal and case.server_equal is None for case in calls.cases)


def test_key_order_and_spacing_are_not_differences(checkpoint: Checkpoint) -> None:
    assert (
        judged(checkpoint, ANSWER.replace('{"city":"Paris","unit":"C"}', '{ "unit": "C", "city": "Paris" }')).verdict
        == PASS
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("get_weather", "get_time"), "name_equal"),
        (("Paris", "Rome"), "arguments_equal"),
        (("analysis", "final"), "channel_equal"),
        (("functions.get_weather", "get_weather"), "recipient_equal"),
        ((" <|constrain|>json", " json"), "content_type_equal"),
    ],
)
def test_each_difference_is_seen(checkpoint: Checkpoint, change: tuple[str, str], field: str) -> None:
    calls = judged(checkpoint, ANSWER.replace(*change))
    assert calls.verdict == FAIL and all(getattr(case, field) is False for case in calls.cases)
    assert "led by 5.00 nats" in calls.cases[0].detail
    close = judged(checkpoint, ANSWER.replace(*change), lead=0.2)
    assert close.verdict == LOOK  # the reference was not sure itself


def test_a_server_that_parses_otherwise_is_shown(checkpoint: Checkpoint) -> None:
    def chat(request: Any) -> Any:
        call = {"function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
        return {"message": {"content": None, "tool_calls": [call]}, "usage": {}}

    calls = judged(checkpoint, ANSWER, chat=chat)
    assert calls.verdict == LOOK and "Rome" in calls.cases[0].detail and "own chat endpoint differ" in calls.detail


def test_a_model_that_speaks_no_harmony_is_not_compared(checkpoint: Checkpoint) -> None:
    fake: Any = SimpleNamespace()
    assert check_tool_calls(checkpoint, fake, lambda prompt: ([1, 2, 3], [1.0] * 3)).verdict == SKIPPED


def test_streams(checkpoint: Checkpoint) -> None:
    got = ids(ANSWER)
    assert len(list(chunkings(got))) > len(got) + 8
    assert (
        streams_alike(got, [WEATHER])
        and streams_alike([*got[:-1], END], None)
        and streams_alike(ids("<|channel|>final<|message|>né 日本"), None)
    )


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("llama_cpp", "llama_server")]
)
def test_pocket_calls_the_same_tools_on_llama_cpp(engine: str, checkpoint: Checkpoint, pocket_gguf: Path) -> None:
    with open_backend(engine, pocket_gguf, n_ctx=1024) as backend:
        calls = check_tool_calls(checkpoint, backend)
    assert calls.verdict == PASS and sum("get_weather" in case.got for case in calls.cases) >= 2
    assert {case.server_equal for case in calls.cases} == ({True} if engine == "llama_server" else {None})
