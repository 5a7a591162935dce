"""The parser as a program meets it: events, attributes, counts, reset, text and ids."""

import json
from random import Random

import pytest
from gptoss_harmony import (
    Delta,
    Header,
    Message,
    MessageEnd,
    MessageStart,
    Parser,
    Role,
    State,
    Text,
    TokenCounts,
    Tool,
    ToolNamespace,
    first_json_value,
    load_vocabulary,
    parse,
    tool_names,
)
from gptoss_harmony.parsing.events import END_REASONS
from gptoss_harmony.parsing.machine import HeaderForm, InputKind
from gptoss_harmony.parsing.parser import _find_marks
from gptoss_harmony.parsing.strict import LAX, STRICT
from gptoss_harmony.parsing.tolerant import ACTIONS
from gptoss_harmony.tokens import CALL, CHANNEL, END, ENDOFTEXT, MESSAGE, N_RANKS, RETURN, START, STARTOFTEXT

ANALYSIS, FINAL, ASSISTANT, HI = 35644, 17196, 173781, 3686
COMMENTARY = [12606, 815]
TO_F = [316, 28, 44580, 1196]
STREAM = [CHANNEL, ANALYSIS, MESSAGE, HI, HI, END, START, ASSISTANT, *TO_F, CHANNEL, *COMMENTARY, MESSAGE, 12083, CALL]


def test_events() -> None:
    events = Parser().feed(STREAM)
    first, second = parse(STREAM)
    assert events == [
        MessageStart(Header(Role.ASSISTANT, channel="analysis")),
        Delta("hihi"),
        MessageEnd("end", first),
        MessageStart(Header(Role.ASSISTANT, channel="commentary", recipient="functions.f")),
        Delta("{}"),
        MessageEnd("call", second),
    ]
    assert second == Message(
        Role.ASSISTANT,
        [Text("{}")],
        None,
        "commentary",
        "functions.f",
        header=HeaderForm((ASSISTANT, *TO_F, CHANNEL, *COMMENTARY), (12083,)),
        end=CALL,
    )
    assert first.header == HeaderForm((ASSISTANT, CHANNEL, ANALYSIS), (HI, HI))  # the role was in the prompt


def test_attributes_while_reading() -> None:
    parser = Parser()
    assert (parser.state, parser.current_role, parser.messages) == (State.HEADER, Role.ASSISTANT, [])
    parser.feed(STREAM[:4])
    assert (parser.state, parser.current_channel, parser.current_content, parser.last_content_delta) == (
        State.CONTENT,
        "analysis",
        "hi",
        "hi",
    )
    parser.feed([HI])
    assert (parser.current_content, parser.last_content_delta) == ("hihi", "hi")
    parser.feed([END])
    assert (parser.state, parser.current_role, parser.current_channel, parser.last_content_delta) == (
        State.EXPECT_START,
        None,
        None,
        None,
    )
    parser.feed(STREAM[6:-1])
    assert (parser.current_recipient, parser.current_content_type, parser.last_content_delta) == (
        "functions.f",
        None,
        "{}",
    )
    assert parser.finish()[-1].reason == "eos"  # type: ignore[union-attr]
    assert parser.tokens == STREAM[:-1]


def test_several_tokens_in_one_call_lose_nothing() -> None:
    """Reading only the last delta of a call is a known way to lose text: a call's deltas are one."""
    parser = Parser()
    parser.feed(STREAM[:3])
    assert parser.feed([HI, 9552, 248, 222, HI]) == [Delta("hi 🚀hi")]
    assert parser.last_content_delta == "hi 🚀hi"


def test_a_character_in_parts_waits() -> None:
    parser = Parser()
    parser.feed(STREAM[:3])
    assert parser.feed([9552]) == [Delta(" ")]
    assert parser.feed([248]) == []
    assert parser.last_content_delta is None
    assert parser.feed([222]) == [Delta("🚀")]


@pytest.mark.parametrize(
    ("stop", "reason"),
    [(END, "end"), (CALL, "call"), (RETURN, "return"), (ENDOFTEXT, "endoftext"), (None, "eos"), (START, "cut")],
)
def test_reasons(stop: int | None, reason: str) -> None:
    parser = Parser()
    events = parser.feed([CHANNEL, FINAL, MESSAGE, HI, *([] if stop is None else [stop])])
    events += parser.finish() if stop is None else []
    end = events[-1]
    assert isinstance(end, MessageEnd)
    assert end.reason == reason
    assert end.message.end == (None if stop in (None, START) else stop)
    assert reason in END_REASONS


def test_counts_by_kind() -> None:
    parser = Parser()
    parser.feed(STREAM[:4])
    assert parser.counts == TokenCounts(reasoning=1, header=3)
    parser.feed(STREAM[4:])
    parser.feed([START, ASSISTANT, CHANNEL, FINAL, MESSAGE, HI, HI, HI])
    assert parser.counts == TokenCounts(reasoning=2, tool_call=1, final=3, header=len(parser.tokens) - 6)
    assert parser.counts.total == len(parser.tokens)
    parser.feed([END, START, 1428, MESSAGE, HI])
    assert parser.counts.other == 1


