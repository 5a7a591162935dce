"""The 20 patterns of malformed output: what each means, which flags it gets, and that no way of feeding changes it."""

from itertools import pairwise
from typing import Any

import pytest
from gptoss_harmony import Parser, parse
from gptoss_harmony.parsing.flags import FLAGS
from helpers.counting import count_calls
from helpers.outputs import fields_of, gold_cases, ids_of
from helpers.stream_checks import check_events, check_nothing_lost, follow

A, C, F = "analysis", "commentary", "final"
JSON = "<|constrain|>json"
TOOLS = ["functions.f", "functions.g", "functions.execute_bash"]

# id of the gold case -> (channel, recipient, content type, content, flags) of each message
DESIRED: dict[str, list[tuple[Any, ...]]] = {
    "bare text": [(None, None, None, "hello world", ["missing_message"])],
    "bare text eos": [(None, None, None, "hello world", ["missing_message"])],
    "text then start": [(None, None, None, "I must refuse", ["missing_message"]), (F, None, None, "no", [])],
    "channel + text no message": [(A, None, None, "We need to think.", ["missing_message"]), (F, None, None, "ok", [])],
    "missing message token, channel given": [
        (A, None, None, "I must refuse", ["missing_message"]),
        (A, None, None, "We must refuse", []),
        (F, None, None, "I'm sorry, but I can't help with that.", []),
    ],
    "missing message token, then a call": [
        (None, None, None, "... Let's use the tool.", ["missing_message"]),
        (C, "functions.get_weather", "json", '{"location": "Tokyo"}', ["undeclared_tool"]),
    ],
    "double channel": [(C, "functions.f", "json", "{}", ["repeated_channel:commentary"])],
    "tool name read with channel glued": [
        (C, "functions.read", "json", "{}", ["repeated_channel:commentary", "undeclared_tool"])
    ],
    "channel final analysis glued": [(F, None, None, "hi", ["repeated_channel:analysisassistant"])],
    "recipient then channel x2": [
        (C, "functions.f", "json", "{}", ["repeated_channel:commentary", "repeated_recipient:assistant"])
    ],
    "double to=": [(C, "functions.f", None, "{}", ["repeated_recipient:functions.f"])],
    "to= twice role+channel": [(C, "functions.f", "json", "{}", ["repeated_recipient:functions.f"])],
    "duplicate recipient, hyphenated name": [
        (C, "functions.web-browsing", JSON, "{}", ["repeated_recipient:functions.web-browsing", "undeclared_tool"])
    ],
    "channel commentary?": [(C, None, None, "hi", ["repaired_channel:commentary?"])],
    "channel ??": [(None, None, None, "hi", ["unknown_channel:??"])],
    "comment channel": [(C, None, None, "hi", ["repaired_channel:comment"])],
    "commentary??? free text": [(C, None, None, "hi", ["extra_header_words:2?"])],
    "dashes before channel": [(C, "functions.f", None, "{}", ["repaired_channel:––commentary"])],
    "empty channel": [(None, None, None, "hi", ["empty_channel"])],
    "missing start between": [(A, None, None, "think", []), (F, None, None, "ok", ["missing_start"])],
    "missing start: channel directly": [(A, None, None, "think", []), (F, None, None, "ok", ["missing_start"])],
    "call, then commentary without start (twice)": [
        (C, "functions.g", JSON, '{"c":1}', []),
        (C, "functions.g", JSON, '{"c":2}', ["missing_start", "repeated_channel:commentary"]),
        (C, None, None, "", ["missing_start", "missing_channel_marker", "missing_end"]),
        (F, None, None, "done", []),
    ],
    "double start": [(A, None, None, "t", []), (F, None, None, "ok", ["repeated_start"])],
    "double role": [(A, None, None, "t", []), (F, None, None, "ok", ["repeated_role:assistant"])],
    "double stop": [(F, None, None, "ok", ["extra_special:<|return|>"])],
    "end then call": [(C, "functions.f", "json", "{}", ["unclosed_call", "extra_special:<|call|>"])],
    "return after return new msg": [(F, None, None, "ok", []), (F, None, None, "again", ["after_return"])],
    "text after return": [
        (F, None, None, "ok", []),
        (None, None, None, " trailing text", ["stray_text", "after_return"]),
    ],
    "stray <|message|> after return": [(F, None, None, "hi", ["extra_special:<|message|>"])],
    "stray text after end": [(F, None, None, "hi", []), (None, None, None, " and more", ["stray_text"])],
    "final constrain json": [(F, None, JSON, '{"a":1}', [])],
    "final constrain adjacent": [(F, None, JSON, '{"a":1}', [])],
    "final json (no constrain)": [(F, None, "json", '{"a":1}', [])],
    "constrain w/o value": [(C, "functions.f", "<|constrain|>", '{"a":1}', [])],
    "constrain space value": [(C, "functions.f", JSON, '{"a":1}', ["repaired_content_type"])],
    "constrain before to": [(C, "functions.f", JSON, "{}", [])],
    "constrain text": [(C, "functions.f", "<|constrain|>", "{}", ["extra_header_words:write: edit file"])],
    "tool name in constrain slot": [(F, "functions.f", None, '{"a":1}', ["tool_in_constrain", "unclosed_call"])],
    "to=functions.x code": [(A, "functions.f", "code", "{}", [])],
    "bare tool name on analysis": [(A, "functions.execute_bash", "code", '{"cmd":"ls"}', ["resolved_recipient"])],
    "missing end before start": [(A, None, None, "think", ["missing_end"]), (F, None, None, "ok", [])],
    "missing end before channel": [(A, None, None, "think", ["missing_end"]), (F, None, None, "ok", ["missing_start"])],
    "eos mid header": [(C, None, None, "", ["repaired_channel:comm", "truncated_header"])],
    "channel+text+start": [(C, "functions.f", None, '{"a":1}', ["missing_message"])],
    "stream with specials stripped": [
        (A, None, None, "The user asks for a sum.", ["specials_stripped"]),
        (F, None, None, "4", ["specials_stripped"]),
    ],
    "tool call no <|call|>, end": [(C, "functions.f", "json", "{}", ["unclosed_call"])],
    "tool call ends with return": [(C, "functions.f", "json", "{}", ["unclosed_call"])],
    "truncated call": [(C, "functions.f", JSON, '{"a":', ["unclosed_call", "arguments_not_json"])],
    "two calls, first closed by end": [
        (A, None, None, "x", []),
        (C, "functions.a", "json", "{}", ["undeclared_tool", "unclosed_call"]),
        (C, "functions.b", "json", "{}", ["undeclared_tool"]),
    ],
    "hallucinated tool result": [
        (C, "functions.a", "json", "{}", ["undeclared_tool"]),
        (C, "assistant", None, "fake result", ["hallucinated_turn"]),
        (F, None, None, "x", []),
    ],
    "user msg hallucinated": [(F, None, None, "ok", []), (None, None, None, "next q", ["hallucinated_turn"])],
    "two JSON values as arguments": [(C, "functions.f", JSON, '{"a":1}{"a":1}', ["arguments_not_json"])],
    "commentary JSON without recipient": [(C, None, None, '{"path":"/"}', ["json_without_recipient"])],
    # variants that models are known for
    "to= space name": [(C, "functions.f", "json", "{}", ["resolved_recipient"])],
    "to=functions f": [(C, "functions.f", "json", "{}", ["resolved_recipient"])],
    "recipient w/o to": [(C, "functions.f", "json", "{}", ["missing_to"])],
    "endoftext": [(F, None, None, "a", [])],
    "startoftext first": [(F, None, None, "a", ["extra_special:<|startoftext|>"])],
    "special in content": [(F, None, None, "a<|constrain|>b", ["special_in_content"])],
    "unknown id in content": [(None, None, None, "Hi\ufffdlost", ["unknown_token"])],
    "second message without message token is lost when strict=False": [
        (None, None, None, "a", []),
        (F, None, None, "LOST TEXT", ["missing_message"]),
    ],
}
BY_ID = {case["id"]: case for case in gold_cases()}
FIXED = [case for case in gold_cases() if case["kind"] in ("malformed", "variant", "upstream")]


