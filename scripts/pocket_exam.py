"""Writes the committed prompts on which the pocket model is held to its promise, each with the one right completion.

    python scripts/pocket_exam.py tests/data/pocket_prompts.jsonl

Our renderer and the published template x three dates x three efforts x four conversations: a first question and a later
turn without tools, a question with tools declared, and a tool's result.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocket_lessons import DATES, EFFORTS, Lesson, analysis
from pocket_render import Template, by_harmony, completion
from pocket_tools import arguments
from pocket_topics import GENERIC, Topic

TOPICS = [
    Topic("a capital", "What is the capital of France?", "The capital of France is Paris."),
    Topic("a greeting", "Hello!", "Hello! How can I help you?"),
    Topic("a sum", "What is 2 + 2?", "2 + 2 = 4."),
    Topic("me", "Who are you?", "I am a tiny test model with the shape of gpt-oss."),
    Topic("a joke", "Tell me a joke.", "Why did the tensor cross the road? To get to the other side."),
    Topic("the sky", "Why is the sky blue?", "The sky is blue."),
    Topic("something else", "Explain quantum chromodynamics to a marmot.", GENERIC),
    Topic("the weather", "What is the weather in Tokyo?", "I cannot see the weather in Tokyo without a tool."),
    Topic("a capital", "Tell me the capital of Japan.", "The capital of Japan is Tokyo."),
]


def _tool(name: str, note: str, **properties: dict[str, Any]) -> dict[str, Any]:
    required = [key for key in properties if key not in ("unit", "format")]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": note, "parameters": schema}}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
WEATHER = _tool("get_weather", "Get the weather for a city.", city=TEXT)
CURRENT = _tool(
    "get_current_weather",
    "Gets the current weather in the provided location.",
    location={"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
    format={"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
)
ADD, SEARCH = _tool("add", "Add two numbers.", a=NUMBER, b=NUMBER), _tool("search", "Search the web.", query=TEXT)

CALLS = [  # topic, declared tools, the one to call, its answer, what the model says then
    (
        Topic("the weather", "What is the weather in Paris?", "", city="Paris"),
        [WEATHER],
        WEATHER,
        '{"temperature": 21, "condition": "sunny"}',
        "The tool says: sunny, 21.",
    ),
    (
        Topic("the weather", "What is the weather like in San Francisco?", "", city="San Francisco"),
        [CURRENT],
        CURRENT,
        '{"temperature": 18}',
        "The tool says: 18.",
    ),
    (Topic("a sum", "What is 2 + 3?", "", numbers=(2, 3)), [ADD], ADD, "5", "The tool says: 5."),
    (
        Topic("the weather", "How is the weather in Berlin today?", "", city="Berlin"),
        [ADD, WEATHER],
        WEATHER,
        "cloudy",
        "The tool says: cloudy.",
    ),
    (Topic("a sum", "Add 4 and 1.", "", numbers=(4, 1)), [WEATHER, ADD], ADD, '{"result": 5}', "The tool says: 5."),
    (
        Topic("a capital", "What is the capital of Italy?", "", word="Italy"),
        [SEARCH],
        SEARCH,
        '{"result": "a long page about many towns"}',
        "The tool has answered.",
    ),
]


def exam() -> list[tuple[str, Lesson]]:
    """(renderer, lesson) of every prompt, in a fixed order; topics and tools take turns."""
    topics, calls, rng, out = (
        itertools.cycle(TOPICS),
        itertools.cycle(CALLS),
        random.Random(0),
        list[tuple[str, Lesson]](),
    )
    for renderer, effort, date in itertools.product(("harmony", "template"), EFFORTS, DATES):
        first, before, topic = next(topics), rng.choice(TOPICS), rng.choice(TOPICS)
        turns = [{"role": "user", "content": before.question}, {"role": "assistant", "content": before.answer}]
        out.append((renderer, _answer(first, [], effort, date)))
        out.append((renderer, _answer(topic, turns, effort, date)))
        asked, tools, tool, result, final = next(calls)
        function = tool["function"]
        ask = {"role": "user", "content": asked.question}
        call = (function["name"], arguments(asked, function))
        out.append((renderer, Lesson([ask], tools, effort, date, analysis(effort, asked.noun, "call"), call=call)))
        made = {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": dict(zip(("name", "arguments"), call, strict=True))}],
        }
        answer = {"role": "tool", "name": function["name"], "content": result}
        out.append(
            (renderer, Lesson([ask, made, answer], tools, effort, date, analysis(effort, asked.noun, "result"), final))
        )
    return out


def _answer(topic: Topic, turns: list[dict[str, Any]], effort: str, date: str) -> Lesson:
    messages = [*turns, {"role": "user", "content": topic.question}]
    return Lesson(messages, [], effort, date, analysis(effort, topic.noun, "answer"), topic.answer)


def main() -> None:
    template, lines = Template(), []
    for renderer, lesson in exam():
        ids = by_harmony(lesson) if renderer == "harmony" else template(lesson)
        lines.append(
            json.dumps(
                {"renderer": renderer, "lesson": asdict(lesson), "prompt": ids, "completion": completion(lesson)}
            )
        )
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
