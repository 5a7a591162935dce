"""Model output as Anthropic's Messages API has it: events, and the message that they add up to.

A call is given out when it is complete, and only if its arguments are a JSON object: the API has no other form for
them, and a client runs what it is given. Of a call that a limit cut off, or whose arguments are none, a warning says
so; the text of one that is complete becomes text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from gptoss_harmony.messages import Json
from gptoss_harmony.openai.answer_stream import AnswerStream
from gptoss_harmony.openai.messages_api import MessagesRequest
from gptoss_harmony.openai.output import Item, ItemKind, Step, choose_finish_reason, make_id
from gptoss_harmony.openai.thinking import sign
from gptoss_harmony.parsing.events import Event


def to_usage(prompt: int, completion: int, reasoning: int = 0, cached: int = 0) -> Json:
    """Token counts as the API spells them; `reasoning` is part of `completion`, `cached` of `prompt`."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": {"thinking_tokens": reasoning},
    }


class MessagesStream(AnswerStream):
    """`start` once, `feed` ids as they come, then `finish` once; `message` stands after that.

    `room`: the tokens that the context leaves for an answer, where they are fewer than the request's limit.
    """

    def __init__(
        self, request: MessagesRequest, model: str, *, stops: Sequence[str] = (), room: int | None = None
    ) -> None:
        super().__init__(request.table, request.parallel, stops, request.may_call)
        self._hides_thinking = request.hides_thinking
        self._room = room
        self._open: Item | None = None
        self.warnings: list[str] = []  # what of the output is not in the message
        self.message: Json = {
            "id": make_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": None,
        }

    @property
    def text(self) -> str:
        """The text of the answer, without thinking and preambles."""
        return "".join(item.text for item in self._reader.items if item.kind is ItemKind.ANSWER)

    @property
    def called(self) -> bool:
        return any(block["type"] == "tool_use" for block in self.message["content"])

    def start(self, usage: Json) -> list[Json]:
        """The first events. `usage`: with the prompt's tokens."""
        return [{"type": "message_start", "message": self.message | {"content": [], "usage": usage}}, {"type": "ping"}]

    def finish(self, finish_reason: str | None = None, usage: Json | None = None) -> list[Json]:
        """The last events. `finish_reason`: the engine's, ``stop`` or ``length``, or None."""
        events = self.parser.finish()
        reason = choose_finish_reason(self.parser.messages, finish_reason)
        out = self._write(events, truncated=reason == "length")
        delta = {"stop_reason": self._choose_stop(reason, usage or {}), "stop_sequence": self._reader.stop}
        self.message |= delta | {"usage": usage}
        return [*out, {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _choose_stop(self, reason: str, usage: Json) -> str:
        if self._reader.stopped:
            return "stop_sequence"
        if reason == "length":
            full = self._room is not None and usage.get("output_tokens", 0) >= self._room
            return "model_context_window_exceeded" if full else "max_tokens"
        return "tool_use" if self.called else "end_turn"

    def _write(self, events: Iterable[Event], truncated: bool) -> list[Json]:
        changes = self._reader.feed(events, truncated)
        return [event for step, item, text in changes for event in self._change(step, item, text)]

    def _change(self, step: Step, item: Item, text: str) -> list[Json]:
        if item.kind is ItemKind.CALL:
            return self._give_call(item) if step is Step.END else []
        events: list[Json] = []
        if step is Step.TEXT:
            if self._open is not item:
                self._open = item
                events.append(self._begin(self._spell(item, "", "")))
            if item.kind is not ItemKind.REASONING:
                events.append(self._delta({"type": "text_delta", "text": text}))
            elif not self._hides_thinking:
                events.append(self._delta({"type": "thinking_delta", "thinking": text}))
        elif step is Step.END and self._open is item:
            events += self._end(item)
        return events

    def _end(self, item: Item) -> list[Json]:
        self._open = None
        signature = sign(item.text, carry=self._hides_thinking) if item.kind is ItemKind.REASONING else ""
        signed = [self._delta({"type": "signature_delta", "signature": signature})] if signature else []
        return [*signed, self._close(self._spell(item, item.text, signature))]

    def _spell(self, item: Item, text: str, signature: str) -> Json:
        if item.kind is not ItemKind.REASONING:
            return {"type": "text", "text": text}
        return {"type": "thinking", "thinking": "" if self._hides_thinking else text, "signature": signature}

    def _give_call(self, item: Item) -> list[Json]:
        arguments = _read_object(item.text)
        if arguments is None:
            return self._refuse_call(item)
        item.call_id = make_id("toolu")
        block = {"type": "tool_use", "id": item.call_id, "name": item.name, "input": {}}
        begun = self._begin(block)
        given = self._delta({"type": "input_json_delta", "partial_json": item.text})
        return [begun, given, self._close(block | {"input": arguments})]

    def _refuse_call(self, item: Item) -> list[Json]:
        if not item.complete:
            self.warnings.append(f"the call of {item.name!r} was cut off: it is left out")
            return []
        self.warnings.append(f"the arguments of a call of {item.name!r} are no JSON object: they are given as text")
        block = {"type": "text", "text": item.text}
        begun = self._begin({"type": "text", "text": ""})
        return [begun, self._delta({"type": "text_delta", "text": item.text}), self._close(block)]

    def _begin(self, block: Json) -> Json:
        return {"type": "content_block_start", "index": len(self.message["content"]), "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self.message["content"]), "delta": delta}

    def _close(self, block: Json) -> Json:
        self.message["content"].append(block)
        return {"type": "content_block_stop", "index": len(self.message["content"]) - 1}


def _read_object(text: str) -> Json | None:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