@pytest.mark.parametrize("name", DESIRED)
def test_desired(name: str) -> None:
    case = BY_ID[name]
    assert [fields_of(message) for message in parse(case["tokens"], case["role"], tools=TOOLS)] == DESIRED[name]


def test_every_pattern_is_covered() -> None:
    assert {BY_ID[name]["pattern"] for name in DESIRED} >= set(range(1, 21))
    assert {case["id"] for case in FIXED if case["pattern"] and not case["id"].endswith("[role=None]")} <= {
        *DESIRED,
        "commentary text without message token",
        "missing message token, three messages",
    }


def test_every_flag_is_declared() -> None:
    flags = {flag.partition(":")[0] for messages in DESIRED.values() for *_, found in messages for flag in found}
    assert flags <= set(FLAGS)


@pytest.mark.parametrize("case", FIXED, ids=lambda case: case["id"])
def test_every_cut_of_every_fixed_stream(case: dict[str, Any]) -> None:
    """Every truncation; of the whole stream every cut in two, and one by one."""
    ids, role = case["tokens"], case["role"]
    for end in range(len(ids) + 1):
        parser, events = follow(role, TOOLS, [ids[:end]])
        check_events(parser, events)
        check_nothing_lost(role, ids[:end], parser)
    for at in range(len(ids)):
        assert follow(role, TOOLS, [ids[:at], ids[at:]])[1] == events
    assert follow(role, TOOLS, [[token] for token in ids])[1] == events


