"""Lessons as token ids: the prompt by our renderer or by the published Jinja template, and the completion."""

from __future__ import annotations

import json
import re
from typing import Any

from gptoss_harmony import (
    DeveloperContent,
    Message,
    ReasoningEffort,
    SystemContent,
    Tool,
    ToolNamespace,
    load_vocabulary,
    render,
)
from gptoss_harmony.rendering.pieces import Form
from gptoss_harmony.tokens import SPECIAL_TOKENS
from pocket_lessons import Lesson

from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE

CONTROL = re.compile(
    "("
    + "|".join(
        re.escape(f"<|{name}|>") for name in ("start", "end", "message", "channel", "constrain", "call", "return")
    )
    + ")"
)


def encode(text: str) -> list[int]:
    """Ids of a text in which special tokens are written out, as a tokenizer behind a chat template does it."""
    vocabulary, ids = load_vocabulary(), list[int]()
    for piece in CONTROL.split(text):
        ids += [SPECIAL_TOKENS[piece]] if piece in SPECIAL_TOKENS else vocabulary.encode(piece)
    return ids


def by_harmony(lesson: Lesson, form: Form = "channel") -> list[int]:
    """The prompt that `gptoss_harmony.render` makes. The model was trained on headers of the form of the role."""
    system = SystemContent(
        reasoning_effort=ReasoningEffort(lesson.effort.capitalize()), conversation_start_date=lesson.date
    )
    messages = [Message.system(system)]
    functions = [tool["function"] for tool in lesson.tools]
    if functions or lesson.instructions:
        tools = [Tool(f["name"], f["description"], f["parameters"]) for f in functions]
        messages.append(
            Message.developer(
                DeveloperContent(lesson.instructions, {"functions": ToolNamespace.functions(tools)} if tools else None)
            )
        )
    return render(messages + [part for message in lesson.messages for part in _harmony(message)], form=form)


def _harmony(message: dict[str, Any]) -> list[Message]:
    if message["role"] == "user":
        return [Message.user(message["content"])]
    if message["role"] == "tool":
        return [Message.tool("functions." + message["name"], message["content"])]
    if "tool_calls" not in message:
        return [Message.assistant(message["content"], "final")]
    call = message["tool_calls"][0]["function"]
    thinking = [Message.assistant(message["thinking"], "analysis")] if "thinking" in message else []
    return [
        *thinking,
        Message.assistant(call["arguments"], "commentary", "functions." + call["name"], "<|constrain|>json"),
    ]


class Template:
    """The prompt that the published chat template makes, rendered as transformers does."""

    def __init__(self) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self.template = environment.from_string(CHAT_TEMPLATE.read_text())

    def __call__(self, lesson: Lesson) -> list[int]:
        messages = [{"role": "system", "content": lesson.instructions}] if lesson.instructions else []
        text = self.template.render(
            messages=messages + lesson.messages,
            tools=lesson.tools or None,
            reasoning_effort=lesson.effort,
            add_generation_prompt=True,
            strftime_now=lambda form: lesson.date,
        )
        return encode(text)


def completion(lesson: Lesson) -> str:
    """What the model must say after `<|start|>assistant`, special tokens written out."""
    text = f"<|channel|>analysis<|message|>{lesson.analysis}<|end|><|start|>assistant" if lesson.analysis else ""
    if lesson.call:
        name, arguments = lesson.call
        return text + f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    return text + f"<|channel|>final<|message|>{lesson.final}<|return|>"


def strange_words() -> list[str]:
    """Some 13 000 short words of the vocabulary, for the lessons to be strewn with."""
    tokens = load_vocabulary().token_bytes[1000:60000]
    return [token[1:].decode() for token in tokens if re.fullmatch(rb" [a-z]{3,9}", token)]
