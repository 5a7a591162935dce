"""The tools of the pocket model's lessons, and what they answer.

Names are put together from known words, parameters too; the arguments follow the declaration.
"""

from __future__ import annotations

import json
import random
from typing import Any

from pocket_topics import Topic

SKIES = ["sunny", "cloudy", "rainy", "windy", "snowy"]

VERBS = [
    "get",
    "get",
    "get",
    "get_current",
    "search",
    "find",
    "fetch",
    "list",
    "create",
    "send",
    "add",
    "calculate",
    "lookup",
    "convert",
    "check",
    "set",
    "book",
    "roll",
]

NOUNS = [
    "weather",
    "weather",
    "time",
    "user",
    "price",
    "stock",
    "date",
    "email",
    "flight",
    "news",
    "data",
    "temperature",
    "city",
    "name",
    "web",
    "file",
    "order",
    "dice",
]

NAMES = [
    "get_weather",
    "get_weather",
    "get_current_weather",
    "get_temperature",
    "get_time",
    "get_current_time",
    "search",
    "web_search",
    "search_web",
    "lookup",
    "add",
    "multiply",
    "calculator",
    "calculate",
    "get_date",
    "ping",
]

COMMON = ["get_weather", "get_current_weather", "add", "search"]

FITS = {
    "the weather": ("weather", "temperature"),
    "the time": ("time",),
    "a sum": ("add", "calculat"),
    "a product": ("multiply", "calculat"),
    "something else": ("search", "lookup"),
    "a capital": ("search", "lookup"),
}

STRINGS = [
    "location",
    "city",
    "query",
    "q",
    "expression",
    "text",
    "name",
    "id",
    "date",
    "timezone",
    "message",
    "title",
    "topic",
    "symbol",
    "language",
    "url",
    "path",
    "user_id",
    "email",
]

NUMBERS = ["a", "b", "x", "y", "count", "limit", "number", "value", "n"]

BOOLEANS = ["verbose", "exact"]

USUAL = {
    "weather": ["location", "location", "city"],
    "temperature": ["location", "city"],
    "time": ["city", "location", "timezone"],
    "search": ["query", "query", "q"],
    "lookup": ["query", "q", "text"],
    "calculat": ["expression"],
}

NOTES = [
    "Gets the current weather in the provided location.",
    "Get the weather for a city.",
    "Get current weather",
    "Get the current time.",
    "Search the web.",
    "Looks something up.",
    "Add two numbers.",
    "Multiply two numbers.",
    "Evaluate an expression.",
    "Returns something.",
    "Takes no arguments.",
    "Does something.",
]

ENUMS = {"unit": ["celsius", "fahrenheit"], "format": ["celsius", "fahrenheit"]}


