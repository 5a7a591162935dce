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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.grammar import Final, Turn
from gptoss_harmony.messages import Conversation, Json, Message, Role
from gptoss_harmony.openai.output import Item, Kind, Reader, Step, new_id, read, was_closed
from gptoss_harmony.openai.requests import (
    ToolTable,
    chosen,
    effort,
    expect,
    head,
    joined,
    no_reasoning,
    optional,
    response_format,
    result_message,
    text_parts,
    without_finished_reasoning,
)
from gptoss_harmony.openai.response_items import OutputItem, Summarise
from gptoss_harmony.parsing.events import Event
from gptoss_harmony.parsing.parser import Parser
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, FINAL

_INSTRUCTING = ("system", "developer")


def to_conversation(
    request: Mapping[str, Any], *, previous: Sequence[Json] = (), date: str | None = None
) -> Conversation:
    """The conversation to render for a request.

    `previous`: the input and output items of the earlier responses in the chain of `previous_response_id`, in order.
    `date` (YYYY-MM-DD) is shown to the model as today's. Raises LayoutError with the path of the bad value.
    """
    items = [*previous, *_input(request.get("input"))]
    where = [f"previous[{i}]" for i in range(len(previous))] + [
        f"input[{i}]" for i in range(len(items) - len(previous))
    ]
    kinds = [_kind(item, place) for item, place in zip(items, where, strict=True)]
    n_leading = next(
        (i for i, kind in enumerate(kinds) if kind != "message" or items[i]["role"] not in _INSTRUCTING), len(items)
    )
    leading = [
        joined(text_parts(item.get("content"), f"{where[i]}.content")) for i, item in enumerate(items[:n_leading])
    ]
    tools = ToolTable(request.get("tools"))
    body = _Body(tools, {str(item.get("id")): item for item in items if item.get("type") != "item_reference"})
    for i in range(n_leading, len(items)):
        body.add(items[i], where[i])
    offered = tools.only(()) if request.get("tool_choice") == "none" else tools
    _, section = response_format(_format(request), "text.format")
    start = head(
        effort(_effort(request), "reasoning.effort"),
        date,
        offered,
        [optional(request, "instructions", str), *leading, section],
    )
    conversation = without_finished_reasoning([*start, *body.messages])
    if _effort(request) == "none":
        conversation.messages.append(no_reasoning())
    return conversation


def turn(request: Mapping[str, Any]) -> Turn:
    """What the model may answer to a request, for `grammar.gbnf` and `grammar.structural_tag`."""
    tools, must_call = chosen(ToolTable(request.get("tools")), request.get("tool_choice"))
    schema, _ = response_format(_format(request), "text.format")
    final: Final = None if must_call else "text" if schema is None else schema
    return Turn(tuple(tools.functions), tuple(tools.builtins), final, reasoning=_effort(request) != "none")


def _effort(request: Mapping[str, Any]) -> str | None:
    value: str | None = optional(optional(request, "reasoning", dict) or {}, "effort", str, "reasoning")
    return value


def _format(request: Mapping[str, Any]) -> Json | None:
    value: Json | None = optional(optional(request, "text", dict) or {}, "format", dict, "text")
    return value


def _input(value: Any) -> list[Json]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return list(expect([] if value is None else value, list, "input"))


def _kind(item: Any, where: str) -> str:
    """The type of an item; one with a role and no type is a message."""
    kind = expect(item, dict, where).get("type", "message" if "role" in item else None)
    if kind == "message":
        expect(item.get("role"), str, f"{where}.role")
    return str(kind)


