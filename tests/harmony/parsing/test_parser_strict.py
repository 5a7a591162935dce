"""The strict parser gives the states, results and errors of openai-harmony 0.0.8: 412 gold streams, token by token."""

from typing import Any

import pytest
from gptoss_harmony import ParseError, Parser, parse
from helpers.outputs import gold_cases

FIELDS = ("role", "name", "channel", "recipient", "content_type", "content")


CASES = gold_cases()


def plain(messages: list[Any]) -> list[dict[str, Any]]:
    return [{key: message.to_dict()[key] for key in FIELDS} for message in messages]


def attributes(parser: Parser) -> dict[str, Any]:
    return {
        "state": parser.state.value,
        "role": parser.current_role and parser.current_role.value,
        "channel": parser.current_channel,
        "recipient": parser.current_recipient,
        "content_type": parser.current_content_type,
        "content": parser.current_content,
    }


def follow(case: dict[str, Any], strict: Any) -> tuple[Any, Any, list[str | None], Any]:
    """Messages, error, deltas and attributes at the end, fed one token at a time."""
    parser, deltas, end = Parser(case["role"], strict), [], None
    at: int | str = -1
    try:
        for at, token in enumerate(case["tokens"]):  # noqa: B007
            parser.feed([token])
            deltas.append(parser.last_content_delta)
        at, end = "eos", attributes(parser)
        parser.finish()
    except ParseError as error:
        return plain(parser.messages), (error.code, at), deltas, None
    return plain(parser.messages), None, deltas, end


def expected(case: dict[str, Any], strict: Any) -> tuple[Any, Any, list[str | None], Any]:
    lax = case["lax"] if strict == "lax" else None
    result = lax or case["strict"]
    error = result["error"] and (result["error"]["code"], result["error"]["at"])
    source = lax or case
    return result["messages"], error, source["deltas"], source["end"]


@pytest.mark.parametrize("strict", [True, "lax"])
def test_gold_cases_are_all_there(strict: Any) -> None:
    assert len(CASES) == 412
    assert sum(expected(case, strict)[1] is not None for case in CASES) > 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("strict", [True, "lax"])
def test_gold(case: dict[str, Any], strict: Any) -> None:
    assert follow(case, strict) == expected(case, strict)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_bulk_is_the_same(case: dict[str, Any]) -> None:
    messages, error, _, _ = expected(case, True)
    if error is None:
        assert plain(parse(case["tokens"], case["role"], strict=True)) == messages
        return
    parser = Parser(case["role"], strict=True)
    with pytest.raises(ParseError) as caught:
        parser.feed(case["tokens"])
        parser.finish()
    assert caught.value.code == error[0]
    assert plain(parser.messages) == messages
    read = len(case["tokens"]) if error[1] == "eos" else error[1] + 1
    assert parser.tokens == case["tokens"][:read]


def test_a_parser_that_raised_reads_on() -> None:
    case = next(case for case in CASES if case["id"] == "double role")
    parser = Parser("assistant", strict=True)
    with pytest.raises(ParseError, match="Unknown role: assistantassistant"):
        parser.feed(case["tokens"])
    tail = [200006, 173781, 200008, 3686, 200007]
    parser.feed(tail)
    assert [message.text for message in parser.messages] == ["t", "hi"]
