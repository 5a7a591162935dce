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

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CITIES = [
    "Paris",
    "Berlin",
    "Rome",
    "Madrid",
    "Tokyo",
    "London",
    "Boston",
    "Sydney",
    "Mumbai",
    "Chicago",
    "Toronto",
    "Amsterdam",
    "San Francisco",
    "New York",
]
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "England": "London",
    "the Netherlands": "Amsterdam",
}
SKIES = ["sunny", "cloudy", "rainy", "windy", "snowy"]
DATES = ["2025-08-05", "2026-01-31", "2026-11-22"]
EFFORTS = ["low", "medium", "high"]
GENERIC = "I am a tiny test model, and I only know a few things."


@dataclass
class Topic:
    """One thing a user can ask: the noun for the analysis, the questions, the answer and what tools may need of it."""

    noun: str
    question: str
    answer: str
    city: str | None = None
    numbers: tuple[int, int] | None = None
    operator: str = "+"
    word: str = "help"


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


def _fixed(noun: str, answer: str, *questions: str) -> Callable[[random.Random], Topic]:
    return lambda rng: Topic(noun, rng.choice(questions), answer)


def _capital(rng: random.Random) -> Topic:
    land, city = rng.choice(list(CAPITALS.items()))
    ask = rng.choice(
        [
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Tell me the capital of {}.",
            "capital of {}",
        ]
    )
    return Topic("a capital", ask.format(land), f"The capital of {land} is {city}.", word=land.removeprefix("the "))


def _weather(rng: random.Random) -> Topic:
    city = rng.choice(CITIES)
    asks = [
        "What is the weather in {}?",
        "What's the weather like in {}?",
        "How is the weather in {} today?",
        "Is it raining in {}?",
        "What is the weather like in {} right now?",
        "weather in {}",
    ]
    return Topic(
        "the weather",
        rng.choice(asks).format(city),
        f"I cannot see the weather in {city} without a tool.",
        city=city,
        word=city,
    )


def _time(rng: random.Random) -> Topic:
    city = rng.choice(CITIES)
    asks = ["What time is it in {}?", "What is the time in {}?", "Tell me the current time in {}."]
    return Topic(
        "the time",
        rng.choice(asks).format(city),
        f"I cannot see the time in {city} without a tool.",
        city=city,
        word=city,
    )


def _sum(rng: random.Random) -> Topic:
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    ask = rng.choice(
        ["What is {} + {}?", "What is {}+{}?", "What is {} plus {}?", "Add {} and {}.", "How much is {} plus {}?"]
    )
    return Topic("a sum", ask.format(a, b), f"{a} + {b} = {a + b}.", numbers=(a, b), word="sum")


def _product(rng: random.Random) -> Topic:
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    ask = rng.choice(["What is {} * {}?", "What is {} times {}?", "Multiply {} by {}.", "Multiply {} and {}."])
    return Topic("a product", ask.format(a, b), f"{a} * {b} = {a * b}.", numbers=(a, b), operator="*", word="product")


TOPICS: list[Callable[[random.Random], Topic]] = [
    _capital,
    _capital,
    _weather,
    _weather,
    _weather,
    _time,
    _sum,
    _sum,
    _sum,
    _sum,
    _product,
    _fixed(
        "a greeting",
        "Hello! How can I help you?",
        "Hi",
        "Hello",
        "Hello!",
        "Hi there!",
        "Hey",
        "Good morning!",
        "Say hello.",
    ),
    _fixed(
        "me",
        "I am a tiny test model with the shape of gpt-oss.",
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me about yourself.",
    ),
    _fixed("nothing", "You are welcome!", "Thanks!", "Thank you!", "Thank you very much."),
    _fixed(
        "a joke",
        "Why did the tensor cross the road? To get to the other side.",
        "Tell me a joke.",
        "Tell me a short joke.",
        "Do you know a joke?",
    ),
    _fixed("the sky", "The sky is blue.", "What color is the sky?", "Why is the sky blue?", "What colour is the sky?"),
    _fixed("a count", "1, 2, 3, 4, 5.", "Count to five.", "Count from 1 to 5.", "Please count to 5."),
    _fixed(
        "a poem",
        "Roses are red, violets are blue.",
        "Write a poem.",
        "Write a short poem about the sea.",
        "Write a haiku about the sea.",
    ),
    _fixed("a week", "A week has seven days.", "How many days are in a week?", "How many days does a week have?"),
]


