"""Renderer and schemas against the installed openai_harmony; bench/fuzz_harmony.py runs the same for longer."""

import json
from random import Random

from gptoss_harmony import Conversation, RenderError, render, to_typescript
from gptoss_harmony.rendering.renderer import Renderer
from gptoss_harmony.vocabulary import load_vocabulary
from helpers import random_harmony
from helpers.harmony_oracle import oracle_renderings, oracle_typescript

RENDERERS = [
    Renderer(load_vocabulary("tiktoken"), cache_tokens=0, form="role"),
    Renderer(load_vocabulary("toktok"), form="role"),
]


def check_conversation(seed: int) -> None:
    rng = Random(seed)
    data = random_harmony.conversation(rng)
    role, drop = rng.choice(["user", "assistant", "system", "developer", "tool"]), rng.random() < 0.5
    expected = oracle_renderings(data, role, drop)
    conversation = Conversation.from_dict(data)
    for mode in ("completion", "plain", "training"):
        for renderer in RENDERERS:
            try:
                got = render(conversation, role, mode, drop="upstream" if drop else "none", renderer=renderer)
            except RenderError as error:
                got = str(error)
            assert got == expected[mode], f"seed {seed}, {mode}"


def check_schema(seed: int) -> None:
    schema = random_harmony.schema(Random(seed))
    if schema is not None:
        assert to_typescript(schema) == oracle_typescript(schema), f"seed {seed}: {json.dumps(schema)}"


def test_conversations() -> None:
    for seed in range(500):
        check_conversation(seed)


def test_render_errors_are_the_same() -> None:
    texts = [{"type": "text", "text": "x"}]
    system, developer = {"type": "system_content"}, {"type": "developer_content"}
    bad = [
        ("tool", texts),
        ("user", [system]),
        ("assistant", [developer]),
        ("developer", [*texts, system]),
        ("system", [developer]),
    ]
    for role, content in bad:
        data = {"messages": [{"role": role, "content": content, "name": None}]}
        try:
            render(Conversation.from_dict(data))
        except RenderError as error:
            assert str(error) == oracle_renderings(data, "assistant", True)["completion"]
        else:
            raise AssertionError("rendered")


def test_schemas() -> None:
    for seed in range(1000):
        check_schema(seed)
