"""Headers held to what a turn allows: what is let through, against the whole vocabulary, and in a sampler."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from gptoss_harmony import Tool, ToolNamespace, load_vocabulary
from gptoss_harmony.grammars.grammar import Turn
from gptoss_harmony.grammars.headers import HeaderGuard, list_headers
from gptoss_harmony.tokens import CALL, END, MESSAGE, START
from helpers.tool_answers import TOOLS, make_answer, to_ids

from gptoss_adapters.backends.protocol import Request
from gptoss_adapters.backends.sampling import Sampler

NAMES = [tool["function"]["name"] for tool in TOOLS]
TURN = Turn(
    tuple(Tool(name) for name in NAMES), ("browser", "python"), namespaces=(ToolNamespace("files", None, [Tool("ls")]),)
)
HEADERS = list_headers(TURN)


def passes(guard: HeaderGuard, ids: list[int]) -> bool:
    for token in ids:
        if not guard.allows(token):
            return False
        guard.accept(token)
    return True


def test_what_models_write_passes() -> None:
    """Answers of every form that gpt-oss has for a call, with any text in them."""
    for seed in range(200):
        parts = make_answer(Random(seed))
        assert passes(HeaderGuard(HEADERS), [i for part in parts for i in (*part.header, *part.body, part.end)]), seed


@pytest.mark.parametrize(
    ("output", "good"),
    [
        ('<|channel|>commentary to=files.ls <|constrain|>json<|message|>{"a": "<|x"}<|call|>', True),
        ("<|channel|>analysis to=python code<|message|>1<|call|>", True),
        ("<|channel|>final<|message|>any <|konstrain|> text to=functions.none", True),
        ("<|channel|>commentary to=functions.nothing<|message|>", False),
        ("<|channel|>commentary to=functions.get_weathe<|message|>", False),
        ("<|channel|>commentary to=functions.get_weather <|channel|>", False),
        ("<|channel|>commentary to=container.exec<|message|>", False),
        ("<|channel|>comment<|message|>", False),
        ("hello", False),
        ("<|return|>", False),
        ("<|channel|>analysis<|message|>x<|end|><|start|>user<|message|>", False),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant to=files.ls<|channel|>commentary<|message|>", True),
    ],
)
def test_only_headers_are_held(output: str, good: bool) -> None:
    assert passes(HeaderGuard(HEADERS), to_ids(output)) == good


@pytest.mark.parametrize("reasoning", [True, False])
def test_a_turn_without_tools(reasoning: bool) -> None:
    headers = list_headers(Turn(reasoning=reasoning))
    assert passes(HeaderGuard(headers), to_ids("<|channel|>analysis<|message|>")) == reasoning
    assert not passes(HeaderGuard(headers), to_ids(" to=functions.f"))
    called = list_headers(Turn((Tool("f"),), final=None))
    assert not passes(HeaderGuard(called), to_ids("<|channel|>final"))


def test_all_that_is_allowed_is_listed() -> None:
    """Against each token of the vocabulary, at every place of some headers."""
    for start in (" to=functions.get_weather<|channel|>comm", "<|channel|>analysis<|message|>x<|end|><|start|>assist"):
        ids = to_ids(start)
        guard = HeaderGuard(HEADERS)
        for token in [*ids, None]:
            if guard.allows(START) is False:  # inside a header
                every = {i for i in range(len(load_vocabulary().token_bytes)) if guard.allows(i)}
                assert every == set(guard.list_allowed()) and every
            if token is not None:
                guard.accept(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_sampler_writes_declared_headers_only(temperature: float) -> None:
    """Random logits, in which texts are short: every header of what is drawn is one of the list."""
    random = np.random.default_rng(5)
    request = Request([1], temperature=temperature, seed=3, headers=HEADERS, logit_bias=[(CALL, -50.0)], top_p=0.9)
    sampler = Sampler(request)
    ids = [MESSAGE]
    for _ in range(250):
        logits = random.normal(size=201_088).astype(np.float32)
        logits[START if ids[-1] == END else END] += 30
        chosen = sampler.pick(logits)
        sampler.token(chosen, logits)
        ids.append(chosen)
    text = load_vocabulary().decode(ids[1:])
    headers = [part.partition("<|message|>") for part in ("assistant" + text).split("<|start|>")]
    whole = [head + mark for head, mark, _ in headers if mark]
    assert len(whole) > 3 and all(head.removeprefix("assistant") in HEADERS for head in whole)