class _Body:
    """Collects the items after the leading instructions; `by_id` resolves item references."""

    def __init__(self, tools: ToolTable, by_id: Mapping[str, Json]) -> None:
        self.messages: list[Message] = []
        self._tools = tools
        self._by_id = by_id
        self._recipient_of: dict[str, str] = {}

    def add(self, item: Json, where: str) -> None:
        kind = _kind(item, where)
        if kind == "item_reference" and (found := self._by_id.get(optional(item, "id", str, where) or "")):
            item = found
            kind = _kind(item, where)
        add = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._call,
            "function_call_output": self._result,
        }.get(kind)
        if kind == "item_reference":
            raise LayoutError(f"{where}.id", f"no earlier item has this id (got {item.get('id')!r})")
        if add is None:
            known = "message, reasoning, function_call, function_call_output or item_reference"
            raise LayoutError(f"{where}.type", f"unknown item (expected {known} / got {kind!r})")
        add(item, where)

    def _message(self, item: Json, where: str) -> None:
        parts = text_parts(item.get("content"), f"{where}.content")
        role = item["role"]
        if role == "user":
            self.messages.append(Message(Role.USER, [*parts]))
        elif role == "assistant":
            channel = COMMENTARY if item.get("phase") == "commentary" else FINAL
            self.messages.append(Message(Role.ASSISTANT, [*parts], channel=channel))
        elif role in _INSTRUCTING:
            self.messages.append(Message.developer(joined(parts)))
        else:
            raise LayoutError(
                f"{where}.role", f"unknown role (expected user, assistant, system or developer / got {role!r})"
            )

    def _reasoning(self, item: Json, where: str) -> None:
        text = joined(text_parts(item.get("content"), f"{where}.content"))
        text = text or "\n".join(part.text for part in text_parts(item.get("summary"), f"{where}.summary"))
        if text:
            self.messages.append(Message.assistant(text, ANALYSIS))

    def _call(self, item: Json, where: str) -> None:
        name = expect(item.get("name"), str, f"{where}.name")
        call_id = expect(item.get("call_id"), str, f"{where}.call_id")
        message = self._tools.call(name, expect(item.get("arguments"), str, f"{where}.arguments"))
        self._recipient_of[call_id] = message.recipient or ""
        self.messages.append(message)

    def _result(self, item: Json, where: str) -> None:
        recipient = self._recipient_of.get(optional(item, "call_id", str, where) or "")
        if recipient is None:
            raise LayoutError(f"{where}.call_id", f"no call before it has this id (got {item.get('call_id')!r})")
        self.messages.append(result_message(recipient, text_parts(item.get("output"), f"{where}.output")))


def from_messages(
    messages: Iterable[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    parallel: bool = True,
    finish_reason: str | None = None,
    summarise: Summarise | None = None,
) -> list[Json]:
    """The output items that model output is. `tools` are the request's, to give calls their API names.

    `parallel` false keeps the first call only. `finish_reason` is the engine's (``stop`` or ``length``); without it,
    output that does not end where a model may stop counts as cut off, and its last item as incomplete.
    """
    messages = list(messages)
    finish_reason = finish_reason or ("stop" if was_closed(messages) else "length")
    reader = read(messages, ToolTable(tools), parallel, truncated=finish_reason == "length")
    return [OutputItem(item, summarise).whole() for item in reader.items if item.text or item.kind is Kind.CALL]


def usage(prompt: int, completion: int, reasoning: int = 0, cached: int = 0) -> Json:
    """Token counts as the API spells them; `reasoning` is part of `completion`, `cached` of `prompt`."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


_ECHOED = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a request that its response repeats, with their defaults."""

_STANDARD_TOOLS = {
    "browser": {"type": "web_search"},
    "python": {"type": "code_interpreter", "container": {"type": "auto"}},
}
"""Our spellings of the built-in tools in the API's own."""


def response(request: Mapping[str, Any], model: str, created: int, response_id: str | None = None) -> Json:
    """The response object to a request before there is output: status in_progress. `created`: seconds since 1970."""
    echoed = {key: default if request.get(key) is None else request[key] for key, default in _ECHOED.items()}
    reasoning = request.get("reasoning") or {}
    return {
        "id": response_id or new_id("resp"),
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "tools": [_STANDARD_TOOLS.get(tool.get("type", ""), tool) for tool in request.get("tools") or ()],
        **echoed,
    }


def finished(response: Json, output: list[Json], finish_reason: str, usage: Json | None = None) -> Json:
    """`response` with its output; `finish_reason` length makes it incomplete."""
    cut = finish_reason == "length"
    details = {"reason": "max_output_tokens"} if cut else None
    return response | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": details,
        "output": output,
        "usage": usage,
    }


