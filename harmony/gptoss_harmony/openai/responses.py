"""OpenAI's Responses API: requests to conversations, model output to items and events.

How things map, beyond what `chat_completions` says:

- `instructions` and the system and developer messages that begin the input are one developer message.
- a reasoning item carries the whole chain of thought in its content; it is read back from there, or from its summary.
  gpt-oss writes no summaries: pass `summarise` to fill them.
- messages carry `phase`: preambles are ``commentary``, answers ``final_answer``.
- calls of built-in tools are function_call items too (``browser.search``, ``python``): the caller runs them.
- messages and reasoning without text make no item.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.grammars.grammar import Turn
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Conversation, Json, Message
from gptoss_harmony.openai.calls import Restore
from gptoss_harmony.openai.output import ItemKind, Reader, choose_finish_reason, make_id, read_messages
from gptoss_harmony.openai.requests import (
    choose_final,
    choose_tools,
    drop_finished_reasoning,
    join_parts,
    open_conversation,
    read_effort,
    read_optional,
    read_parts,
    read_response_format,
    skip_reasoning,
)
from gptoss_harmony.openai.response_history import INSTRUCTING, ItemCollector, read_kind
from gptoss_harmony.openai.response_items import ResponseItem, Summarise
from gptoss_harmony.openai.tool_table import ToolTable


def to_conversation(
    request: Mapping[str, Any],
    *,
    previous: Sequence[Json] = (),
    date: str | None = None,
    restore: Restore | None = None,
) -> Conversation:
    """The conversation to render for a request.

    `previous`: the input and output items of the earlier responses in the chain of `previous_response_id`, in order.
    `date` (YYYY-MM-DD) is shown to the model as today's. `restore` gives a call in the form in which the model wrote
    it (`WrittenCalls.restore`). Raises LayoutError with the path of the bad value.
    """
    items = [*previous, *_read_input(request.get("input"))]
    where = [f"previous[{i}]" for i in range(len(previous))]
    where += [f"input[{i}]" for i in range(len(items) - len(previous))]
    kinds = [read_kind(item, place) for item, place in zip(items, where, strict=True)]
    n_leading = next(
        (i for i, kind in enumerate(kinds) if kind != "message" or items[i]["role"] not in INSTRUCTING), len(items)
    )
    leading = [
        join_parts(read_parts(item.get("content"), f"{where[i]}.content")) for i, item in enumerate(items[:n_leading])
    ]
    tools = ToolTable(request.get("tools"))
    by_id = {str(item.get("id")): item for item in items if item.get("type") != "item_reference"}
    body = ItemCollector(tools, by_id, restore)
    for i in range(n_leading, len(items)):
        body.add(items[i], where[i])
    offered = tools.only(()) if request.get("tool_choice") == "none" else tools
    _, section = read_response_format(_read_format(request), "text.format")
    start = open_conversation(
        read_effort(_read_effort(request), "reasoning.effort"),
        date,
        offered,
        [read_optional(request, "instructions", str), *leading, section],
    )
    conversation = drop_finished_reasoning([*start, *body.messages])
    if _read_effort(request) == "none":
        conversation.messages.append(skip_reasoning())
    return conversation


def to_turn(request: Mapping[str, Any]) -> Turn:
    """What the model may answer to a request, for `grammar.gbnf` and `grammar.structural_tag`."""
    tools, must_call = choose_tools(ToolTable(request.get("tools")), request.get("tool_choice"))
    schema, _ = read_response_format(_read_format(request), "text.format")
    return Turn(
        tuple(tools.functions),
        tuple(tools.builtins),
        choose_final(schema, must_call),
        namespaces=tuple(tools.spaces.values()),
        inputs=tools.inputs,
        reasoning=_read_effort(request) != "none",
    )


def _read_effort(request: Mapping[str, Any]) -> str | None:
    value: str | None = read_optional(read_optional(request, "reasoning", dict) or {}, "effort", str, "reasoning")
    return value


def _read_format(request: Mapping[str, Any]) -> Json | None:
    value: Json | None = read_optional(read_optional(request, "text", dict) or {}, "format", dict, "text")
    return value


def _read_input(value: Any) -> list[Json]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return list(expect([] if value is None else value, list, "input"))


def from_messages(
    messages: Iterable[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    parallel: bool = True,
    finish_reason: str | None = None,
    summarise: Summarise | None = None,
    may_call: bool = True,
) -> list[Json]:
    """The output items that model output is. `tools` are the request's, to give calls their API names.

    `parallel` false keeps the first call only; `may_call`: see `Reader`. `finish_reason` is the engine's (``stop`` or
    ``length``); without it, output that does not end where a model may stop counts as cut off, and its last item as
    incomplete.
    """
    messages = list(messages)
    finish_reason = choose_finish_reason(messages, finish_reason)
    reader = Reader(ToolTable(tools), parallel, may_call=may_call)
    read_messages(messages, reader, truncated=finish_reason == "length")
    return [ResponseItem(item, summarise).whole() for item in reader.items if item.text or item.kind is ItemKind.CALL]


def to_usage(prompt: int, completion: int, reasoning: int = 0, cached: int = 0) -> Json:
    """Token counts as the API spells them; `reasoning` is part of `completion`, `cached` of `prompt`."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


_ECHOED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its response repeats, with the values in force where it does not say."""

_IN_FORCE: Json = {
    "background": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "service_tier": "default",
    "store": True,
}
"""What a response says of itself; whoever does otherwise puts it in."""

_STANDARD_TOOLS = {
    "browser": {"type": "web_search"},
    "python": {"type": "code_interpreter", "container": {"type": "auto"}},
}
"""Our spellings of the built-in tools in the API's own."""


def to_response(request: Mapping[str, Any], model: str, created: int, response_id: str | None = None) -> Json:
    """The response object to a request before there is output: status in_progress. `created`: seconds since 1970."""
    echoed = {key: default if request.get(key) is None else request[key] for key, default in _ECHOED.items()}
    echoed["text"] = _ECHOED["text"] | {key: value for key, value in echoed["text"].items() if value is not None}
    reasoning = request.get("reasoning") or {}
    return {
        "id": response_id or make_id("resp"),
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "reasoning": {"effort": reasoning.get("effort") or "medium", "summary": reasoning.get("summary")},
        "tools": [_STANDARD_TOOLS.get(tool.get("type", ""), tool) for tool in request.get("tools") or ()],
        **_IN_FORCE,
        **echoed,
    }


def finish_response(response: Json, output: list[Json], finish_reason: str, usage: Json | None = None) -> Json:
    """`response` with its output; `finish_reason` length makes it incomplete."""
    cut = finish_reason == "length"
    details = {"reason": "max_output_tokens"} if cut else None
    return response | {
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": details,
        "output": output,
        "usage": usage,
    }
