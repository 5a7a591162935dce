"""Rendering: gold ids with both encoders, drop policies, prefill, pieces, spans, the cache and as-parsed headers."""

import gzip
import json
from pathlib import Path

import pytest
from gptoss_harmony import (
    Conversation,
    DeveloperContent,
    Message,
    Renderer,
    RenderError,
    Role,
    SystemContent,
    Text,
    load_vocabulary,
    render,
    render_pieces,
    render_spans,
    render_text,
)
from gptoss_harmony.tokens import CALL, END, MESSAGE, RETURN, START, is_special

ROOT = Path(__file__).parents[3]
SHARED = next((folder for folder in (ROOT.parent / "shared", ROOT.parents[1] / "shared") if folder.is_dir()), None)
UPSTREAM = (
    [
        path
        for path in sorted(SHARED.glob("gold/harmony/test_*.json"))
        if "render" in json.loads(path.read_text("utf-8"))["kind"]
    ]
    if SHARED
    else []
)
VOCABULARY = load_vocabulary()
CACHES = {"tiktoken": 0, "toktok": 10**6}
RENDERERS = {name: Renderer(load_vocabulary(name), cache, form="role") for name, cache in CACHES.items()}
"""Gold is openai-harmony's: the form of the role."""

with gzip.open(ROOT / "tests/data/harmony/render_cases.jsonl.gz", "rt", encoding="utf-8") as lines:
    GOLD = [json.loads(line) for line in lines]


def encode_pieces(pieces) -> list[int]:
    return [i for piece in pieces for i in (VOCABULARY.encode(piece) if isinstance(piece, str) else [piece])]


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS)
def test_gold(renderer) -> None:
    assert len(GOLD) == 300
    for case in GOLD:
        conversation = Conversation.from_dict(case["conversation"])
        drop = "upstream" if case["auto_drop_analysis"] else "none"
        for _ in range(2):  # the second time from the cache
            assert render(conversation, case["next_turn_role"], drop=drop, renderer=renderer) == case["completion"], (
                case["id"]
            )
            assert render(conversation, mode="training", drop=drop, renderer=renderer) == case["training"], case["id"]
        assert (
            encode_pieces(render_pieces(conversation, case["next_turn_role"], drop=drop, form="role"))
            == case["completion"]
        )
        assert render_spans(conversation, drop=drop, renderer=renderer).ids == case["training"]
        assert render_text(conversation, case["next_turn_role"], drop=drop, form="role") == VOCABULARY.decode(
            case["completion"]
        )


@pytest.mark.parametrize("path", UPSTREAM, ids=lambda path: path.stem)
def test_upstream_files(path: Path) -> None:
    """The golden renderings of openai-harmony, which lie beside a checkout and are not part of it."""
    case = json.loads(path.read_text("utf-8"))
    config, expected = case["config"], case["expected_token_ids"]
    mode = "completion" if config["mode"] == "completion" else "plain"
    drop = "upstream" if config.get("auto_drop_analysis", True) else "none"
    conversation = Conversation.from_dict(case["conversation"])
    ids = render(conversation, config.get("next_turn_role") or "assistant", mode, drop=drop, form="role")
    assert ids[: -1 if config.get("drop_last_token") else None] == expected
    assert VOCABULARY.decode(expected).rstrip() == path.with_suffix(".txt").read_text("utf-8").rstrip()


def text_of(*messages: Message, **options) -> str:
    ids = render(messages, mode="plain", drop="none", **options)
    return VOCABULARY.decode(ids)


@pytest.mark.parametrize(
    ("message", "header", "end"),
    [
        (Message.user("x", "bob"), "user:bob", END),
        (Message.user("x", ""), "user:", END),
        (Message.tool("functions.f", "x"), "functions.f to=assistant<|channel|>commentary", END),
        (Message.tool("", "x", None, None), "", END),
        (Message.assistant("x", "final"), "assistant<|channel|>final", END),
        (Message.assistant("x", ""), "assistant<|channel|>", END),
        (Message.assistant("x", None, "f"), "assistant to=f", CALL),
        (Message.assistant("x", None, "all"), "assistant", CALL),
        (Message.assistant("x", None, ""), "assistant to=", CALL),
        (Message.assistant("x", "commentary", "f", "json"), "assistant to=f<|channel|>commentary json", CALL),
        (
            Message.assistant("x", "final", None, "<|constrain|>json"),
            "assistant<|channel|>final <|constrain|>json",
            END,
        ),
    ],
)
def test_header_forms(message: Message, header: str, end: int) -> None:
    assert text_of(message, form="role") == f"<|start|>{header}<|message|>x{VOCABULARY.decode([end])}"


@pytest.mark.parametrize(
    ("content_type", "ids"),
    [
        ("<|constrain|>json", [220, 200003, 4108]),
        ("<|constrain|> json", [220, 200003, 5701]),
        ("<|constrain|>", [220, 200003]),
        ("", [220]),
    ],
)
def test_content_type_ids(content_type: str, ids: list[int]) -> None:
    rendered = render([Message.assistant("x", "commentary", "f", content_type)], mode="plain", form="role")
    assert rendered[-3 - len(ids) :] == [*ids, 200008, 87, 200012]


def test_constrain_inside_a_content_type_is_text() -> None:
    rendered = render([Message.assistant("x", None, None, "foo<|constrain|>json")], mode="plain", form="role")
    assert [i for i in rendered if is_special(i)] == [START, MESSAGE, END]


