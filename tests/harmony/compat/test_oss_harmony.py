"""compat.oss_harmony against ids that oss-harmony 0.0.11 made of the gold conversations."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence

import pytest
from gptoss_harmony import Conversation, Message, parse
from gptoss_harmony.compat import openai_harmony, oss_harmony
from gptoss_harmony.rendering.renderer import render, render_pieces, render_text
from helpers.outputs import DATA

EXPONENTS = ["r033", "r078", "r101", "r159", "r171", "r205", "r297"]
"""Their schemas have large numbers: the fork writes 1e+20 where 0.0.8, and we, write 1e20."""


def digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def test_the_gold_conversations() -> None:
    digests = [json.loads(line) for line in (DATA / "oss_render_digests.jsonl").read_text("utf-8").splitlines()]
    with gzip.open(DATA / "render_cases.jsonl.gz", "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert [case["id"] for case in cases] == [row["id"] for row in digests]
    changed = 0
    others = []
    for case, row in zip(cases, digests, strict=True):
        conversation = Conversation.from_dict(case["conversation"])
        drop = "upstream" if case["auto_drop_analysis"] else "none"
        ids = render(conversation, case["next_turn_role"], drop=drop, form="channel")
        trained = render(conversation, mode="training", drop=drop, form="channel")
        if (digest(ids), digest(trained)) != (row["completion"], row["training"]):
            others.append(case["id"])
        changed += ids != case["completion"]
    assert others == EXPONENTS
    assert changed > 150  # the two forms are two


CALL = Message.assistant("{}", "commentary", "functions.f", "json")
RESULT = Message.tool("functions.f", "r")
TEXTS = [
    (CALL, "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"),
    (RESULT, "<|start|>functions.f<|channel|>commentary to=assistant<|message|>r<|end|>"),
    (
        Message.assistant("1", "analysis", "python", "code"),
        "<|start|>assistant to=python<|channel|>analysis <|constrain|>code<|message|>1<|call|>",
    ),
    (
        Message.assistant("x", "final", content_type=""),
        "<|start|>assistant<|channel|>final <|constrain|><|message|>x<|end|>",
    ),
]


@pytest.mark.parametrize(("message", "text"), TEXTS)
def test_the_form_in_words(message: Message, text: str) -> None:
    assert render_text([message], mode="plain", form="channel") == text
    ids = render([message], mode="plain", form="channel")
    (again,) = parse(ids, None)
    assert (again.channel, again.recipient, again.text) == (message.channel, message.recipient, message.text)
    assert "to=" not in text or render_pieces([message], mode="plain") != render_pieces(
        [message], mode="plain", form="role"
    )


def test_both_references_have_the_same_names() -> None:
    assert oss_harmony.__all__ == openai_harmony.__all__
    call = (
        oss_harmony.Message.from_role_and_content(oss_harmony.Role.ASSISTANT, "{}")
        .with_channel("commentary")
        .with_recipient("functions.f")
        .with_content_type("<|constrain|>json")
    )
    ids = [module.load_harmony_encoding("HarmonyGptOss").render(call) for module in (openai_harmony, oss_harmony)]
    ours = Message.assistant("{}", "commentary", "functions.f", "<|constrain|>json")
    assert ids[0] == render([ours], mode="plain", form="role")
    assert ids[1] == render([ours], mode="plain") == render([CALL], mode="plain", form="channel")
    with pytest.raises(ValueError, match="Invalid"):
        oss_harmony.load_harmony_encoding("other")