class Stream:
    """Model output as response events: `start`, then `feed` ids as they come, then `finish` once.

    `response` is the object from `response`. The items add up to what `from_messages` gives for the same output.
    `stops`: see `Reader`; once `stopped` is True, nothing more is needed of the engine.
    """

    def __init__(
        self,
        response: Json,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        parallel: bool = True,
        summarise: Summarise | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        table = ToolTable(tools)
        self.response = response
        self.parser = Parser("assistant", tools=table.namespaces())
        self._reader = Reader(table, parallel, stops)
        self._summarise = summarise
        self._done: list[Json] = []
        self._open: OutputItem | None = None
        self._n_events = 0

    @property
    def stopped(self) -> bool:
        return self._reader.stopped

    @property
    def in_answer(self) -> bool:
        """Is text of a message being written?"""
        return self._reader.in_answer

    def start(self) -> list[Json]:
        return [self._event(f"response.{name}", response=self.response) for name in ("created", "in_progress")]

    def feed(self, ids: Sequence[int]) -> list[Json]:
        """Events for new token ids; [] while a header or half a character is under way."""
        return self._events(self.parser.feed(ids), truncated=False)

    def feed_text(self, text: str) -> list[Json]:
        """The same for engines that give text in which control tokens stand as their names."""
        return self._events(self.parser.feed_text(text), truncated=False)

    def finish(self, finish_reason: str | None = None, usage: Json | None = None) -> list[Json]:
        """The last events; `response` is then the finished one."""
        parsed = self.parser.finish()
        finish_reason = finish_reason or ("stop" if was_closed(self.parser.messages) else "length")
        events = self._events(parsed, truncated=finish_reason == "length")
        self.response = finished(self.response, self._done, finish_reason, usage)
        return [*events, self._event(f"response.{self.response['status']}", response=self.response)]

    def fail(self, message: str) -> list[Json]:
        """The last event instead, when the engine has failed; complete items stay in the response."""
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
            "output": self._done,
        }
        return [self._event("response.failed", response=self.response)]

    def _events(self, events: Iterable[Event], truncated: bool) -> list[Json]:
        out: list[Json] = []
        for step, item, text in self._reader.feed(events, truncated):
            if self._open is None and (text or (step is Step.START and item.kind is Kind.CALL)):
                out += self._begin(item)
            if self._open and text:
                out.append(self._grow(self._open, text))
            if self._open and step is Step.END:
                out += self._end(self._open)
        return out

    def _begin(self, item: Item) -> list[Json]:
        self._open = OutputItem(item, self._summarise)
        events = [self._event("response.output_item.added", item=self._open.empty())]
        if item.kind is not Kind.CALL:
            events.append(self._at("response.content_part.added", part=self._open.part("")))
        return events

    def _grow(self, out: OutputItem, text: str) -> Json:
        if out.item.kind is Kind.CALL:
            return self._at("response.function_call_arguments.delta", index=None, delta=text)
        if out.item.kind is Kind.REASONING:
            return self._at("response.reasoning_text.delta", delta=text)
        return self._at("response.output_text.delta", delta=text, logprobs=[])

    def _end(self, out: OutputItem) -> list[Json]:
        text = out.item.text
        if out.item.kind is Kind.CALL:
            events = [self._at("response.function_call_arguments.done", index=None, arguments=text)]
        elif out.item.kind is Kind.REASONING:
            events = [self._at("response.reasoning_text.done", text=text)]
        else:
            events = [self._at("response.output_text.done", text=text, logprobs=[])]
        if out.item.kind is not Kind.CALL:
            events.append(self._at("response.content_part.done", part=out.part(text)))
        events += self._summary(out)
        self._done.append(out.whole())
        self._open = None
        return [
            *events,
            self._event("response.output_item.done", item=self._done[-1], output_index=len(self._done) - 1),
        ]

    def _summary(self, out: OutputItem) -> list[Json]:
        text = out.summary
        if text is None:
            return []
        steps: dict[str, Json] = {
            "part.added": {"part": {"type": "summary_text", "text": ""}},
            "text.delta": {"delta": text},
            "text.done": {"text": text},
            "part.done": {"part": {"type": "summary_text", "text": text}},
        }
        return [
            self._at(f"response.reasoning_summary_{name}", index="summary_index", **step)
            for name, step in steps.items()
        ]

    def _at(self, type: str, index: str | None = "content_index", **fields: Any) -> Json:
        """An event about the open item; `index` names the list in which its one part is number 0."""
        assert self._open is not None
        return self._event(type, item_id=self._open.id, **({index: 0} if index else {}), **fields)

    def _event(self, type: str, **fields: Any) -> Json:
        self._n_events += 1
        where = {} if "response" in fields else {"output_index": len(self._done)}
        return {"type": type, "sequence_number": self._n_events - 1} | where | fields
