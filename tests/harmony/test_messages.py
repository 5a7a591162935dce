"""Messages: JSON in openai-harmony's layout, there and back, and errors that say where."""

import gzip
import json
from pathlib import Path

import pytest
from gptoss_harmony import (
    ChannelConfig,
    Conversation,
    DeveloperContent,
    HarmonyError,
    HeaderForm,
    LayoutError,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
    Text,
    Tool,
    ToolNamespace,
    builtin_namespace,
)

DATA = Path(__file__).parents[1] / "data/harmony"


def gold_conversations():
    with gzip.open(DATA / "render_cases.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["conversation"] for line in lines]


def test_gold_conversations_there_and_back() -> None:
    for data in gold_conversations():
        conversation = Conversation.from_dict(data)
        assert conversation.to_dict() == data
        assert Conversation.from_json(conversation.to_json()) == conversation


def test_missing_means_default_and_null_means_none() -> None:
    def system(**keys):
        return Message.from_dict({"role": "system", "content": [{"type": "system_content", **keys}]}).content[0]

    assert system() == SystemContent()
    nulls = dict.fromkeys(("model_identity", "reasoning_effort", "knowledge_cutoff", "channel_config", "tools"))
    assert system(**nulls) == SystemContent(None, None, None, None, None, None)
    message = Message.system(SystemContent(None, None, None, None, None))
    assert Message.from_json(message.to_json()) == message


def test_published_defaults() -> None:
    content = SystemContent()
    assert content.model_identity == "You are ChatGPT, a large language model trained by OpenAI."
    assert (content.reasoning_effort, content.knowledge_cutoff) == (ReasoningEffort.MEDIUM, "2024-06")
    assert content.channel_config == ChannelConfig(["analysis", "commentary", "final"], True)


def test_string_content_is_one_text_part() -> None:
    assert Message.from_dict({"role": "user", "content": "hi", "unknown": 1}) == Message.user("hi")


def test_model_output_form_survives() -> None:
    message = Message(Role.ASSISTANT, [Text("x")], header=HeaderForm((1, 2), (3,)), end=200012, flags=("stray_text",))
    assert Message.from_json(message.to_json()) == message
    message.header = HeaderForm((1, 2))
    assert Message.from_json(message.to_json()) == message


def test_convenience_constructors() -> None:
    assert Message.user("a", "bob") == Message(Role.USER, [Text("a")], name="bob")
    assert Message.assistant("a", "final") == Message(Role.ASSISTANT, [Text("a")], channel="final")
    assert Message.tool("functions.f", "r").recipient == "assistant"
    assert Message.system().content == [SystemContent()]
    assert Message.system("plain").text == "plain"
    assert Message.developer("be brief").content == [DeveloperContent("be brief")]
    assert Message(Role.USER, [Text("a"), DeveloperContent("x"), Text("b")]).text == "ab"
    assert ToolNamespace.functions([Tool("f")]) == ToolNamespace("functions", None, [Tool("f")])


def test_roles_are_their_strings() -> None:
    assert Role.USER == "user"
    assert {"user": 1}[Role.USER] == 1
    assert f"{Role.USER}" == "user"


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0]"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "name": 3}, "messages[0].name"),
        (
            {"role": "system", "content": [{"type": "system_content", "reasoning_effort": "low"}]},
            "messages[0].content[0].reasoning_effort",
        ),
        (
            {"role": "system", "content": [{"type": "system_content", "channel_config": {}}]},
            "messages[0].content[0].channel_config.valid_channels",
        ),
        (
            {
                "role": "developer",
                "content": [{"type": "developer_content", "tools": {"f": {"name": "f", "tools": [{"name": "x"}]}}}],
            },
            "messages[0].content[0].tools.f.tools[0].description",
        ),
        (None, "messages[0]"),
    ],
)
def test_errors_name_the_place(data, where: str) -> None:
    with pytest.raises(LayoutError) as caught:
        Conversation.from_dict({"messages": [data]})
    assert caught.value.where == where
    assert isinstance(caught.value, HarmonyError) and isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


DEEP = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
LONG = '{"messages": ' + "1" * 5000 + "}"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"messages": 1}', "{}", "\ufeff{}", b"\xff", DEEP, LONG], ids=lambda text: repr(text[:16])
)
def test_not_a_conversation(text: str) -> None:
    with pytest.raises(LayoutError):
        Conversation.from_json(text)


def test_builtin_tools_are_the_published_ones() -> None:
    gold = json.loads((DATA / "builtin_tools.json").read_text("utf-8"))
    assert {name: builtin_namespace(name).to_dict() for name in gold} == gold
    with pytest.raises(ValueError, match="shell"):
        builtin_namespace("shell")
