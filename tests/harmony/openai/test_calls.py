"""Calls that come back from a client: as the model wrote them, and each with its own result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gptoss_harmony import LayoutError, Message, parse
from gptoss_harmony.openai import chat_completions, responses
from gptoss_harmony.openai.calls import CallLedger, WrittenCalls, write_canonical
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.tool_calls import respell_call
from gptoss_harmony.rendering.renderer import render
from helpers.tool_answers import to_ids

USER = {"role": "user", "content": "x"}
WRITTEN = '{"city": "Paris",  "days":2}'
FORMS = [
    f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{WRITTEN}<|call|>",
    f" to=functions.f<|channel|>commentary json<|message|>{WRITTEN}<|call|>",
    f"<|channel|>analysis to=functions.f code<|message|>{WRITTEN}<|call|>",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("respelt", [WRITTEN, '{"days":2,"city":"Paris"}', json.dumps(json.loads(WRITTEN), indent=1)])
def test_a_call_is_given_back_as_the_model_wrote_it(form: str, respelt: str) -> None:
    calls = WrittenCalls()
    calls.remember(*parse(to_ids(form)))
    again = calls.restore(Message.assistant(respelt, "commentary", "functions.f", "<|constrain|>json"))
    assert render([again], mode="plain", drop="none", headers="as_parsed") == to_ids("<|start|>assistant" + form)


def test_other_calls_stay_as_they_are() -> None:
    calls = WrittenCalls(limit=1)
    calls.remember(*parse(to_ids(FORMS[0])))
    others = [
        Message.assistant(WRITTEN.replace("2", "3"), "commentary", "functions.f"),
        Message.assistant(WRITTEN, "commentary", "functions.g"),
        Message.assistant(WRITTEN, "final"),
        Message.user(WRITTEN),
    ]
    assert [calls.restore(message) is message for message in others] == [True] * 4
    calls.remember(*parse(to_ids(FORMS[0].replace(".f", ".g"))))
    first = Message.assistant(WRITTEN, "commentary", "functions.f")
    assert calls.restore(first) is first  # one is remembered
    calls.remember(*parse(to_ids("<|channel|>commentary to=functions.h<|message|>{<|call|>")))
    assert calls.restore(others[1]) is not others[1]  # what needed a repair was not


def test_of_two_spellings_the_id_says_which() -> None:
    calls = WrittenCalls()
    spellings = ['{"a":1,"b":2}', '{"b": 2, "a": 1}']
    for i, spelling in enumerate(spellings):
        message = parse(to_ids(f"<|channel|>commentary to=functions.f<|message|>{spelling}<|call|>"))[0]
        calls.remember(message, f"call_{i}")
    repeated = Message.assistant(spellings[0], "commentary", "functions.f")
    assert [calls.restore(repeated, ident).text for ident in ("call_0", "call_1", "unknown", "")] == [
        *spellings,
        spellings[1],
        spellings[1],
    ]
    changed = Message.assistant('{"a":2,"b":2}', "commentary", "functions.f")
    assert calls.restore(changed, "call_0") is changed
    other = Message.assistant(spellings[0], "commentary", "functions.g")
    assert calls.restore(other, "call_0") is other


@pytest.mark.parametrize(("written", "respelt"), [("12345678901234567891", "12345678901234567000"), ("1e3", "1000")])
def test_numbers_as_javascript_writes_them_are_the_same_call(written: str, respelt: str) -> None:
    calls = WrittenCalls()
    written = f'{{"n": {written}}}'
    calls.remember(parse(to_ids(f"<|channel|>commentary to=functions.f<|message|>{written}<|call|>"))[0], "c")
    back = Message.assistant(f'{{"n":{respelt}}}', "commentary", "functions.f")
    assert [calls.restore(back, ident).text for ident in ("c", "")] == [written] * 2


def test_canonical() -> None:
    assert write_canonical('{"b": [1, {"ü": 2}], "a": 1.0}') == '{"a":1,"b":[1,{"ü":2}]}'
    assert write_canonical("print(1)") == "print(1)"


def chat_results(calls: list[tuple[str, str]], results: list[dict[str, str]]) -> list[str | None]:
    made = [{"id": i, "type": "function", "function": {"name": name, "arguments": "{}"}} for i, name in calls]
    history: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": made}]
    history += [{"role": "tool", "content": "r", **result} for result in results]
    return [m.name for m in chat_completions.to_conversation({"messages": history}) if m.role == "tool"]


@pytest.mark.parametrize("call_id", ["", "same"])
def test_results_of_calls_with_one_id_are_told_apart(call_id: str) -> None:
    calls = [(call_id, "a"), (call_id, "b")]
    named = [{"tool_call_id": call_id, "name": name} for name in "ba"]
    assert chat_results(calls, named) == ["functions.b", "functions.a"]
    assert chat_results(calls, [{"tool_call_id": call_id}] * 3) == ["functions.a", "functions.b", "functions.b"]
    assert chat_results([("1", "a"), ("2", "b")], [{"tool_call_id": "2", "name": "a"}]) == ["functions.b"]
    items: list[dict[str, Any]] = [USER]
    items += [{"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}"} for name in "ab"]
    items += [{"type": "function_call_output", "call_id": call_id, "output": "r", "name": name} for name in "ba"]
    found = [m.name for m in responses.to_conversation({"input": items}) if m.role == "tool"]
    assert found == ["functions.b", "functions.a"]


def test_results_without_an_id_find_their_call() -> None:
    ledger = CallLedger()
    ledger.add("1", "functions.a")
    ledger.add("2", "functions.b")
    assert ledger.take("") is None  # which of them?
    assert ledger.take("", "functions.b") == "functions.b"
    assert ledger.take("") == "functions.a"  # the only one without a result
    assert ledger.take("") is None and ledger.take("3") is None and ledger.take("1") == "functions.a"


def test_results_that_name_the_item_of_their_call() -> None:
    call = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_1", "action": {"command": ["ls"]}}
    for ident in ({"id": "lsh_1"}, {"id": "call_1"}, {"call_id": "call_1"}, {"id": "lsho_9", "call_id": "lsh_1"}):
        output = {"type": "local_shell_call_output", "output": "x", **ident}
        last = responses.to_conversation({"input": [USER, call, output]}).messages[-1]
        assert last.name == "functions.local_shell"
    with pytest.raises(LayoutError):
        responses.to_conversation({"input": [USER, call, output | {"call_id": "lsh_2"}]})
    foreign = {"type": "function_call_output", "call_id": "gone", "name": "f", "output": "x"}
    assert responses.to_conversation({"input": [USER, foreign]}).messages[-1].name == "functions.f"


def test_of_two_spellings_of_a_call_each_comes_back_by_its_id() -> None:
    tight = WRITTEN.replace(" ", "")
    calls = WrittenCalls()
    for ident, text in (("call_1", WRITTEN), ("call_2", tight)):
        calls.remember(parse(to_ids(FORMS[0].replace(WRITTEN, text)))[0], ident)
    again = Message.assistant('{"days":2.0,"city":"Paris"}', "commentary", "functions.f")
    assert [calls.restore(again, ident).text for ident in ("call_1", "call_2", "", "call_3")] == [WRITTEN, *[tight] * 3]
    changed = Message.assistant('{"days":3,"city":"Paris"}', "commentary", "functions.f")
    assert calls.restore(changed, "call_1") is changed  # a client that asked its user first


def test_a_typed_call_comes_back_as_written() -> None:
    text = '{"timeout_ms": 5, "commands": ["ls"], "odd": 1}'
    ids = to_ids(f"<|channel|>commentary to=functions.shell <|constrain|>json<|message|>{text}<|call|>")
    tools = [{"type": "shell"}]
    stream = ResponseStream(responses.to_response({"tools": tools}, "m", 1), tools)
    stream.feed(ids)
    stream.finish()
    calls = WrittenCalls()
    call = stream.calls[0]
    assert call.message and call.declared
    calls.remember(call.message, call.call_id, respell_call(call.declared, call.text))
    output = {"type": "shell_call_output", "call_id": call.call_id, "output": []}
    request = {"input": [USER, *stream.response["output"], output], "tools": tools}
    assert responses.to_conversation(request, restore=calls.restore).messages[-2].text == text