def name_tool(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.5 else f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"


def choose_parameters(rng: random.Random, name: str) -> dict[str, dict[str, Any]]:
    """The required parameters of a tool: the usual ones of its name, or any."""
    usual = [names for part, names in USUAL.items() if part in name]
    if name in ("add", "multiply"):
        return {
            p: {"type": rng.choice(["number", "integer"])} for p in rng.choice([["a", "b"], ["a", "b"], ["x", "y"]])
        }
    if name in ("get_date", "ping"):
        return {}
    if usual and rng.random() < (0.8 if name in COMMON else 0.6):
        chosen: dict[str, dict[str, Any]] = {rng.choice(usual[0]): {"type": "string"}}
    else:
        strings, numbers = rng.sample(STRINGS, rng.choice([0, 1, 1, 2])), rng.sample(NUMBERS, rng.choice([0, 0, 1, 2]))
        pairs = (
            [(p, "string") for p in strings]
            + [(p, rng.choice(["number", "integer"])) for p in numbers]
            + [(p, "boolean") for p in BOOLEANS if rng.random() < 0.05]
        )
        rng.shuffle(pairs)
        chosen = {p: {"type": kind} for p, kind in pairs[:3]}
    if rng.random() < 0.12:
        unit = rng.choice(list(ENUMS))
        chosen[unit] = {"type": "string", "enum": ENUMS[unit]}
    return chosen


def declare(rng: random.Random, name: str, words: list[str]) -> dict[str, Any]:
    """The Chat Completions declaration of a tool, at times with descriptions and with an optional parameter."""
    properties = choose_parameters(rng, name)
    required = list(properties)
    if rng.random() < 0.4:
        for parameter in properties.values():
            parameter["description"] = rng.choice(
                [
                    "The city and state, e.g. San Francisco, CA",
                    "City name",
                    "What to use",
                    " ".join(rng.choices(words, k=rng.randint(1, 6))),
                ]
            )
    if rng.random() < 0.25:
        extra = rng.choice([*ENUMS, "limit", "language", rng.choice(words)])
        properties.setdefault(
            extra,
            {"type": "string", "enum": ENUMS[extra]} if extra in ENUMS else {"type": rng.choice(["string", "integer"])},
        )
        if extra in ENUMS and extra not in required and rng.random() < 0.5:
            properties[extra]["default"] = "celsius"
    note = rng.choice(NOTES) if rng.random() < 0.7 else " ".join(rng.choices(words, k=rng.randint(1, 10)))
    parameters = (
        {"type": "object", "properties": properties, "required": required} if properties or rng.random() < 0.5 else None
    )
    return {"type": "function", "function": {"name": name, "description": note, "parameters": parameters}}


def is_known(name: str) -> bool:
    return name in NAMES or any(name == f"{verb}_{noun}" for verb in VERBS for noun in NOUNS)


def list_fitting(topic: Topic) -> list[str]:
    """The names of tools that fit a topic."""
    return [name for name in NAMES if any(part in name for part in FITS.get(topic.noun, ()))]


def choose_tool(topic: Topic, tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The tool whose name fits the topic, else the first one with a known name, else none."""
    known = [tool["function"] for tool in tools if is_known(tool["function"]["name"])]
    fits = [f for f in known if any(part in f["name"] for part in FITS.get(topic.noun, ()))]
    return dict((fits or known)[0]) if known else None


def arguments(topic: Topic, function: dict[str, Any]) -> str:
    """The required arguments in their order, as compact JSON: what the user named, else a default."""
    schema = function["parameters"] or {}
    numbers = list(topic.numbers or (2, 2))
    values: dict[str, Any] = {}
    for name in schema.get("required", []):
        kind = schema["properties"][name]
        if "enum" in kind:
            values[name] = kind["enum"][0]
        elif name == "expression":
            values[name] = topic.operator.join(map(str, topic.numbers or (2, 2)))
        elif kind["type"] in ("number", "integer"):
            values[name] = numbers.pop(0) if numbers else 2
        else:
            values[name] = True if kind["type"] == "boolean" else topic.city or topic.word
    return json.dumps(values, separators=(",", ":"))


def make_result(rng: random.Random, words: list[str]) -> tuple[str, str]:
    """A tool's answer, and what the model says about it."""
    number, sky = rng.randint(1, 40), rng.choice(SKIES)
    form = rng.randrange(4)
    if form == 0:
        forms = [
            '{{"temperature": {n}, "condition": "{s}"}}',
            '{{"condition": "{s}", "temperature": {n}}}',
            "{s}, {n} degrees",
            '{{"sunny": true, "temperature": {n}}}',
        ]
        text = rng.choice(forms)
        return text.format(n=number, s=sky), f"The tool says: {'sunny' if 'true' in text else sky}, {number}."
    if form == 1:
        forms = [
            '{{"temperature": {n}}}',
            '{{"result": {n}}}',
            "{n}",
            "{n} degrees",
            '{{"temperature": {n}, "unit": "celsius"}}',
            "It is {n} degrees.",
        ]
        return rng.choice(forms).format(n=number), f"The tool says: {number}."
    if form == 2:
        return rng.choice(['{{"condition": "{s}"}}', "{s}", "It is {s}.", '{{"weather": "{s}"}}']).format(
            s=sky
        ), f"The tool says: {sky}."
    body = " ".join(rng.choices(words, k=rng.randint(1, 20)))
    return rng.choice(["{}", '{{"result": "{}"}}', '["{}"]', '{{"error": "{}"}}', "ok"]).format(
        body
    ), "The tool has answered."
