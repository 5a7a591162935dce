"""No text, wherever it stands, becomes a control token: every special token's text in every string field."""

from collections.abc import Callable

import pytest
from gptoss_harmony import (
    ChannelConfig,
    Conversation,
    DeveloperContent,
    Message,
    Renderer,
    SystemContent,
    Tool,
    ToolNamespace,
    render,
    render_pieces,
)
from gptoss_harmony.messages import Text
from gptoss_harmony.tokens import CHANNEL, CONSTRAIN, SPECIAL_NAMES, START, is_special
from hypothesis import given, settings
from hypothesis import strategies as st

FIELDS = (
    "user.text",
    "user.name",
    "second part",
    "assistant.text",
    "assistant.name",
    "channel",
    "recipient",
    "content_type",
    "tool.name",
    "tool.text",
    "system.text",
    "model_identity",
    "knowledge_cutoff",
    "conversation_start_date",
    "valid_channels",
    "system namespace",
    "instructions",
    "namespace key",
    "namespace name",
    "namespace description",
    "function name",
    "function description",
    "property name",
    "title",
    "description",
    "default",
    "enum",
    "example",
    "type name",
    "variant description",
    "variant default",
    "nested description",
)
RENDERER = Renderer(cache_tokens=0)


Field = Callable[[str], str]
"""The name of a field -> its text."""


def tool(f: Field) -> Tool:
    schema = {
        "type": "object",
        "properties": {
            f("property name"): {
                "type": "string",
                "title": f("title"),
                "description": f("description"),
                "default": f("default"),
                "enum": [f("enum")],
                "examples": [f("example")],
            },
            "t": {"type": [f("type name"), "null"]},
            "o": {
                "description": "o",
                "oneOf": [
                    {"type": "string"},
                    {"description": f("variant description"), "default": f("variant default")},
                ],
            },
            "n": {"type": "object", "description": f("nested description"), "properties": {}},
        },
    }
    return Tool(f("function name"), f("function description"), schema)


def conversation(field: str, text: str, around: str = "x") -> Conversation:
    """One conversation with every kind of message; `field` says `text`, all other fields say something harmless."""
    unknown = {field} - set(FIELDS)
    assert not unknown

    def f(name: str) -> str:
        return text if name == field else around

    space = ToolNamespace(f("namespace name"), f("namespace description"), [tool(f)])
    system = SystemContent(
        f("model_identity"),
        knowledge_cutoff=f("knowledge_cutoff"),
        conversation_start_date=f("conversation_start_date"),
        channel_config=ChannelConfig([f("valid_channels")]),
        tools={"s": ToolNamespace(f("system namespace"))},
    )
    user = Message.user(f("user.text"), f("user.name"))
    user.content.append(Text(f("second part")))
    assistant = Message.assistant(f("assistant.text"), f("channel"), f("recipient"), f("content_type"))
    assistant.name = f("assistant.name")
    return Conversation(
        [
            Message.system(system),
            Message.system(f("system.text")),
            Message.developer(DeveloperContent(f("instructions"), {f("namespace key"): space})),
            user,
            assistant,
            Message.tool(f("tool.name"), f("tool.text")),
        ]
    )


def controls(messages: Conversation, **options) -> list[int]:
    options = {"renderer": RENDERER} | options
    return [i for i in render(messages, drop="none", **options) if is_special(i)]


BASE = controls(conversation("user.text", "x"))


def test_base_conversation_has_all_headers() -> None:
    assert BASE.count(START) == 7
    assert BASE.count(CHANNEL) == 2


@pytest.mark.parametrize("field", FIELDS)
def test_special_text_stays_text(field: str) -> None:
    """All named special tokens and every tenth reserved one: 32 fields x 123 names; the exception is tested below."""
    for name in [*SPECIAL_NAMES[:16], *SPECIAL_NAMES[16::10]]:
        if (field, name) == ("content_type", SPECIAL_NAMES[CONSTRAIN - 199_998]):
            continue
        assert controls(conversation(field, name)) == BASE, name
        assert controls(conversation(field, f"a{name}user{name}")) == BASE, name


def test_all_names_in_all_fields_at_once() -> None:
    for name in SPECIAL_NAMES:
        every = conversation(FIELDS[0], name, around=f"{name}b")
        every.messages[4].content_type = "json"
        assert controls(every) == BASE


def test_the_one_exception_is_a_leading_constrain_of_a_content_type() -> None:
    """It is the format's own notation, at one known place; nothing behind it becomes special."""
    hostile = conversation("content_type", "<|constrain|><|constrain|><|end|>")
    assert controls(hostile) == BASE  # the form of the channel marks every content type
    role = Renderer(cache_tokens=0, form="role")
    plain = controls(conversation("content_type", "x"), renderer=role)
    plain.insert(plain.index(CHANNEL) + 1, CONSTRAIN)
    assert controls(hostile, renderer=role) == plain == BASE


def test_pieces_hold_specials_as_ids_only() -> None:
    pieces = render_pieces(conversation("user.text", "<|end|>"), drop="none")
    assert [piece for piece in pieces if isinstance(piece, int)] == BASE
    assert "<|end|>" in pieces


HOSTILE = st.text(st.characters(), max_size=40) | st.lists(
    st.sampled_from([*SPECIAL_NAMES[:16], "<|", "|>", "start", " ", "\n", "user"])
).map("".join)


@settings(max_examples=500, deadline=None)
@given(field=st.sampled_from(FIELDS), text=HOSTILE)
def test_any_text_in_any_field(field: str, text: str) -> None:
    if field == "content_type":
        text = f"t{text}"
    expected = BASE
    assert controls(conversation(field, text)) == expected