@pytest.mark.parametrize(
    "ids",
    [
        [END, *load_vocabulary().encode("{"), ENDOFTEXT],
        [*load_vocabulary().encode(" to=python"), CHANNEL, START, ENDOFTEXT],
        [*load_vocabulary().encode("final"), CHANNEL, *load_vocabulary().encode("assistant"), RETURN],
    ],
)
def test_a_content_that_its_own_end_opened_counts_nothing(ids: list[int]) -> None:
    """Without a ``<|message|>`` the end token both opens and closes the content: once that counted as minus one
    token.
    """
    parser = Parser("assistant")
    for token in ids:
        parser.feed([token])
        counts = parser.counts
        assert min(counts.reasoning, counts.final, counts.tool_call, counts.other, counts.header) >= 0
    parser.finish()
    assert parser.counts.total == len(ids) and parser.counts.final == parser.counts.tool_call == 0


def test_reset() -> None:
    parser = Parser("assistant", tools=["functions.f"])
    expected = parser.feed(STREAM) + parser.finish()
    for broken in (STREAM[:2], STREAM[:4], [*STREAM, HI], [9552]):
        parser.reset()
        parser.feed(broken)
        parser.reset()
        assert parser.feed(STREAM) + parser.finish() == expected
        assert parser.counts.total == len(STREAM)


def test_held_text_is_not_lost() -> None:
    parser = Parser()
    parser.feed_text("<|channel|>final<|message|>a <")
    assert parser.current_content == "a "
    assert parser.feed_text("|me") == []
    assert parser.feed_text("x") == [Delta("<|mex")]
    assert parser.feed_text("<|retu") == []
    assert parser.finish()[0] == Delta("<|retu")
    assert parser.messages[0].text == "a <|mex<|retu"


def test_text_without_ids_has_no_header_form() -> None:
    parser = Parser()
    parser.feed_text("<|channel|>final<|message|>a<|return|>")
    assert parser.messages[0].header is None
    assert parser.messages[0].end == RETURN


def test_text_and_ids_mixed() -> None:
    parser = Parser()
    parser.feed_text("<|channel|>final<|mess")
    parser.feed_text("age|>a<")
    parser.feed([HI])
    parser.feed([HI])
    parser.feed_text("b")
    parser.feed([RETURN])
    assert parser.messages[0].text == "a<hihib"
    assert parser.messages[0].header is None


def test_unknown_names_are_text() -> None:
    parser = Parser()
    parser.feed_text("<|channel|>final<|message|><|refusal|><|x|>")
    assert parser.current_content == "<|refusal|><|x|>"


@pytest.mark.parametrize("strict", [True, False, "lax"])
@pytest.mark.parametrize("ids", [[-1], [2**32], [HI] * 100 + [-1]])
def test_what_is_no_id_is_refused(ids: list[int], strict: bool) -> None:
    parser = Parser(None, strict)
    parser.feed([START, ASSISTANT, MESSAGE])
    with pytest.raises(OverflowError):
        parser.feed(ids)
    assert parser.tokens == [START, ASSISTANT, MESSAGE]


def test_marks_is_its_oracle() -> None:
    """The search in packed bytes finds what the loop finds, around every boundary of its byte."""
    rng = Random(0)
    edges = [
        0,
        3 << 16,
        (3 << 16) - 1,
        768,
        1023,
        N_RANKS - 1,
        N_RANKS,
        STARTOFTEXT,
        RETURN,
        201_088,
        201_089,
        2**18,
        2**24 - 1,
        2**24,
        2**24 + 5,
        2**32 - 1,
    ]
    for length in (0, 1, 63, 64, 65, 500):
        for top in (2**18, 2**32):
            ids = [
                rng.choice([edge for edge in edges if edge < top]) if rng.random() < 0.5 else rng.randrange(N_RANKS)
                for _ in range(length)
            ]
            assert _find_marks(ids) == [at for at, token in enumerate(ids) if token >= N_RANKS]


def test_every_input_has_an_action_in_every_state() -> None:
    for table in (ACTIONS, STRICT, LAX):
        assert set(table) == set(State)
        assert all(set(row) == set(InputKind) for row in table.values())


def test_tool_names() -> None:
    space = ToolNamespace("browser", None, [Tool("open")])
    assert tool_names({"browser": space}) == {"browser", "browser.open"}
    assert tool_names([Tool("f"), "python"]) == {"functions.f", "python"}
    assert tool_names(None) == frozenset()


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ('{"a": 1}', {"a": 1}, ""),
        ('{"a":1}{"b":2}', {"a": 1}, '{"b":2}'),
        (" [1] \n", [1], ""),
        ("oops", None, "oops"),
        ("", None, ""),
        ("[" * 100_000, None, "[" * 100_000),
        ('{"a":', None, '{"a":'),
    ],
)
def test_first_json_value(text: str, value: object, rest: str) -> None:
    assert first_json_value(text) == (value, rest)


def test_flags_travel_in_json() -> None:
    (message,) = parse([HI])
    assert Message.from_json(json.dumps(message.to_dict())) == message
    assert message.flags == ("missing_message",)


def test_long_stream_in_one_feed_and_in_pieces() -> None:
    ids = load_vocabulary().encode("Wörter, слова, 言葉 🚀 words\n" * 400)
    stream = [CHANNEL, ANALYSIS, MESSAGE, *ids, END, START, ASSISTANT, CHANNEL, FINAL, MESSAGE, *ids, RETURN]
    whole = parse(stream)
    assert [message.text for message in whole] == [load_vocabulary().decode(ids)] * 2
    for strict in (True, False):
        for size in (1, 7, 64, 1000):
            parser = Parser("assistant", strict)
            for at in range(0, len(stream), size):
                parser.feed(stream[at : at + size])
            assert parser.messages == whole
