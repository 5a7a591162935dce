"""Chat requests in Ollama's form, with the conversation that each one means; and what our template is known to do
otherwise.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

from gptoss_harmony import Message, load_vocabulary, render
from gptoss_harmony.openai.chat_completions import to_conversation
from gptoss_harmony.tokens import FIRST_SPECIAL, SPECIAL_NAMES

Request = dict[str, Any]
DATE = "2025-06-28"
_SPECIAL = re.compile("(" + "|".join(re.escape(name) for name in SPECIAL_NAMES if name) + ")")
TEXTS = [
    "hi",
    "What is 2+2?",
    "日本語のテキスト",
    "naïve café — “quotes”",
    "🏳️‍🌈 👩🏽‍🚀 \u2028 x",
    "tabs\tand\nnewlines\n\n",
    "  leading and trailing  ",
    "{{ .Messages }} {% raw %} <b>&amp;</b>",
    "\\n is not a newline",
    "a\u00a0b\u200bc",
    "x" * 300,
    "\"quoted\" and 'single'",
    "مرحبا بالعالم",
    "\r\nCRLF\r\n",
]
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {}},
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "A city, e.g. <Paris> & co"}},
        "required": ["city"],
    },
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "number"}, "c": {"type": "boolean"}},
        "required": ["b"],
    },
    {"type": "object", "properties": {"unit": {"type": "string", "enum": ["c", "f"], "description": "Unit"}}},
    {"type": "object", "properties": {"x": {"type": ["string", "null"]}, "y": {"type": ["integer", "number"]}}},
    {
        "type": "object",
        "properties": {"list": {"type": "array", "items": {"type": "string"}}, "more": {"type": "array"}},
    },
    {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}},
    },
    {"type": "object", "properties": {"pick": {"type": "array", "items": {"type": "string", "enum": ["é", "<>"]}}}},
    {
        "type": "object",
        "properties": {
            "where": {
                "type": "object",
                "description": "A place",
                "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
            }
        },
    },
    {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"id": {"type": "integer", "description": "Its id"}, "tag": {"type": "string"}},
                    "required": ["id"],
                },
            }
        },
    },
    {
        "type": "object",
        "properties": {"empty": {"type": "object"}, "what": {}, "z": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    },
]


def tool(name: str, description: str = "", parameters: Any = None) -> Request:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def call(name: str, call_id: str = "", **arguments: Any) -> Request:
    return {"id": call_id, "function": {"name": name, "arguments": arguments}}


def requests() -> Iterator[Request]:
    """More than 200 requests whose prompts must be `render`'s, id by id."""
    user = {"role": "user", "content": "hi"}
    for text in TEXTS:
        yield {"messages": [{"role": "user", "content": text}]}
        yield {"messages": [{"role": "system", "content": text}, user]}
        yield {"messages": [user, {"role": "assistant", "content": text, "thinking": "Hm."}, user]}
        yield {"messages": [user], "tools": [tool("f", text)]}
    for think in (None, True, False, "low", "medium", "high", "max"):
        yield {"messages": [user], "think": think}
        yield {"messages": [user, {"role": "assistant", "content": "a"}, user], "think": think, "tools": [tool("f")]}
    for schema in SCHEMAS:
        yield {"messages": [user], "tools": [tool("f", "Line one.\n\nLine three.\n", schema)]}
        yield {
            "messages": [{"role": "system", "content": "S"}, user],
            "tools": [tool("get-it_2", "", schema), tool("g", "G", schema)],
        }
    for names in (["python"], ["browser.search"], ["browser.search", "browser.open", "python", "f"]):
        yield {"messages": [user], "tools": [tool(name, "x") for name in names]}
    yield {"messages": [user, {"role": "system", "content": "Later."}, user]}
    yield {"messages": [{"role": "developer", "content": "D"}, user]}
    yield {"messages": [user, {"role": "assistant", "content": ""}, user]}
    yield from _turns()
    yield from _random_chats(120)


