"""OpenAI's Chat Completions API: requests to conversations, model output to messages and chunks.

How things map (what Harmony has no word for is decided here, once):

- system and developer messages are the application's instructions: Harmony's system message is ours. Those at the
  start become one developer message, later ones stay where they are.
- an assistant message is its reasoning (analysis), its content (a preamble on commentary when calls follow, else
  final) and its calls, in that order; an empty content beside one of the others is no content. Reasoning before the
  last final answer is dropped, as the format document asks.
- commentary without a recipient is content. Pieces of reasoning, and of content, are joined by a newline.
- the built-in tools are offered as ``{"type": "browser"}`` and ``{"type": "python"}`` and come back as calls of
  ``browser.search`` ... and ``python`` with ``{"code": ...}``; nothing is run here.
- `tool_choice` none leaves the tools out of the prompt; required and named choices need the grammar of `to_turn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.grammars.grammar import Turn
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Conversation, Json, Message
from gptoss_harmony.openai.answer_stream import AnswerStream
from gptoss_harmony.openai.calls import Restore
from gptoss_harmony.openai.chat_history import INSTRUCTING, REASONING_FIELDS, MessageCollector
from gptoss_harmony.openai.output import (
    Item,
    ItemKind,
    Reader,
    Step,
    choose_finish_reason,
    make_id,
    read_messages,
)
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
from gptoss_harmony.openai.tool_calls import read_input
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.parsing.events import Event


def to_conversation(
    request: Mapping[str, Any], *, date: str | None = None, restore: Restore | None = None
) -> Conversation:
    """The conversation to render for a request; `date` (YYYY-MM-DD) is shown to the model as today's. `restore` gives
    a call in the form in which the model wrote it (`WrittenCalls.restore`).

    Raises LayoutError, whose `where` is the path of the bad value, on anything that is not a valid text request.
    """
    messages: list[Json] = expect(request.get("messages"), list, "messages")
    roles = [_read_role(message, i) for i, message in enumerate(messages)]
    n_leading = next((i for i, role in enumerate(roles) if role not in INSTRUCTING), len(messages))
    texts = [
        join_parts(read_parts(m.get("content"), f"messages[{i}].content")) for i, m in enumerate(messages[:n_leading])
    ]
    _, section = read_response_format(read_optional(request, "response_format", dict), "response_format")
    tools = _read_tools(request)
    offered = tools.only(()) if request.get("tool_choice") == "none" else tools
    body = MessageCollector(tools, restore)
    for i in range(n_leading, len(messages)):
        body.add(messages[i], f"messages[{i}]")
    start = open_conversation(read_effort(_read_effort(request), "reasoning_effort"), date, offered, [*texts, section])
    conversation = drop_finished_reasoning([*start, *body.messages])
    if _read_effort(request) == "none":
        conversation.messages.append(skip_reasoning())
    return conversation


def to_turn(request: Mapping[str, Any]) -> Turn:
    """What the model may answer to a request, for `grammar.gbnf` and `grammar.structural_tag`."""
    tools, must_call = choose_tools(_read_tools(request), request.get("tool_choice"))
    schema, _ = read_response_format(read_optional(request, "response_format", dict), "response_format")
    return Turn(
        tuple(tools.functions),
        tuple(tools.builtins),
        choose_final(schema, must_call),
        namespaces=tuple(tools.spaces.values()),
        inputs=tools.inputs,
        reasoning=_read_effort(request) != "none",
    )


def _read_tools(request: Mapping[str, Any]) -> ToolTable:
    return ToolTable(request.get("tools"))


def _read_effort(request: Mapping[str, Any]) -> str | None:
    reasoning = read_optional(request, "reasoning", dict) or {}
    value: str | None = read_optional(request, "reasoning_effort", str) or read_optional(
        reasoning, "effort", str, "reasoning"
    )
    return value


def _read_role(message: Any, i: int) -> str:
    return str(expect(expect(message, dict, f"messages[{i}]").get("role"), str, f"messages[{i}].role"))


def from_messages(
    messages: Iterable[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    parallel: bool = True,
    finish_reason: str | None = None,
    may_call: bool = True,
) -> Json:
    """The assistant message that model output is, plus its ``finish_reason``.

    `tools` are the request's, to give calls their API names; `parallel` false keeps the first call only;
    `may_call`: see `Reader`.
    `finish_reason` is the engine's (``stop`` or ``length``); without it, output that does not end where a model may
    stop counts as cut off. ``reasoning`` repeats ``reasoning_content``: clients read either.
    """
    messages = list(messages)
    finish_reason = choose_finish_reason(messages, finish_reason)
    reader = Reader(ToolTable(tools), parallel, may_call=may_call)
    read_messages(messages, reader, truncated=finish_reason == "length")
    return _to_message(reader, finish_reason)


def _to_message(reader: Reader, finish_reason: str) -> Json:
    reasoning = _join(reader.items, ItemKind.REASONING)
    message: Json = {
        "role": "assistant",
        "content": _join(reader.items, ItemKind.PREAMBLE, ItemKind.ANSWER),
        "refusal": None,
    }
    message |= dict.fromkeys(REASONING_FIELDS, reasoning)
    calls = [_spell_call(item) for item in reader.calls]
    if calls:
        message["tool_calls"] = calls
    return message | {"finish_reason": _finish_reason(reader, finish_reason)}


def _join(items: Sequence[Item], *kinds: ItemKind) -> str | None:
    texts = [item.text for item in items if item.kind in kinds and item.text]
    return "\n".join(texts) if texts else None


def _spell_call(item: Item) -> Json:
    named = {"name": item.name}
    if item.declared and item.declared.namespace is not None:
        named["namespace"] = item.declared.namespace  # not in this API, and two of them may have tools of one name
    if _is_custom(item):
        return {"id": item.call_id, "type": "custom", "custom": named | {"input": read_input(item.text)}}
    return {"id": item.call_id, "type": "function", "function": named | {"arguments": item.text}}


def _is_custom(item: Item) -> bool:
    return item.declared is not None and item.declared.kind == "custom"


def _finish_reason(reader: Reader, reason: str) -> str:
    return "tool_calls" if reason == "stop" and reader.called else reason


def to_completion(message: Json, model: str, created: int, usage: Json, completion_id: str | None = None) -> Json:
    """A chat.completion object around what `from_messages` gave; `created` in seconds since 1970."""
    body = {key: value for key, value in message.items() if key != "finish_reason"}
    choice = {"index": 0, "message": body, "logprobs": None, "finish_reason": message["finish_reason"]}
    return {
        "id": completion_id or make_id("chatcmpl"),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def to_usage(prompt: int, completion: int, reasoning: int = 0, cached: int = 0) -> Json:
    """Token counts as the API spells them; `reasoning` is part of `completion`, `cached` of `prompt`."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class ChatStream(AnswerStream):
    """Model output as chat.completion.chunk objects: `feed` ids as they come, then `finish` once.

    The deltas add up to what `from_messages` gives for the same output, and to `message`, which stands after `finish`.
    `stops` and `may_call`: see `Reader`; once `stopped` is True, nothing more is needed of the engine.
    """

    def __init__(
        self,
        model: str,
        created: int,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        parallel: bool = True,
        completion_id: str | None = None,
        stops: Sequence[str] = (),
        may_call: bool = True,
        show_reasoning: bool = True,
    ) -> None:
        super().__init__(ToolTable(tools), parallel, stops, may_call)
        self.message: Json = {}
        self._show_reasoning = show_reasoning
        self._base = {
            "id": completion_id or make_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._n_calls = 0
        self._started = False
        self._fields: set[str] = set()  # the delta fields written so far
        self._fresh = False  # the current item has not written yet

    @property
    def model(self) -> str:
        return str(self._base["model"])

    def finish(self, finish_reason: str | None = None, usage: Json | None = None) -> list[Json]:
        """The last chunks: what was held back, the finish reason, and the usage if it is given."""
        events = self.parser.finish()
        finish_reason = choose_finish_reason(self.parser.messages, finish_reason)
        chunks = self._write(events, truncated=finish_reason == "length")
        self.message = _to_message(self._reader, finish_reason)
        if not self._show_reasoning:
            self.message |= dict.fromkeys(REASONING_FIELDS)
        chunks.append(self._chunk({}, _finish_reason(self._reader, finish_reason)))
        if usage is not None:
            chunks.append(self._base | {"choices": [], "usage": usage})
        return chunks

    def _write(self, events: Iterable[Event], truncated: bool) -> list[Json]:
        deltas = [self._delta(*change) for change in self._reader.feed(events, truncated)]
        return [self._chunk(delta) for delta in deltas if delta]

    def _delta(self, step: Step, item: Item, text: str) -> Json:
        if item.kind is ItemKind.CALL:
            return self._call_delta(step, item, text)
        if item.kind is ItemKind.REASONING and not self._show_reasoning:
            return {}
        if step is not Step.TEXT:
            self._fresh = True
            return {}
        fields = REASONING_FIELDS if item.kind is ItemKind.REASONING else ("content",)
        if self._fresh and fields[0] in self._fields:
            text = "\n" + text
        self._fresh = False
        self._fields.add(fields[0])
        return dict.fromkeys(fields, text)

    def _call_delta(self, step: Step, item: Item, text: str) -> Json:
        if _is_custom(item):  # only the whole JSON object says what the input is
            if step is not Step.END:
                return {}
            self._n_calls += 1
            call: Json = {"index": self._n_calls - 1} | _spell_call(item)
        elif step is Step.START:
            self._n_calls += 1
            call = {"index": self._n_calls - 1} | _spell_call(item)
        elif step is Step.TEXT:
            call = {"index": self._n_calls - 1, "function": {"arguments": text}}
        else:
            return {}
        return {"tool_calls": [call]}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        if not self._started:
            self._started = True
            delta = {"role": "assistant"} | delta
        return self._base | {
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        }
