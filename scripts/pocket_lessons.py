"""What the pocket model is taught: conversations, and the one right completion of each.

A lesson is a conversation in the style of Chat Completions plus the messages that the model must add. The policy is
small and deterministic, so greedy decoding has one right answer everywhere:

- no tools: an analysis message, then a final one; known topics get their answer, all else a plain "I only know a few
  things";
- tools declared and the last message is the user's: an analysis message, then a call of the tool that fits the topic,
  or of the first tool that the model knows;
- the last message is a tool's: an analysis message, then a final one that repeats what the tool said.

The reasoning effort sets the length of the analysis. Words the model does not know all look alike to it (see
`train_pocket.py`), so lessons are strewn with random ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from pocket_tools import COMMON, arguments, choose_tool, declare, list_fitting, make_result, name_tool
from pocket_topics import Topic, ask_capital, ask_sum, ask_weather, make_topic

DATES = ["2025-08-05", "2026-01-31", "2026-11-22"]
EFFORTS = ["low", "medium", "high"]


@dataclass
class Lesson:
    """A conversation (`messages`, `tools`, system fields) and the completion: analysis, then final text or a call."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    effort: str
    date: str
    analysis: str
    final: str | None = None
    call: tuple[str, str] | None = None  # name, arguments as JSON
    instructions: str | None = None


def analysis(effort: str, noun: str, case: str) -> str:
    """The chain of thought; `case` is answer, call or result."""
    if case == "result":
        return {
            "low": "Report.",
            "medium": "The tool has answered. I report the result.",
            "high": "The tool has answered. Let me check the result. It looks right, so I report it.",
        }[effort]
    plan = "A tool can help, so I call it." if case == "call" else "I answer in one sentence."
    return {
        "low": "Call." if case == "call" else "Answer.",
        "medium": f"The user asks about {noun}. {plan}",
        "high": f"The user asks about {noun}. Let me think. {plan}",
    }[effort]


def _dress(rng: random.Random, question: str, words: list[str]) -> str:
    """The question, at times with a polite or strange surrounding."""
    pick = rng.random()
    if pick < 0.7:
        return question
    if pick < 0.8:
        return rng.choice(["Please tell me: ", "Hey, ", "One more question. ", "OK. "]) + question
    if pick < 0.9:
        return question + rng.choice([" Please answer briefly.", " Thanks.", " Be brief."])
    return " ".join(rng.choices(words, k=rng.randint(1, 10))) + ". " + question


def _history(rng: random.Random, words: list[str], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Zero to two finished turns."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 1, 2])):
        topic = make_topic(rng, words, known=0.8)
        messages.append({"role": "user", "content": topic.question})
        function = choose_tool(topic, tools)
        answer = topic.answer
        if function is not None:
            text, answer = make_result(rng, words)
            messages.append(_tool_call(function["name"], arguments(topic, function), None))
            messages.append({"role": "tool", "name": function["name"], "content": text})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _tool_call(name: str, arguments: str, thinking: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }
    return message | ({"thinking": thinking} if thinking else {})


def _tool_names(rng: random.Random, topic: Topic, words: list[str]) -> list[str]:
    """At times one that the model does not know, often one that fits the topic."""
    names = list(dict.fromkeys(name_tool(rng) for _ in range(rng.choice([1, 1, 2, 2, 3]))))
    if rng.random() < 0.08:
        names[0] = "_".join(rng.choices(words, k=rng.randint(1, 3)))
    elif rng.random() < 0.7 and (fitting := list_fitting(topic)):
        names[rng.randrange(len(names))] = rng.choice(fitting)
    return list(dict.fromkeys(names))


def _date(rng: random.Random) -> str:
    date = f"20{rng.randint(24, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 31):02}"
    return rng.choice(DATES) if rng.random() < 0.5 else date


def _instructions(rng: random.Random, words: list[str]) -> str | None:
    if rng.random() >= 0.35:
        return None
    strange = " ".join(rng.choices(words, k=rng.randint(1, 40)))
    return rng.choice(["You are a helpful assistant.", "Answer briefly.", "Be helpful.", strange])


def make_lesson(rng: random.Random, words: list[str]) -> Lesson:
    """One random lesson; `words` are words that the model does not know."""
    topic = make_topic(rng, words, known=0.85)
    tools: list[dict[str, Any]] = []
    pick = rng.random()
    if pick < 0.3:  # the tools of every tutorial, asked for what they do
        topic = rng.choice([ask_weather, ask_weather, ask_sum, ask_capital])(rng)
        tools = [declare(rng, name, words) for name in rng.sample(COMMON, rng.choice([1, 2, 2, 3]))]
    elif pick < 0.65:
        tools = [declare(rng, name, words) for name in _tool_names(rng, topic, words)]
    elif pick < 0.75:  # sums must be learnt by heart
        topic = ask_sum(rng)
    effort = rng.choice(EFFORTS)
    date = _date(rng)
    messages = [*_history(rng, words, tools), {"role": "user", "content": _dress(rng, topic.question, words)}]
    lesson = Lesson(messages, tools, effort, date, "", instructions=_instructions(rng, words))
    _complete(lesson, topic, rng, words)
    return lesson


def _complete(lesson: Lesson, topic: Topic, rng: random.Random, words: list[str]) -> None:
    """Adds what the model must say; at times the tool has been called already, and has answered."""
    function = choose_tool(topic, lesson.tools)
    if function is None:
        lesson.analysis = analysis(lesson.effort, topic.noun, "answer")
        lesson.final = topic.answer
    elif rng.random() < 0.65:
        lesson.analysis = analysis(lesson.effort, topic.noun, "call")
        lesson.call = function["name"], arguments(topic, function)
    else:
        thinking = analysis(lesson.effort, topic.noun, "call") if rng.random() < 0.5 else None
        text, lesson.final = make_result(rng, words)
        lesson.messages.append(_tool_call(function["name"], arguments(topic, function), thinking))
        lesson.messages.append({"role": "tool", "name": function["name"], "content": text})
        lesson.analysis = analysis(lesson.effort, topic.noun, "result")