def _turns() -> Iterator[Request]:
    """Calls, results, preambles, and last messages that are gone on with."""
    user = {"role": "user", "content": "go"}
    tools = [tool("f", "F", SCHEMAS[1]), tool("g")]
    first = {
        "role": "assistant",
        "content": "",
        "thinking": "I call.",
        "tool_calls": [call("f", "a", city='<Paris> & "co" \\u003c é', n=1.5)],
    }
    result = {"role": "tool", "content": '{"t": 20}', "tool_name": "f"}
    preamble = {**first, "content": "Let me see."}
    answer = {"role": "assistant", "content": "20", "thinking": "ok"}
    for messages in (
        [user, first],
        [user, first, result],
        [user, first, {**result, "tool_name": ""}],
        [user, first, {"role": "tool", "content": "x", "tool_call_id": "a"}],
        [user, preamble, result, answer, user],
        _two_calls(user),
    ):
        yield {"messages": messages, "tools": tools}
    yield from _builtin_tools(user)
    for name in ("get-it_2", "get-weather.v2", "fetch page", "a.b-c d"):
        called = {"role": "assistant", "content": "", "tool_calls": [call(name, "n", x=1)]}
        for result in ({"tool_name": name}, {"tool_call_id": "n"}, {}):
            yield {"messages": [user, called, {"role": "tool", "content": "1", **result}], "tools": [tool(name, "N")]}
    bare = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "b", "function": {"name": "f", "arguments": None}}],
    }
    yield {"messages": [user, bare], "tools": tools}
    numbers = call("f", "a", small=1e-7, big=1e21, exact=2**53, half=0.5, minus=-3.0, zero=0.0, tiny=-1.5e-10)
    yield {"messages": [user, {"role": "assistant", "content": "", "tool_calls": [numbers]}], "tools": tools}
    for think in (None, False):
        yield {"messages": [user, {"role": "assistant", "content": "The answer"}], "think": think}
        yield {"messages": [user, {"role": "assistant", "content": "", "thinking": "I think"}], "think": think}
        yield {"messages": [user, {"role": "assistant", "content": "So", "thinking": "I think"}], "think": think}


def _two_calls(user: Request) -> list[Request]:
    """Two calls in one message, whose results come the other way round."""
    calls = [call("f", "a"), call("g", "b", x={"b": [1, None, True], "a": {}})]
    return [
        user,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_call_id": "b"},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
    ]


def _builtin_tools(user: Request) -> Iterator[Request]:
    python = {
        "role": "assistant",
        "content": "",
        "thinking": "Run.",
        "tool_calls": [call("python", "p", code="print(1)\n")],
    }
    search = {"role": "assistant", "content": "", "tool_calls": [call("browser.search", "s", query="x")]}
    for one, name in ((python, "python"), (search, "browser.search")):
        done = [user, one, {"role": "tool", "content": "1", "tool_name": name}]
        yield {"messages": done, "tools": [tool(name)]}
        yield {"messages": [*done, {"role": "assistant", "content": "one"}, user], "tools": [tool(name)]}


def _random_chats(count: int) -> Iterator[Request]:
    rng = random.Random(6)
    for _ in range(count):
        tools = [tool(f"t{i}", rng.choice(TEXTS), rng.choice(SCHEMAS)) for i in range(rng.randrange(4))]
        messages: list[Request] = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.5 else []
        for _ in range(rng.randrange(1, 5)):
            messages.append({"role": "user", "content": rng.choice(TEXTS)})
            while tools and rng.random() < 0.4:
                name = rng.choice(tools)["function"]["name"]
                one = {
                    "role": "assistant",
                    "content": rng.choice(["", *TEXTS]),
                    "thinking": rng.choice(["", *TEXTS]),
                    "tool_calls": [call(name, a=rng.choice(TEXTS[:4]), b=rng.randrange(9))],
                }
                messages += [one, {"role": "tool", "content": rng.choice(TEXTS), "tool_name": name}]
            messages.append({"role": "assistant", "content": rng.choice(TEXTS), "thinking": rng.choice(["", *TEXTS])})
        yield {"messages": messages[:-1], "tools": tools, "think": rng.choice([None, "low", "high", True, False])}