def test_parts_are_encoded_one_by_one() -> None:
    two = Message(Role.USER, [Text("hel"), Text("lo")])
    assert render([two]) != render([Message.user("hello")])
    assert text_of(two) == text_of(Message.user("hello"))
    assert text_of(Message(Role.USER, [])) == "<|start|>user<|message|><|end|>"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Message(Role.TOOL, [Text("x")]), "Tools should have a name!"),
        (Message(Role.USER, [SystemContent()]), "SystemContent may only appear in system messages, found in User"),
        (
            Message(Role.SYSTEM, [DeveloperContent()]),
            "DeveloperContent may only appear in developer messages, found in System",
        ),
    ],
)
def test_render_errors(message: Message, error: str) -> None:
    for entry in (render, render_pieces, render_spans):
        with pytest.raises(RenderError, match=error):
            entry([message])


def test_unknown_choices_are_value_errors() -> None:
    with pytest.raises(ValueError, match="robot"):
        render([], "robot")
    with pytest.raises(ValueError, match="unknown drop policy"):
        render([], drop="all")


# --- dropping -------------------------------------------------------------------------------------------------------

U, A1, F1 = Message.user("u"), Message.assistant("a1", "analysis"), Message.assistant("f1", "final")
CALL1, RESULT = Message.assistant("{}", "commentary", "functions.f"), Message.tool("functions.f", "r")
A2, F2 = Message.assistant("a2", "analysis"), Message.assistant("f2", "final")


@pytest.mark.parametrize(
    ("messages", "upstream", "documented"),
    [
        ([U, A1, F1], [U, F1], [U, F1]),
        ([U, A1, F1, U, A2, F2], [U, F1, U, A2, F2], [U, F1, U, F2]),
        ([U, A1, F1, U, A2, CALL1, RESULT], [U, A1, F1, U, A2, CALL1, RESULT], [U, F1, U, A2, CALL1, RESULT]),
        ([U, A1, CALL1, RESULT], [U, A1, CALL1, RESULT], [U, A1, CALL1, RESULT]),
        ([U, A1, CALL1, RESULT, A2, F1], [U, CALL1, RESULT, F1], [U, CALL1, RESULT, F1]),
        ([], [], []),
    ],
)
def test_drop_policies(messages, upstream, documented) -> None:
    assert render(messages) == render(upstream, drop="none")
    assert render(messages, drop="documented") == render(documented, drop="none")
    assert render(messages, drop=lambda all_: [m.role == "user" for m in all_]) == render(
        [m for m in messages if m.role == "user"]
    )


# --- modes ----------------------------------------------------------------------------------------------------------


def test_training_ends_the_last_final_with_return() -> None:
    assert render([U, F1], mode="training")[-1] == RETURN
    assert render([U, F1], mode="plain")[-1] == END
    assert render([U, F1, U], mode="training")[-1] == END
    assert render([U, CALL1], mode="training")[-1] == CALL
    assert RETURN not in render([U, F1, U, F2], mode="training")[:-1]
    assert render([], mode="training") == []


def test_completion_opens_the_next_message() -> None:
    for role in Role:
        assert render([U], role)[len(render([U], mode="plain")) :] == [START, *VOCABULARY.encode(role.value)]


def test_prefill_opens_a_message_and_leaves_it_open() -> None:
    def tail(prefill: Message) -> str:
        ids = render([U], prefill=prefill)
        assert encode_pieces(render_pieces([U], prefill=prefill)) == ids
        return VOCABULARY.decode(ids[len(render([U], mode="plain")) :])

    assert tail(Message.assistant("", "final")) == "<|start|>assistant<|channel|>final<|message|>"
    assert tail(Message.assistant("Sure", "final")) == "<|start|>assistant<|channel|>final<|message|>Sure"
    forced = Message.assistant("", "commentary", "functions.f", "json")
    assert tail(forced) == "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


# --- spans ----------------------------------------------------------------------------------------------------------


def test_spans_and_loss_mask() -> None:
    rendering = render_spans([U, A1, CALL1, RESULT, F1], drop="none")
    pieces = [VOCABULARY.decode(rendering.ids[s.start : s.end]) for s in rendering.spans]
    assert "".join(pieces) == VOCABULARY.decode(rendering.ids)
    assert [s.message for s in rendering.spans] == [0, 1, 2, 3, 4]
    trained = [VOCABULARY.decode(rendering.ids[s.trained : s.end]) for s in rendering.spans if s.trained is not None]
    assert trained == [
        "<|channel|>analysis<|message|>a1<|end|>",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>final<|message|>f1<|return|>",
    ]
    masked = [i for i, counts in zip(rendering.ids, rendering.loss_mask, strict=True) if counts]
    assert VOCABULARY.decode(masked) == "".join(trained)


def test_only_chosen_messages_are_trained() -> None:
    rendering = render_spans([U, F1, U, F2], train=lambda m: m is F2)
    assert [s.trained is not None for s in rendering.spans] == [False, False, False, True]


def test_dropped_messages_have_no_span() -> None:
    assert [s.message for s in render_spans([U, A1, F1]).spans] == [0, 2]


@pytest.mark.parametrize("drop", ["upstream", "documented", "none"])
def test_stable_prefix_survives_the_answer(drop) -> None:
    for messages in ([U], [U, A1, CALL1, RESULT], [U, F1, U, A2, CALL1, RESULT], [U, A1, F1, U]):
        rendering = render_spans(messages, drop=drop)
        answered = render([*messages, F2], mode="plain", drop=drop)
        assert answered[: rendering.stable] == rendering.ids[: rendering.stable]
    assert render_spans([U, A1, CALL1], drop="upstream").stable == len(render([U], mode="plain"))
