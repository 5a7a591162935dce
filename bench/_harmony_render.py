"""Benchmark of rendering, of loading the vocabulary and of importing, against openai_harmony in the same process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import openai_harmony
from _harmony_texts import KINDS, texts
from gptoss_harmony import Conversation, Renderer, load_vocabulary, render
from helpers.harmony_oracle import oracle

SIZES = (10, 100, 1000)
TARGETS = {"tiktoken": 5.0, "fast": 25.0, "cached": 100.0}
"""How many times faster than openai_harmony each way must be; `appended` has no promise."""

WINDOW = 0.05
"""CPU seconds that each way is run for at a time, so that all are measured equally warm."""

SCHEMA = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "City and country"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "integer", "description": "How far to look ahead"},
    },
    "required": ["location"],
}


def conversation_json(kind: str, size: int) -> dict[str, Any]:
    """System, developer with two tools, then turns of user / analysis / call / result / final of 620 characters
    each.
    """
    tools = [
        {"name": name, "description": f"Use {name} to look things up.", "parameters": SCHEMA}
        for name in ("weather", "search")
    ]
    functions = {"functions": {"name": "functions", "description": None, "tools": tools}}
    system = {"type": "system_content", "conversation_start_date": "2025-06-28"}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [system]},
        {
            "role": "developer",
            "content": [{"type": "developer_content", "instructions": "Be brief.", "tools": functions}],
        },
    ]
    turn: list[dict[str, Any]] = [
        {"role": "user"},
        {"role": "assistant", "channel": "analysis"},
        {
            "role": "assistant",
            "channel": "commentary",
            "recipient": "functions.search",
            "content_type": "<|constrain|>json",
        },
        {"role": "tool", "name": "functions.search", "channel": "commentary", "recipient": "assistant"},
        {"role": "assistant", "channel": "final"},
    ]
    for i, text in enumerate(texts(kind, size - len(messages), 620)):
        messages.append({**turn[i % 5], "content": [{"type": "text", "text": text}]})
    return {"messages": messages}


def render_rows(repeats: int) -> list[dict[str, Any]]:
    """One row per way and size, with a cell per kind of text: the best CPU times, and the median over `repeats` of the
    ratio of two times taken one after the other (so that a machine that is slower for a while slows down both)."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for size in SIZES:
        for kind in KINDS:
            seconds, tokens = _cell(conversation_json(kind, size), repeats)
            theirs = seconds["openai_harmony"]
            for way in ("tiktoken", "fast", "cached", "appended"):
                row = rows.setdefault(
                    (way, size), {"what": f"render, {way}", "messages": size, "target": TARGETS.get(way), "cells": {}}
                )
                ratio = median(them / us for them, us in zip(theirs, seconds[way], strict=True))
                row["cells"][kind] = {
                    "ratio": ratio,
                    "seconds": min(seconds[way]),
                    "openai_harmony_seconds": min(theirs),
                    "tokens": tokens,
                }
    return [rows[way, size] for way in ("tiktoken", "fast", "cached", "appended") for size in SIZES]


def _cell(data: dict[str, Any], repeats: int) -> tuple[dict[str, list[float]], int]:
    theirs = openai_harmony.Conversation(messages=[openai_harmony.Message.from_dict(m) for m in data["messages"]])
    ours = Conversation.from_dict(data)
    renderers = {
        way: Renderer(load_vocabulary(encoder), 0, form="role")
        for way, encoder in (("tiktoken", "tiktoken"), ("fast", "toktok"))
    }
    chat = Renderer(load_vocabulary("toktok"), form="role")
    expected = oracle().render_conversation_for_completion(theirs, openai_harmony.Role.ASSISTANT)
    ways: dict[str, Callable[[], list[int]]] = {
        "openai_harmony": lambda: oracle().render_conversation_for_completion(theirs, openai_harmony.Role.ASSISTANT),
        "tiktoken": lambda: render(ours, renderer=renderers["tiktoken"]),
        "fast": lambda: render(ours, renderer=renderers["fast"]),
        "cached": lambda: render(ours, renderer=chat),
    }
    assert all(way() == expected for way in ways.values())
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "appended"]}
    loops = {name: int(WINDOW / cpu_time(way, 1)) + 1 for name, way in ways.items()}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(cpu_time(way, loops[name]))
        seconds["appended"].append(_appended(ours))
    return seconds, len(expected)


def _appended(conversation: Conversation) -> float:
    """One render of a chat of which all messages but the last have been rendered before."""
    renderer = Renderer(load_vocabulary("toktok"), form="role")
    render(conversation.messages[:-1], renderer=renderer)
    return cpu_time(lambda: render(conversation, renderer=renderer), 1)


def cpu_time(work: Callable[[], object], loops: int) -> float:
    """CPU seconds of one call, averaged over `loops`."""
    begin = time.process_time()
    for _ in range(loops):
        work()
    return (time.process_time() - begin) / loops


STARTS = {
    "import gptoss_harmony": ("from gptoss_harmony import Message, render", 0.05),
    "import openai_harmony": ("import openai_harmony", None),
    "load vocabulary: decode": ("gptoss_harmony.load_vocabulary().decode([0])", 0.3),
    "load vocabulary: encode, tiktoken": ("gptoss_harmony.load_vocabulary('tiktoken').encode('x')", 0.3),
    "load vocabulary: encode, fast": ("gptoss_harmony.load_vocabulary('toktok').encode('x')", None),
    "load vocabulary: openai_harmony": ("helpers.harmony_oracle.oracle()", None),
}
"""What -> (statement, CPU seconds promised)."""


def start_rows(repeats: int) -> list[dict[str, Any]]:
    """CPU seconds in fresh interpreters, best of `repeats`, interleaved."""
    best = dict.fromkeys(STARTS, float("inf"))
    for _ in range(repeats):
        for what, (statement, _) in STARTS.items():
            best[what] = min(best[what], _fresh_cpu_time(what, statement))
    return [{"what": what, "seconds": best[what], "limit": limit} for what, (_, limit) in STARTS.items()]


def _fresh_cpu_time(what: str, statement: str) -> float:
    imports = "" if what.startswith("import") else "import gptoss_harmony.vocabulary, helpers.harmony_oracle\n"
    if "openai" in what and imports:
        imports += "import openai_harmony; gptoss_harmony.vocabulary.published_file()\n"
    code = (
        f"import sys, time\nsys.path[:0] = {sys.path!r}\n{imports}t = time.process_time()\n{statement}\n"
        "print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
