"""Malformed headers one by one: what the tolerant parser makes of each."""

import json
from typing import Any

import pytest
from gptoss_harmony import parse
from gptoss_harmony.tokens import SPECIAL_NAMES
from helpers.outputs import fields_of, ids_of

ANALYSIS = "analysis"
COMMENTARY = "commentary"
FINAL = "final"
JSON = "<|constrain|>json"


@pytest.mark.parametrize(
    ("text", "role", "name", "recipient"),
    [
        ("<|start|>user:bob<|message|>hi<|end|>", "user", "bob", None),
        ("<|start|>assistant:x to=all<|message|>hi<|call|>", "assistant", "x", "all"),
        ("<|start|>functions.f<|channel|>commentary<|message|>hi<|end|>", "tool", "functions.f", None),
        (
            "<|start|>functions.f to=assistant<|channel|>commentary<|message|>hi<|end|>",
            "tool",
            "functions.f",
            "assistant",
        ),
    ],
)
def test_headers_that_render_makes_and_strict_refuses(
    text: str, role: str, name: str | None, recipient: str | None
) -> None:
    (message,) = parse(ids_of(text), None)
    assert (message.role, message.name, message.recipient, message.flags) == (role, name, recipient, ())


@pytest.mark.parametrize("special", [*SPECIAL_NAMES[:16], SPECIAL_NAMES[-1]])
def test_specials_do_not_leak_into_fields(special: str) -> None:
    """A special token anywhere in a header stands in no field but as the constrain marker."""
    pieces = [
        "<|start|>",
        "assistant",
        "<|channel|>",
        "commentary",
        " to=functions.f",
        " json",
        "<|message|>",
        "{}",
        "<|call|>",
    ]
    for at in range(1, len(pieces)):
        for message in parse(ids_of("".join([*pieces[:at], special, *pieces[at:]])), None):
            fields = json.dumps(
                [
                    message.name,
                    message.channel,
                    message.recipient,
                    (message.content_type or "").removeprefix("<|constrain|>"),
                ]
            )
            assert "<|" not in fields, (at, message)


def test_prose_before_an_unannounced_channel_is_kept_as_a_message() -> None:
    first, second = parse(ids_of("Let me call it.<|channel|>commentary to=functions.f<|message|>{}<|call|>"))
    assert (first.text, second.recipient, second.text) == ("Let me call it.", "functions.f", "{}")


def test_whitespace_between_messages_is_no_message() -> None:
    messages = parse(
        ids_of("<|channel|>analysis<|message|>a<|end|>\n\n<|start|>assistant<|channel|>final<|message|>b<|return|>\n")
    )
    assert [(message.text, message.flags) for message in messages] == [
        ("a", ()),
        ("b", ("repeated_start:\n\n", "stray_text:\n")),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '<|channel|>commentary to=functions.f<|constrain|>json{"a":1}<|call|>',
            (COMMENTARY, "functions.f", JSON, '{"a":1}', ["missing_message"]),
        ),
        (
            '<|channel|>commentary to=functions.f code {"a":1}<|call|>',
            (COMMENTARY, "functions.f", "code", '{"a":1}', ["missing_message"]),
        ),
        (
            "<|channel|>commentaryto=functions.f{}<|call|>",
            (COMMENTARY, "functions.f", None, "{}", ["missing_space", "missing_message"]),
        ),
        ("<|channel|>finalHello<|end|>", (FINAL, None, None, "Hello", ["missing_message"])),
        (
            "<|channel|>We need to think<|end|>",
            (None, None, None, "We need to think", ["empty_channel", "missing_message"]),
        ),
        ("analysis<|message|>x<|end|>", (ANALYSIS, None, None, "x", ["missing_channel_marker"])),
        ("assistant<|channel|>final<|message|>x<|end|>", (FINAL, None, None, "x", ["repeated_role:assistant"])),
        (
            "assistantfinal<|message|>x<|end|>",
            (FINAL, None, None, "x", ["repeated_role:assistant", "missing_space", "missing_channel_marker"]),
        ),
        (
            " to=functions.f <|constrain|>json<|channel|>commentary<|message|>{}<|call|>",
            (COMMENTARY, "functions.f", JSON, "{}", []),
        ),
        (
            "<|channel|>commentary to=assistant<|message|>x<|end|>",
            (COMMENTARY, "assistant", None, "x", ["unclosed_call"]),
        ),
        ("<|channel|>Final<|message|>x<|end|>", (FINAL, None, None, "x", ["repaired_channel:Final"])),
        ("<|channel|>final<|message|><|message|>x<|end|>", (FINAL, None, None, "x", ["repeated_message"])),
        ("<|channel|>final<|message|>x<|end|>assistant", (FINAL, None, None, "x", ["stray_text:assistant"])),
        ("<|channel|>final<|message|>x<|end|><|start|>assistant", (FINAL, None, None, "x", [])),
    ],
)
def test_single_messages(text: str, expected: tuple[Any, ...]) -> None:
    (message,) = parse(ids_of(text))
    assert fields_of(message) == expected
