"""Random conversations and JSON schemas in openai-harmony's JSON layout, for tests and bench/fuzz_harmony.py.

Everything is explicit (null, never missing), because a missing key means different things to the reference's two
halves.
"""

from __future__ import annotations

from random import Random
from typing import Any

Json = dict[str, Any]

WORDS = [
    "the",
    "model",
    "shall",
    "answer",
    "don't",
    "I'LL",
    "we're",
    "x",
    "=",
    "f(y);",
    "def",
    "main():",
    "return",
    "0",
    '{"a":',
    "[1,",
    "2.5e3]}",
    "http://a.b/c?d=e#f",
    "2024-06-30",
    "1234567",
    "Größe",
    "été",
    "naïve",
    "Привет",
    "мир",
    "日本語の文章",
    "中文测试",
    "한국어",
    "العربية",
    "עברית",
    "हिन्दी",
    "ไทย",
    "Ελληνικά",
    "👩\u200d👧🏽",
    "🇩🇪",
    "é",
    "ſ",
    "²³",
    "Ⅷ",
    "٣٤",
    "\xa0",
    "\u2028",
    "\x00",
    "\x1c",
    "\x7f",
    "\ufeff",
]
SPECIALS = [
    "start",
    "end",
    "message",
    "channel",
    "constrain",
    "return",
    "call",
    "startoftext",
    "endoftext",
    "reserved_200018",
    "reserved_201088",
    "refusal",
    "endofprompt",
]
SPACES = (" ", " ", " ", "\n", "\r\n", "  ", "\t", "", "\n\n", "/")
NAMES = (
    "a",
    "b_c",
    "camelCase",
    "0start",
    "x.y",
    "has space",
    "with-dash",
    "größe",
    "名前",
    "type",
    "default",
    "enum",
    "null",
    "nullthing",
    "",
)
CHANNELS = ("analysis", "commentary", "final", "", "other", "final ", "<|channel|>")
RECIPIENTS = ("functions.f", "browser.search", "python", "assistant", "all", "", "x y", "<|start|>")
CONTENT_TYPES = ("json", "code", "<|constrain|>json", "<|constrain|> json", "<|constrain|>", "a<|constrain|>b", "", " ")


def text(rng: Random, words: int = 12) -> str:
    """Words of many scripts, odd spaces, sometimes the text of a special token."""
    out = []
    for _ in range(rng.randrange(words)):
        out.append(f"<|{rng.choice(SPECIALS)}|>" if rng.random() < 0.05 else rng.choice(WORDS))
        out.append(rng.choice(SPACES))
    return "".join(out)


def maybe(rng: Random, make: Any, chance: float = 0.5) -> Any:
    return make() if rng.random() < chance else None


def short_float(rng: Random) -> float:
    """Of few digits: the reference reads some longer floats inexactly, a documented difference."""
    return rng.choice([-1, 1]) * rng.randrange(1000) * 10.0 ** rng.choice([0, 0, 0, 0, 1, 2])


def value(rng: Random, depth: int = 2) -> Any:
    """A JSON value, for defaults and examples."""
    kind = rng.randrange(10 if depth else 7)
    if kind < 3:
        return text(rng, 4)
    if kind == 3:
        return rng.choice([0, 1, -7, 10**9, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1])
    if kind == 4:
        return short_float(rng)
    if kind < 7:
        return rng.choice([None, True, False])
    if kind < 9:
        return [value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(3))}


def schema(rng: Random, depth: int = 3) -> Any:
    """A JSON schema or nearly one: every keyword that the rules know, in likely and unlikely places."""
    if rng.random() < 0.03:
        return rng.choice([True, False, {}, [], "string", 3, None])
    out: Json = {}
    for key, chance in (
        ("title", 0.15),
        ("description", 0.35),
        ("default", 0.25),
        ("nullable", 0.15),
        ("examples", 0.15),
        ("enum", 0.15),
    ):
        if rng.random() < chance:
            out[key] = _annotation(rng, key)
    _add_type(rng, out, depth)
    items = list(out.items())
    rng.shuffle(items)
    return dict(items)


def _annotation(rng: Random, key: str) -> Any:
    if key in ("title", "description"):
        return rng.choice([text(rng, 5), text(rng, 5), "line\nline", "crlf\r\nline", "may be null", "", "A", 3])
    if key == "nullable":
        return rng.choice([True, True, False, "yes"])
    if key == "default":
        return value(rng)
    return rng.choice(
        [[value(rng, 1) for _ in range(rng.randrange(4))], ["a", "b"], ["null_x", 1, None], [], "no list"]
    )


