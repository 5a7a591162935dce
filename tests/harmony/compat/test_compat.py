"""gptoss_harmony.compat.openai_harmony against the installed openai_harmony: names, signatures, results, error
classes.
"""

import gzip
import inspect
import json
from dataclasses import MISSING, asdict
from pathlib import Path
from random import Random

import openai_harmony as published
import pytest
from gptoss_harmony.compat import openai_harmony as compat
from helpers import random_harmony
from helpers.harmony_oracle import oracle
from pydantic import BaseModel

DATA = Path(__file__).parents[2] / "data/harmony"
ENCODING = compat.load_harmony_encoding("HarmonyGptOss")
NAMES = [
    *published.__all__,
    "ReasoningEffort",
    "ChannelConfig",
    "ToolNamespaceConfig",
    "RenderConversationConfig",
    "RenderOptions",
]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(published, name)) and name != "HarmonyError"]


def gold(name: str) -> list[dict]:
    opener = gzip.open if name.endswith(".gz") else open
    with opener(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# --- surface --------------------------------------------------------------------------------------------------------


def own_members(cls: type) -> dict[str, object]:
    """Public members that the package itself defines: not pydantic's, not enum's."""
    mro = [base for base in cls.__mro__ if base.__module__.startswith("openai_harmony")]
    return {
        name: member
        for base in reversed(mro)
        for name, member in vars(base).items()
        if not name.startswith(("_", "model_"))
    }


def test_every_public_name() -> None:
    assert sorted(compat.__all__) == sorted(NAMES)
    assert issubclass(compat.HarmonyError, RuntimeError) and issubclass(published.HarmonyError, RuntimeError)
    assert dict(inspect.signature(compat.load_harmony_encoding).parameters).keys() == {"name"}


@pytest.mark.parametrize("name", CLASSES)
def test_members_and_signatures(name: str) -> None:
    theirs, ours = getattr(published, name), getattr(compat, name)
    for member, value in own_members(theirs).items():
        assert hasattr(ours, member) or member in ours.__dataclass_fields__, member
        if callable(value) or isinstance(value, classmethod | staticmethod):
            expected, got = (inspect.signature(getattr(cls, member)).parameters for cls in (theirs, ours))
            assert [(p.name, p.kind) for p in got.values()] == [(p.name, p.kind) for p in expected.values()], member
            defaults = [p.default for p in expected.values() if p.default != set()]
            assert [p.default for p in got.values() if p.default != frozenset()] == defaults, member


@pytest.mark.parametrize("name", [name for name in CLASSES if issubclass(getattr(published, name), BaseModel)])
def test_fields_and_defaults(name: str) -> None:
    theirs, ours = getattr(published, name), getattr(compat, name)
    if name == "Content":
        return
    assert list(ours.__dataclass_fields__) == list(theirs.model_fields)
    required = {key: [] if key == "tools" else key for key, field in theirs.model_fields.items() if field.is_required()}
    without = {
        key for key, field in ours.__dataclass_fields__.items() if field.default is field.default_factory is MISSING
    }
    assert without == required.keys()
    assert json_of(ours(**required)) == json_of(theirs.model_construct(**required))


def json_of(value: object) -> object:
    dump = value.model_dump(warnings=False) if isinstance(value, BaseModel) else asdict(value)
    return json.loads(json.dumps(dump))


@pytest.mark.parametrize("name", ["Role", "ReasoningEffort", "HarmonyEncodingName", "StreamState"])
def test_enums(name: str) -> None:
    theirs, ours = getattr(published, name), getattr(compat, name)
    assert {m.name: m.value for m in ours} == {m.name: m.value for m in theirs}


# --- the same program on both ---------------------------------------------------------------------------------------


def outcome(call) -> object:
    """The result in plain data, or the error's class: by name, and the builtin class that it can be caught as."""
    try:
        result = call()
    except Exception as error:
        builtin = next(
            c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins" and c.__name__ != "HarmonyError"
        )
        kind = "ValueError" if issubclass(type(error), ValueError) else builtin  # pydantic's ValidationError is one
        return (kind, type(error).__name__ == "HarmonyError")
    if isinstance(result, list) and result and hasattr(result[0], "to_dict"):
        result = [m.to_dict() for m in result]
    return json.loads(json.dumps(result))


CALLS = {
    "name": lambda h, e: e.name,
    "specials": lambda h, e: sorted(e.special_tokens_set),
    "stops": lambda h, e: sorted(e.stop_tokens()),
    "action stops": lambda h, e: sorted(e.stop_tokens_for_assistant_actions()),
    "is special": lambda h, e: [e.is_special_token(i) for i in (0, 199997, 199998, 201088, 201089)],
    "is special, no id": lambda h, e: e.is_special_token(-1),
    "encode": lambda h, e: e.encode("hello wörld 😀"),
    "encode surrogates": lambda h, e: e.encode("a\ud83d\ude00\ud800b"),
    "encode disallowed": lambda h, e: e.encode("a<|start|>"),
    "encode as text": lambda h, e: e.encode("a<|start|>", disallowed_special=()),
    "encode allowed": lambda h, e: e.encode("a<|start|><|end|>b <|call|>", allowed_special="all"),
    "encode one allowed": lambda h, e: e.encode(
        "a<|start|>b<|end|>", allowed_special={"<|start|>"}, disallowed_special=()
    ),
    "encode other allowed": lambda h, e: e.encode("a<|start|>b<|end|>", allowed_special={"<|start|>"}),
    "decode": lambda h, e: e.decode([200006, 1428, 9552]),
    "decode strictly": lambda h, e: e.decode([9552], errors="strict"),
    "decode unknown": lambda h, e: e.decode([201089]),
    "decode negative": lambda h, e: e.decode([-1]),
    "decode huge": lambda h, e: e.decode([2**32]),
    "decode_utf8": lambda h, e: e.decode_utf8([1428]),
    "decode_utf8 broken": lambda h, e: e.decode_utf8([9552]),
    "unknown encoding": lambda h, e: h.load_harmony_encoding("gpt2"),
    "unknown role": lambda h, e: h.Message.from_dict({"role": "robot", "content": "x"}),
    "no role": lambda h, e: h.Message.from_dict({"content": "x"}),
    "unknown part": lambda h, e: h.Message.from_dict({"role": "user", "content": [{"type": "image"}]}),
    "bad effort": lambda h, e: h.Message.from_dict(
        {"role": "system", "content": [{"type": "system_content", "reasoning_effort": "low"}]}
    ),
    "tool without description": lambda h, e: h.DeveloperContent.from_dict(
        {"tools": {"f": {"name": "f", "tools": [{"name": "x"}]}}}
    ),
    "tool without name": lambda h, e: e.render(h.Message.from_role_and_content(h.Role.TOOL, "x")),
    "tool without name, completion": lambda h, e: e.render_conversation_for_completion(
        tool_message(h), h.Role.ASSISTANT
    ),
    "tool without name, training": lambda h, e: e.render_conversation_for_training(tool_message(h)),
    "tool without name, conversation": lambda h, e: e.render_conversation(tool_message(h)),
    "misplaced": lambda h, e: e.render(h.Message.from_role_and_content(h.Role.USER, h.SystemContent())),
    "surrogate": lambda h, e: e.render(h.Message.from_role_and_content(h.Role.USER, "\ud800")),
    "surrogate, conversation": lambda h, e: e.render_conversation(surrogate(h)),
    "functions option": lambda h, e: e.render(system(h), h.RenderOptions(conversation_has_function_tools=True)),
    "fluent": lambda h, e: e.render(system(h)),
    "fluent dict": lambda h, e: system(h).to_dict(),
    "tools": lambda h, e: e.render(developer(h)),
    "tools dict": lambda h, e: json.loads(developer(h).to_json()),
    "message": lambda h, e: called(h).to_dict(),
    "keep analysis": lambda h, e: e.render_conversation_for_training(
        finished(h), h.RenderConversationConfig(auto_drop_analysis=False)
    ),
    "drop analysis": lambda h, e: e.render_conversation_for_training(finished(h)),
    "conversation json": lambda h, e: json.loads(h.Conversation.from_json(finished(h).to_json()).to_json()),
    "not messages": lambda h, e: h.Conversation.from_messages([h.SystemContent.new()]),
    "iterate": lambda h, e: [m.channel for m in finished(h)],
    "parse": lambda h, e: e.parse_messages_from_completion_tokens(
        e.encode("<|channel|>final<|message|>hi<|return|>", allowed_special="all"), h.Role.ASSISTANT
    ),
    "parse without role": lambda h, e: e.parse_messages_from_completion_tokens([5]),
    "parse lax": lambda h, e: e.parse_messages_from_completion_tokens(
        e.encode("refused<|end|>", allowed_special="all"), h.Role.ASSISTANT, strict=False
    ),
    "parse no id": lambda h, e: h.StreamableParser(e, None).process(-1),
    "parse huge id": lambda h, e: h.StreamableParser(e, None).process(2**32),
    "eos in header": lambda h, e: h.StreamableParser(e, h.Role.USER).process_eos(),
    "chained": lambda h, e: (
        h.StreamableParser(e, None).process(200006).process(173781).process(200008).process(87).process_eos().messages
    ),
}


def tool_message(h):
    return h.Conversation.from_messages([h.Message.from_role_and_content(h.Role.TOOL, "x")])


def surrogate(h):
    return h.Conversation.from_messages([h.Message.from_role_and_content(h.Role.USER, "\ud800")])


def system(h):
    content = (
        h.SystemContent.new()
        .with_model_identity("I")
        .with_reasoning_effort(h.ReasoningEffort.HIGH)
        .with_conversation_start_date("2025-01-01")
        .with_knowledge_cutoff("2024")
        .with_required_channels(["final"])
        .with_browser_tool()
        .with_python_tool()
    )
    return h.Message.from_role_and_content(
        h.Role.SYSTEM, content.with_channel_config(h.ChannelConfig.require_channels(["final"]))
    )


def developer(h):
    tools = [
        h.ToolDescription.new("f", "does f", parameters={"type": "object", "properties": {"a": {"default": None}}}),
        h.ToolDescription.new("g", ""),
    ]
    content = h.DeveloperContent.new().with_instructions("be brief").with_function_tools(tools)
    return h.Message.from_role_and_contents(h.Role.DEVELOPER, [content, h.TextContent(text="more")])


def called(h):
    author = h.Author.new(h.Role.ASSISTANT, "x")
    return (
        h.Message.from_author_and_content(author, "{")
        .adding_content("}")
        .with_channel("commentary")
        .with_recipient("f")
        .with_content_type("json")
    )


def finished(h):
    analysis, final = (
        h.Message.from_role_and_content(h.Role.ASSISTANT, t).with_channel(t) for t in ("analysis", "final")
    )
    return h.Conversation.from_messages([h.Message.from_role_and_content(h.Role.USER, "q"), analysis, final])


@pytest.mark.parametrize("name", CALLS)
def test_same_outcome(name: str) -> None:
    assert outcome(lambda: CALLS[name](compat, ENCODING)) == outcome(lambda: CALLS[name](published, oracle()))


def test_random_conversations_through_the_classes() -> None:
    for seed in range(200):
        data = random_harmony.conversation(Random(seed))
        ids = []
        for h, encoding in ((compat, ENCODING), (published, oracle())):
            conversation = h.Conversation(messages=[h.Message.from_dict(m) for m in data["messages"]])
            ids.append([encoding.render_conversation_for_completion(conversation, h.Role.USER), conversation.to_json()])
        assert ids[0] == ids[1], seed


# --- gold parses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["parse_cases.jsonl.gz", "fixed_parse_cases.jsonl"])
def test_gold_parses(file: str) -> None:
    for case in gold(file):
        role = case["role"] and compat.Role(case["role"])
        for strict, expected in ((True, case), (False, case["lax"] or case)):
            parser, deltas, error = compat.StreamableParser(ENCODING, role, strict=strict), [], None
            try:
                for token in case["tokens"]:
                    parser.process(token)
                    deltas.append(parser.last_content_delta)
                parser.process_eos()
            except compat.HarmonyError as raised:
                error = raised.code
            want = expected.get("strict", expected)
            assert error == (want["error"] and want["error"]["code"]), case["id"]
            assert deltas == expected["deltas"], case["id"]
            got = [
                {"name": None, "channel": None, "recipient": None, "content_type": None, **m.to_dict()}
                for m in parser.messages
            ]
            assert normal(got) == normal(want["messages"]), case["id"]


def normal(messages: list[dict]) -> list[dict]:
    """Content as a list of parts, nulls explicit."""
    keys = ("role", "name", "channel", "recipient", "content_type")
    parts = [
        [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"] for m in messages
    ]
    return [
        {**{key: m.get(key) for key in keys}, "content": content} for m, content in zip(messages, parts, strict=True)
    ]