@pytest.mark.parametrize("case", [case for case in FIXED if len(case["tokens"]) <= 10], ids=lambda case: case["id"])
def test_every_way_to_cut_a_short_stream(case: dict[str, Any]) -> None:
    ids, role = case["tokens"], case["role"]
    expected = follow(role, TOOLS, [ids])[1]
    for ends in range(1 << max(len(ids) - 1, 0)):
        cuts = [0, *(at for at in range(1, len(ids)) if ends >> (at - 1) & 1), len(ids)]
        assert follow(role, TOOLS, [ids[a:b] for a, b in pairwise(cuts)])[1] == expected


def test_every_truncation_of_every_random_gold_stream() -> None:
    for case in gold_cases():
        if case not in FIXED:
            for end in range(len(case["tokens"]) + 1):
                parser, events = follow(case["role"], None, [case["tokens"][:end]])
                check_events(parser, events)
                check_nothing_lost(case["role"], case["tokens"][:end], parser)


@pytest.mark.parametrize("case", FIXED, ids=lambda case: case["id"])
def test_text_says_the_same_as_ids(case: dict[str, Any]) -> None:
    """The same stream as text, in one piece and character by character."""
    text = case["text"]
    if "⟨" in text or "\ufffd" in text:
        return  # ids that are no text
    expected = [(m.role, m.name, *fields_of(m)) for m in parse(case["tokens"], case["role"], tools=TOOLS)]
    for chunks in ([text], list(text)):
        parser = Parser(case["role"], tools=TOOLS)
        for chunk in chunks:
            parser.feed_text(chunk)
        parser.finish()
        assert [(m.role, m.name, *fields_of(m)) for m in parser.messages] == expected


def test_undeclared_tools() -> None:
    """Without the tool list nothing is guessed."""
    slot = parse(BY_ID["tool name in constrain slot"]["tokens"])[0]
    assert (slot.channel, slot.recipient, slot.content_type) == (F, None, "<|constrain|>functions.f")
    bare = parse(BY_ID["bare tool name on analysis"]["tokens"])[0]
    assert (bare.recipient, bare.flags) == ("execute_bash", ())


LOOPS = [
    "<|start|>",
    "<|start|>assistant",
    "<|channel|>",
    "<|channel|>analysis",
    "<|message|>",
    "<|constrain|>",
    "<|end|>",
    "<|reserved_200013|>",
    " to=f",
    "x",
    "\n",
    "<|start|>assistant<|message|>",
    "<|start|>assistant<|channel|>x",
    "x<|end|>",
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("before", ["", "<|channel|>final<|message|>x<|end|>"])
def test_a_model_in_a_loop_costs_linear_time(before: str, loop: str) -> None:
    """10 000 times the same, at once and one by one: ten times the input is no more than ten times the calls."""

    def parse_both_ways(times: int) -> None:
        ids = ids_of(before) + ids_of(loop) * times
        parser = Parser()
        for token in ids:
            parser.feed((token,))
        parser.finish()
        assert parser.messages == parse(ids)

    parse_both_ways(1)  # what is loaded or cached once is not counted
    assert count_calls(lambda: parse_both_ways(10_000)) < 10.5 * count_calls(lambda: parse_both_ways(1000))


def test_many_channels_after_many_words_do_not_search_them_again() -> None:
    def parse_many(times: int) -> None:
        (message,) = parse(ids_of(" assistant") * times + ids_of("<|channel|>") * times)
        assert "empty_channel" in message.flags

    parse_many(1)
    assert count_calls(lambda: parse_many(32_000)) < 10.5 * count_calls(lambda: parse_many(3200))


@pytest.mark.timeout(60)
def test_a_content_type_of_many_parameters_costs_linear_time() -> None:
    """A type that may be split in many ways, and fits in none of them: trying them all would never end."""
    for parameter in (";x=y", "; x=y", ";x=y;"):
        parse(ids_of(f"<|channel|>final<|constrain|>a/b{parameter * 2000} !<|message|>x<|end|>"))
    (message,) = parse(ids_of("<|channel|>final <|constrain|>text/plain; charset=utf-8;x=a=b<|message|>x<|end|>"))
    assert (message.content_type, message.flags) == ("<|constrain|>text/plain; charset=utf-8;x=a=b", ())
