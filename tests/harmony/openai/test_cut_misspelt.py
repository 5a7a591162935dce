"""Answers whose headers are misspelt, given up or repeated, cut after every token: what is meant is called, and no
word of a header is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from gptoss_harmony import parse
from gptoss_harmony.openai import chat_completions, responses
from gptoss_harmony.openai.chat_completions import ChatStream
from gptoss_harmony.openai.messages_api import MessagesRequest
from gptoss_harmony.openai.messages_stream import MessagesStream
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import MESSAGE
from helpers.tool_answers import NAMES, TOOLS, to_ids

SPACES = ("functions.", "functions.", "functions/", "function.", "functions.functions.", "")
TYPES = ("", " json", "json", " <|constrain|>json", "<|constrain|>json", " code", "<|constrain|>commentary")
STRAY = ("commentary", "analysis", "<|call|>commentary", " final", "analysisanalysis", "jsoncommentary")
THOUGHT = "zz zz"
ARGUMENTS = '{"q": "zz"}'
FOR_MESSAGES = [{"name": name, "input_schema": {"type": "object"}} for name in NAMES]


@dataclass(frozen=True)
class Output:
    text: str
    calls: tuple[str, ...]  # names of the tools that it calls


def make_header(name: str, rng: Random) -> str:
    """Of a call of `name`, as models have written such headers."""
    written = rng.choice((name, name, name.upper(), f"{name}?", f"{name}\u200b", f" {name}"))
    recipient = rng.choice((" to=", " to= ", "  to=")) + rng.choice(SPACES) + written
    kind = rng.choice(TYPES)
    channel = rng.choice(("commentary", "analysis"))
    return rng.choice(
        (
            f"{recipient}<|channel|>{channel}{kind}",
            f"<|channel|>{channel}{recipient}{kind}",
            f"<|channel|>{channel}<|channel|>{channel}{recipient}{kind}",
            f"<|channel|>{name}<|channel|>{channel} json",
            f"<|channel|>{channel}{recipient}<|channel|>{channel}{kind}",
        )
    )


def make_output(rng: Random) -> Output:
    texts, calls = [], []
    for at in range(rng.randrange(1, 4)):
        start = "<|start|>assistant" if at else ""
        name = rng.choice(NAMES)
        kind = rng.choice(("call", "call", "given up", "thought", "stray"))
        if kind == "call":
            texts.append(f"{start}{make_header(name, rng)}<|message|>{ARGUMENTS}<|call|>")
            calls.append(name)
        elif kind == "given up":
            texts.append(start + make_header(name, rng) + rng.choice(("<|end|>", "<|call|>", "")))
        elif kind == "thought":
            texts.append(f"{start}<|channel|>analysis<|message|>{THOUGHT}<|end|>")
        elif at:
            texts.append(rng.choice(STRAY))
    return Output("".join(texts), tuple(calls))


def show_chat(ids: list[int]) -> list[tuple[str | None, str | None, list[str]]]:
    """(reasoning, content, names called), whole and streamed."""
    stream = ChatStream("m", 1, TOOLS)
    stream.feed(ids)
    stream.finish()
    whole = chat_completions.from_messages(parse(ids, tools=ToolTable(TOOLS).namespaces()), TOOLS)
    return [
        (m["reasoning_content"], m["content"], [call["function"]["name"] for call in m.get("tool_calls", ())])
        for m in (whole, stream.message)
    ]


def show_others(ids: list[int]) -> list[tuple[set[str], list[str]]]:
    """(texts, names called) in Responses, whole and streamed, and in Messages."""
    stream = ResponseStream({"output": []}, TOOLS)
    stream.feed(ids)
    stream.finish()
    whole = responses.from_messages(parse(ids, tools=ToolTable(TOOLS).namespaces()), TOOLS)
    request = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "tools": FOR_MESSAGES}
    messages = MessagesStream(MessagesRequest(request), "m")
    messages.feed(ids)
    blocks = messages.message["content"]
    shown = [
        (
            {part["text"] for item in items for part in item.get("content", ())},
            [item["name"] for item in items if item["type"] == "function_call"],
        )
        for items in (whole, stream.response["output"])
    ]
    texts = {block.get("text") or block.get("thinking") for block in blocks if block["type"] != "tool_use"}
    return [*shown, (texts, [block["name"] for block in blocks if block["type"] == "tool_use"])]


@pytest.mark.parametrize("outputs", [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_word_of_a_misspelt_header_is_shown(outputs: int) -> None:
    rng = Random(17)
    for _ in range(outputs):
        output = make_output(rng)
        ids = to_ids(output.text)
        for cut in range(len(ids) + 1):
            written = ids[:cut]
            opened = written.count(MESSAGE)
            for reasoning, content, calls in show_chat(written):
                assert content is None, (output.text, cut, content)
                assert not set((reasoning or "").split()) - {"z", "zz"}, (output.text, cut, reasoning)
                assert len(calls) <= opened, (output.text, cut, calls)
                assert calls == list(output.calls[: len(calls)]), (output.text, cut)
            for texts, calls in show_others(written):
                assert not set("".join(texts).split()) - {"z", "zz", "zzzz"}, (output.text, cut, texts)
                assert calls == list(output.calls[: len(calls)]), (output.text, cut)
        assert calls == list(output.calls), output.text