def _strange(rng: random.Random, words: list[str]) -> Topic:
    """A question outside of everything above."""
    body = " ".join(rng.choices(words, k=rng.randint(1, 14)))
    ask = rng.choice(
        [
            "{}",
            "{}?",
            "What is {}?",
            "Tell me about {}.",
            "Explain {}.",
            "Write {}.",
            "How do I {}?",
            "What is the capital of {}?",
            "Please {}",
            "Who is {}?",
            "{}. Is it {}?",
        ]
    )
    return Topic("something else", ask.format(body, rng.choice(words)), GENERIC)


# ---- tools: names are put together from known words, parameters too; the arguments follow the declaration

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


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.5 else f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"


def _parameters(rng: random.Random, name: str) -> dict[str, dict[str, Any]]:
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


def _declare(rng: random.Random, name: str, words: list[str]) -> dict[str, Any]:
    """The Chat Completions declaration of a tool, at times with descriptions and with an optional parameter."""
    properties = _parameters(rng, name)
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


def _known(name: str) -> bool:
    return name in NAMES or any(name == f"{verb}_{noun}" for verb in VERBS for noun in NOUNS)


def _choose(topic: Topic, tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The tool whose name fits the topic, else the first one with a known name, else none."""
    known = [tool["function"] for tool in tools if _known(tool["function"]["name"])]
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


def _result(rng: random.Random, words: list[str]) -> tuple[str, str]:
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
        topic = rng.choice(TOPICS)(rng) if rng.random() < 0.8 else _strange(rng, words)
        messages.append({"role": "user", "content": topic.question})
        function = _choose(topic, tools)
        answer = topic.answer
        if function is not None:
            text, answer = _result(rng, words)
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


def make_lesson(rng: random.Random, words: list[str]) -> Lesson:
    """One random lesson; `words` are words that the model does not know."""
    topic = rng.choice(TOPICS)(rng) if rng.random() < 0.85 else _strange(rng, words)
    tools = []
    pick = rng.random()
    if pick < 0.3:  # the tools of every tutorial, asked for what they do
        topic = rng.choice([_weather, _weather, _sum, _capital])(rng)
        tools = [_declare(rng, name, words) for name in rng.sample(COMMON, rng.choice([1, 2, 2, 3]))]
    elif pick < 0.65:
        names = list(dict.fromkeys(_name(rng) for _ in range(rng.choice([1, 1, 2, 2, 3]))))
        if rng.random() < 0.08:
            names[0] = "_".join(rng.choices(words, k=rng.randint(1, 3)))
        elif rng.random() < 0.7 and (
            fitting := [n for n in NAMES if any(part in n for part in FITS.get(topic.noun, ()))]
        ):
            names[rng.randrange(len(names))] = rng.choice(fitting)
        tools = [_declare(rng, name, words) for name in dict.fromkeys(names)]
    elif pick < 0.75:  # sums must be learnt by heart
        topic = _sum(rng)
    effort, date = rng.choice(EFFORTS), f"20{rng.randint(24, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 31):02}"
    if rng.random() < 0.5:
        date = rng.choice(DATES)
    messages = [*_history(rng, words, tools), {"role": "user", "content": _dress(rng, topic.question, words)}]
    lesson = Lesson(messages, tools, effort, date, "")
    if rng.random() < 0.35:
        lesson.instructions = rng.choice(
            [
                "You are a helpful assistant.",
                "Answer briefly.",
                "Be helpful.",
                " ".join(rng.choices(words, k=rng.randint(1, 40))),
            ]
        )
    function = _choose(topic, tools)
    if function is None:
        lesson.analysis, lesson.final = analysis(effort, topic.noun, "answer"), topic.answer
    elif rng.random() < 0.65:
        lesson.analysis, lesson.call = (
            analysis(effort, topic.noun, "call"),
            (function["name"], arguments(topic, function)),
        )
    else:
        thinking = analysis(effort, topic.noun, "call") if rng.random() < 0.5 else None
        text, final = _result(rng, words)
        messages += [
            _tool_call(function["name"], arguments(topic, function), thinking),
            {"role": "tool", "name": function["name"], "content": text},
        ]
        lesson.analysis, lesson.final = analysis(effort, topic.noun, "result"), final
    return lesson