ODD: list[Json] = [
    {},
    {"anyOf": [{"type": "string"}]},
    {"$ref": "#/x"},
    {"const": 1},
    {"type": "null"},
    {"type": 3},
    {"type": None},
    {"allOf": []},
]


def _add_type(rng: Random, out: Json, depth: int) -> None:
    kind = rng.choice(
        ["object"] * 4
        + ["string"] * 3
        + ["number", "integer", "boolean", "array", "array", "oneOf", "oneOf", "list", "odd"]
    )
    if kind in ("object", "array", "oneOf") and depth == 0:
        kind = "string"
    if kind == "oneOf":
        out["oneOf"] = rng.choice([[schema(rng, depth - 1) for _ in range(rng.randrange(4))]] * 9 + ["odd"])
        if (
            "description" in out
            and isinstance(out["oneOf"], list)
            and out["oneOf"]
            and isinstance(out["oneOf"][0], dict)
        ):
            out["oneOf"][0].update({"description": out["description"]} if rng.random() < 0.3 else {})
    elif kind == "list":
        out["type"] = rng.sample(["string", "integer", "null", "object", "array", "x", 1, None], rng.randrange(4))
    elif kind == "odd":
        out.update(rng.choice(ODD))
    else:
        out["type"] = kind
    if kind == "object" and rng.random() < 0.9:
        out["properties"] = {rng.choice(NAMES): schema(rng, depth - 1) for _ in range(rng.randrange(4))}
        out["required"] = rng.choice([[], rng.sample(NAMES, 3), list(out["properties"]), [1, "a"], "odd"])
    if kind == "array" and rng.random() < 0.8:
        out["items"] = schema(rng, depth - 1)


def parameters(rng: Random) -> Json | None:
    """A schema that may stand as a tool's parameters: an object or nothing."""
    found = schema(rng)
    return found if isinstance(found, dict) else maybe(rng, dict)


def tools(rng: Random) -> Json | None:
    if rng.random() < 0.5:
        return None
    spaces = {}
    for key in rng.sample(["functions", "browser", "a", "Z", "é", "python"], rng.randrange(4)):
        entries = [
            {
                "name": rng.choice(NAMES),
                "description": text(rng, 6),
                "parameters": maybe(rng, lambda: parameters(rng), 0.8),
            }
            for _ in range(rng.randrange(3))
        ]
        description = maybe(rng, lambda: rng.choice([text(rng), "a\r", "a\n\nb\r\n", "\n", ""]))
        spaces[key] = {"name": rng.choice([key, key, "other"]), "description": description, "tools": entries}
    return spaces


def system_content(rng: Random) -> Json:
    config = {
        "valid_channels": rng.choice([["analysis", "commentary", "final"], ["final"], [], [text(rng, 3)]]),
        "channel_required": rng.random() < 0.5,
    }
    return {
        "type": "system_content",
        "model_identity": maybe(rng, lambda: text(rng)),
        "reasoning_effort": rng.choice(["Low", "Medium", "High", None]),
        "conversation_start_date": maybe(rng, lambda: text(rng, 4)),
        "knowledge_cutoff": maybe(rng, lambda: text(rng, 4)),
        "channel_config": maybe(rng, lambda: config, 0.8),
        "tools": tools(rng),
    }


def message(rng: Random) -> Json:
    role = rng.choice(["user"] * 3 + ["assistant"] * 6 + ["tool"] * 2 + ["system", "developer"])
    parts: list[Json] = [{"type": "text", "text": text(rng, 30)} for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3]))]
    if role == "system" and rng.random() < 0.9:
        parts.insert(rng.randrange(len(parts) + 1), system_content(rng))
    if role == "developer" and rng.random() < 0.9:
        content = {"type": "developer_content", "instructions": maybe(rng, lambda: text(rng)), "tools": tools(rng)}
        parts.insert(rng.randrange(len(parts) + 1), content)
    assistant = role == "assistant"
    return {
        "role": role,
        "name": rng.choice(["functions.f", "browser.search", "", text(rng, 3)])
        if role == "tool"
        else maybe(rng, lambda: rng.choice(["bob", "", text(rng, 3)]), 0.1),
        "content": parts,
        "channel": rng.choice(CHANNELS[:3] * 4 + CHANNELS)
        if assistant
        else maybe(rng, lambda: rng.choice(CHANNELS), 0.2),
        "recipient": maybe(rng, lambda: rng.choice([*RECIPIENTS, text(rng, 3)]), 0.3),
        "content_type": maybe(rng, lambda: rng.choice([*CONTENT_TYPES, text(rng, 3)]), 0.2),
    }


def conversation(rng: Random) -> Json:
    return {"messages": [message(rng) for _ in range(rng.randrange(10))]}
