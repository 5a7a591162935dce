"""Model output as the events of the Responses API, while it comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.messages import Json
from gptoss_harmony.openai.answer_stream import AnswerStream
from gptoss_harmony.openai.output import Item, ItemKind, Step, choose_finish_reason
from gptoss_harmony.openai.response_items import ResponseItem, Seal, Summarise
from gptoss_harmony.openai.responses import finish_response
from gptoss_harmony.openai.tool_calls import read_input
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.parsing.events import Event

_ARGUMENTS = {"function": "function_call_arguments", "mcp": "mcp_call_arguments"}
"""Tool types whose calls' arguments are streamed as they are -> the events' name."""


class ResponseStream(AnswerStream):
    """Model output as response events: `start`, then `feed` ids as they come, then `finish` once.

    `response` is the object from `to_response`. The items add up to what `from_messages` gives for the same output.
    `seal` fills the encrypted content of reasoning. `stops` and `may_call`: see `Reader`; once `stopped` is True,
    nothing more is needed of the engine.
    """

    def __init__(
        self,
        response: Json,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        parallel: bool = True,
        summarise: Summarise | None = None,
        stops: Sequence[str] = (),
        may_call: bool = True,
        seal: Seal | None = None,
    ) -> None:
        super().__init__(ToolTable(tools), parallel, stops, may_call)
        self.response = response
        self._summarise = summarise
        self._seal = seal
        self._done: list[Json] = []
        self._open: ResponseItem | None = None
        self._n_events = 0

    def start(self) -> list[Json]:
        return [self._event(f"response.{name}", response=self.response) for name in ("created", "in_progress")]

    def finish(self, finish_reason: str | None = None, usage: Json | None = None) -> list[Json]:
        """The last events; `response` is then the finished one."""
        parsed = self.parser.finish()
        finish_reason = choose_finish_reason(self.parser.messages, finish_reason)
        events = self._write(parsed, truncated=finish_reason == "length")
        self.response = finish_response(self.response, self._done, finish_reason, usage)
        return [*events, self._event(f"response.{self.response['status']}", response=self.response)]

    def fail(self, message: str) -> list[Json]:
        """The last events when the engine has failed. What was said stays in the response; half a call does not."""
        half = self._open if self._open and self._open.item.kind is not ItemKind.CALL else None
        events = self._end(half) if half else []
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
            "output": self._done,
        }
        return [*events, self._event("response.failed", response=self.response)]

    def _write(self, events: Iterable[Event], truncated: bool) -> list[Json]:
        out: list[Json] = []
        for step, item, text in self._reader.feed(events, truncated):
            if self._open is None and (text or (step is Step.START and item.kind is ItemKind.CALL)):
                out += self._begin(item)
            if self._open and text:
                out += self._grow(self._open, text)
            if self._open and step is Step.END:
                out += self._end(self._open)
        return out

    def _begin(self, item: Item) -> list[Json]:
        self._open = ResponseItem(item, self._summarise, self._seal)
        events = [self._event("response.output_item.added", item=self._open.empty())]
        if item.kind is not ItemKind.CALL:
            events.append(self._at("response.content_part.added", part=self._open.part("")))
        return events

    def _grow(self, out: ResponseItem, text: str) -> list[Json]:
        if out.item.kind is ItemKind.CALL:
            name = _ARGUMENTS.get(out.declared.kind)  # the other types have no events of their own: the item is it
            return [self._at(f"response.{name}.delta", index=None, delta=text)] if name else []
        if out.item.kind is ItemKind.REASONING:
            return [self._at("response.reasoning_text.delta", delta=text)]
        return [self._at("response.output_text.delta", delta=text, logprobs=[])]

    def _end_call(self, out: ResponseItem) -> list[Json]:
        text = out.item.text
        if out.declared.kind == "custom":  # only the whole JSON object says what the input is
            given = read_input(text)
            name = "response.custom_tool_call_input"
            return [
                self._at(f"{name}.delta", index=None, delta=given),
                self._at(f"{name}.done", index=None, input=given),
            ]
        name = _ARGUMENTS.get(out.declared.kind, "")
        return [self._at(f"response.{name}.done", index=None, arguments=text)] if name else []

    def _end(self, out: ResponseItem) -> list[Json]:
        text = out.item.text
        if out.item.kind is ItemKind.CALL:
            events = self._end_call(out)
        elif out.item.kind is ItemKind.REASONING:
            events = [self._at("response.reasoning_text.done", text=text)]
        else:
            events = [self._at("response.output_text.done", text=text, logprobs=[])]
        if out.item.kind is not ItemKind.CALL:
            events.append(self._at("response.content_part.done", part=out.part(text)))
        events += self._summary(out)
        self._done.append(out.whole())
        self._open = None
        return [
            *events,
            self._event("response.output_item.done", item=self._done[-1], output_index=len(self._done) - 1),
        ]

    def _summary(self, out: ResponseItem) -> list[Json]:
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