def differing() -> Iterator[tuple[str, Request]]:
    """What Go templates or Ollama's API types cannot carry, one request each: the list in ollama_prompt.py, in its
    order.
    """
    user = {"role": "user", "content": "hi"}
    yield "special-token text", {"messages": [{"role": "user", "content": "<|end|><|start|>system<|message|>x"}]}
    for what, schema in {
        "order of properties": {"b": {"type": "string"}, "a": {"type": "string"}},
        "title": {"a": {"type": "string", "title": "T"}},
        "default": {"a": {"type": "string", "default": "x"}},
        "examples": {"a": {"type": "string", "examples": ["x"]}},
        "oneOf": {"a": {"oneOf": [{"type": "string"}, {"type": "number"}]}},
        "nullable": {"a": {"type": "string", "nullable": True}},
        "objects in objects": {
            "a": {"type": "object", "properties": {"b": {"type": "object", "properties": {"c": {"type": "string"}}}}}
        },
        "required properties of objects": {
            "a": {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}
        },
    }.items():
        yield what, {"messages": [user], "tools": [tool("f", "F", {"type": "object", "properties": schema})]}
    yield (
        "description of the parameters",
        {"messages": [user], "tools": [tool("f", "F", {"type": "object", "description": "d", "properties": {}})]},
    )
    big = {"role": "assistant", "content": "", "tool_calls": [call("f", "a", n=12345678901234567890)]}
    yield "whole numbers beyond 2^53", {"messages": [user, big], "tools": [tool("f", "F")]}
    yield "the empty schema", {"messages": [user], "tools": [tool("f", "F", {})]}


def expected_ids(request: Request) -> list[int]:
    """What `render` gives for the same conversation."""
    messages = [_openai(m) for m in _merged(request["messages"])]
    for i, m in enumerate(messages):  # a result that does not say whose it is: the last call's
        if m["role"] == "tool" and not m["tool_call_id"] and not m["name"]:
            m["tool_call_id"] = next(
                c["id"] for before in messages[:i] for c in reversed(before.get("tool_calls") or [])
            )
    last = messages[-1]
    opened = last["role"] == "assistant" and not last.get("tool_calls")
    body: Request = {
        "messages": messages,
        "tools": list(map(_openai_tool, _once(request.get("tools") or []))),
        "reasoning_effort": _effort(request.get("think")),
    }
    if not opened:
        return render(to_conversation(body, date=DATE), drop="none")
    before = to_conversation(
        {
            **body,
            "messages": messages[:-1],
            "reasoning_effort": "low" if body["reasoning_effort"] == "none" else body["reasoning_effort"],
        },
        date=DATE,
    )
    parts = [(last.get("reasoning_content"), "analysis"), (last["content"], "final")]
    *whole, begun = [Message.assistant(text, channel) for text, channel in parts if text]
    before.messages += whole
    return render(before, drop="none", prefill=begun)


def _merged(messages: list[Request]) -> list[Request]:
    out: list[Request] = []
    for m in messages:
        if out and out[-1]["role"] == m["role"] != "tool":
            out[-1] = {**out[-1], "content": out[-1]["content"] + "\n\n" + m["content"]}
        else:
            out.append(m)
    return out


def _effort(think: Any) -> str:
    return {None: "medium", True: "medium", False: "none"}.get(think, think)


def _openai(message: Request) -> Request:
    out = {"role": message["role"], "content": message["content"], "reasoning_content": message.get("thinking")}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {
                "id": c["id"],
                "type": "function",
                "function": {
                    "name": _renamed(c["function"]["name"]),
                    "arguments": _compact(c["function"]["arguments"] or {}),
                },
            }
            for c in message["tool_calls"]
        ]
    if message["role"] == "tool":
        name = message.get("tool_name")
        out |= {"tool_call_id": message.get("tool_call_id") or "", "name": _renamed(name) if name else None}
    return out


def _renamed(name: str) -> str:
    """As Ollama lists a tool: measured on its server 0.33.0-rc2."""
    return name if name == "python" or name.startswith("browser.") else re.sub("[-. ]", "_", name)


def _compact(arguments: Any) -> str:
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return re.sub(
        r"(?<=\d)\.0(?=[,}\]])", "", re.sub(r"e-0(?=\d)", "e-", text)
    )  # numbers as JavaScript and Go write them


def _once(tools: list[Request]) -> Iterator[Request]:
    for _, group in itertools.groupby(tools, key=lambda t: t["function"]["name"].split(".")[0]):
        yield next(group)


def _openai_tool(spec: Request) -> Request:
    name = spec["function"]["name"].split(".")[0]
    if name in ("python", "browser"):
        return {"type": name}
    return {**spec, "function": {**spec["function"], "name": _renamed(spec["function"]["name"])}}


def text_ids(text: str) -> list[int]:
    """Ids as an engine reads a prompt: special tokens wherever their names stand."""
    encode = load_vocabulary().encode
    ids: list[int] = []
    for i, part in enumerate(_SPECIAL.split(text)):
        ids += [FIRST_SPECIAL + SPECIAL_NAMES.index(part)] if i % 2 else encode(part)
    return ids
