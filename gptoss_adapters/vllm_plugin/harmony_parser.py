"""vLLM's parser of gpt-oss output, on top of `gptoss_harmony`: it never raises and never loses an answer.

Two APIs ask for it in two ways. Chat Completions wants (reasoning, content, calls), whole (`parse`) or as deltas
(`parse_delta`): both are read from the same `Reader`, so a streamed answer and a whole one cannot differ. Responses
wants *segments* (`process_chunk`, `flush`): deltas and closed messages under header fields that vLLM's code can take;
what it would raise on (a channel it does not know, a malformed browser call) comes as an answer or as a function call.

Importing this module puts the class in the place of vLLM's own: `harmony_hooks` says when. It needs vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import vllm.parser
import vllm.parser.harmony
from gptoss_harmony import Parser
from gptoss_harmony.errors import LayoutError
from gptoss_harmony.openai.output import Item, ItemKind, Reader, Step, was_closed
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.parsing.events import Delta, Event, MessageEnd, MessageStart
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, FINAL
from openai_harmony import Message, Role
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.parser.harmony import ChunkResult, HarmonyParser, Segment
from vllm.reasoning.gptoss_reasoning_parser import GptOssReasoningParser
from vllm.sampling_params import StructuredOutputsParams

from gptoss_adapters.vllm_plugin import hooks, log, metrics, rendering
from gptoss_adapters.vllm_plugin.harmony_tags import make_structural_tag
from gptoss_adapters.vllm_plugin.probing import Sources, find_obstacle

try:
    from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
except ImportError:  # before 0.29
    from vllm.entrypoints.openai.engine.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
try:
    from vllm.renderers.chat_utils import make_tool_call_id
except ImportError:  # before 0.32
    from vllm.entrypoints.chat_utils import make_tool_call_id

__all__ = ["GptOssReasoningParser", "TolerantHarmonyParser"]

_CHANNELS = frozenset({ANALYSIS, COMMENTARY, FINAL})
_BUILTINS = {"web_search": "browser", "code_interpreter": "python", "container": "container"}  # API type: namespace
_BROWSER_NEEDS = {"search": "query", "find": "pattern", "open": None}


@dataclass
class _Answer:
    """What one request's output has come to: `shown` are the texts of the fields sent so far."""

    parser: Parser
    reader: Reader
    fields: set[str] = field(default_factory=set)
    fresh: bool = False  # the current item has sent nothing yet
    n_calls: int = 0
    unshown: list[str] = field(default_factory=list)  # arguments of calls that this request cannot be told about


class TolerantHarmonyParser(HarmonyParser):
    """One request's output. `tools`: the request's, as vLLM's objects; calls are completed and named from them."""

    makes_tags = True  # of its own, for what a request demands; vLLM's where ours would not be compiled apart

    def __init__(self, tokenizer: Any, tools: Sequence[Any] | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, tools, *args, **kwargs)
        raw = [_to_dict(tool) for tool in tools or ()]
        self._table = _make_table(raw)
        kinds = [str(tool.get("type", "")) for tool in raw]
        self._offered = {space for kind, space in _BUILTINS.items() if any(k.startswith(kind) for k in kinds)}
        self._labels = {str(tool["server_label"]) for tool in raw if tool.get("server_label")}
        self._num_counted_tokens = 0  # vLLM's own names, of which it has none before 0.31
        self._num_reasoning_tokens = 0
        self._begin()

    def _begin(self) -> None:
        self._answer = _Answer(Parser("assistant", tools=self._table.namespaces()), Reader(self._table))
        self._header: tuple[str, str | None] = (FINAL, None)
        self._written: list[str] = []

    def _end(self) -> None:
        messages = self._answer.parser.messages
        metrics.count_messages(messages, closed=was_closed(messages))
        rendering.remember(messages)
        self._begin()

    # Chat Completions -------------------------------------------------------------------------------------------------

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[Any] | None]:
        """(reasoning, content, calls) of a whole output; None for what there is not."""
        parser = self._answer.parser
        before = _count_reasoning(parser)
        ids = list(model_output_token_ids)
        events = [*(parser.feed(ids) if ids else parser.feed_text(model_output)), *parser.finish()]
        self._count(len(ids), before)
        reader = self._answer.reader
        for _ in reader.feed(events, truncated=not was_closed(parser.messages)):
            pass
        calls = [item for item in reader.items if item.kind is ItemKind.CALL]
        self._end()
        content = _join_texts(reader.items, ItemKind.PREAMBLE, ItemKind.ANSWER)
        if not self._surfaces_calls(request):
            content = content or _join_texts(reader.items, ItemKind.CALL)
            calls = []
        reasoning = _join_texts(reader.items, ItemKind.REASONING) if self.reasoning_parser else None
        return reasoning, content, [FunctionCall(name=call.name, arguments=call.text) for call in calls] or None

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> Any:
        """What new tokens add to the answer as a DeltaMessage, or None."""
        answer = self._answer
        before = _count_reasoning(answer.parser)
        events = answer.parser.feed(delta_token_ids) if delta_token_ids else answer.parser.feed_text(delta_text)
        message = DeltaMessage()
        self._add(message, answer.reader.feed(events, truncated=False), request)
        if finished:
            events = answer.parser.finish()
            truncated = not was_closed(answer.parser.messages)
            self._add(message, answer.reader.feed(events, truncated), request)
            if answer.unshown and "content" not in answer.fields:
                message.content = "\n".join(filter(None, answer.unshown)) or None
        self._count(len(delta_token_ids), before)
        if finished:
            self._end()
        return message if message.content or message.reasoning or message.tool_calls else None

    def _add(self, message: Any, changes: Iterable[tuple[Step, Item, str]], request: Any) -> None:
        answer = self._answer
        surfaces = self._surfaces_calls(request)
        for step, item, text in changes:
            if item.kind is ItemKind.CALL and surfaces:
                self._add_call(message, step, item, text)
            elif item.kind is ItemKind.CALL:
                if step is Step.END:
                    answer.unshown.append(item.text)
            elif step is Step.START:
                answer.fresh = True
            elif step is Step.TEXT:
                self._add_text(message, "reasoning" if item.kind is ItemKind.REASONING else "content", text, request)

    def _add_text(self, message: Any, name: str, text: str, request: Any) -> None:
        answer = self._answer
        if name == "reasoning" and not (self.reasoning_parser and request.include_reasoning):
            return
        if answer.fresh and name in answer.fields:
            text = "\n" + text
        answer.fresh = False
        answer.fields.add(name)
        setattr(message, name, (getattr(message, name) or "") + text)

    def _add_call(self, message: Any, step: Step, item: Item, text: str) -> None:
        answer = self._answer
        if step is Step.START:
            answer.n_calls += 1
            function = DeltaFunctionCall(name=item.name, arguments="")
            call = DeltaToolCall(id=make_tool_call_id(), type="function", function=function, index=answer.n_calls - 1)
            message.tool_calls = [*message.tool_calls, call]
        elif step is Step.TEXT:
            index = answer.n_calls - 1
            if message.tool_calls and message.tool_calls[-1].index == index:
                message.tool_calls[-1].function.arguments += text
            else:
                more = DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=text))
                message.tool_calls = [*message.tool_calls, more]

    def _surfaces_calls(self, request: Any) -> bool:
        """Does vLLM's Chat Completions pass calls on to this request's client?"""
        choice = getattr(request, "tool_choice", None)
        if choice in (None, "none") or not getattr(request, "tools", None):
            return False
        return choice != "auto" or self.tool_parser is not None

    # Responses --------------------------------------------------------------------------------------------------------

    def process_chunk(self, token_ids: Sequence[int]) -> Any:
        """New tokens as segments, and how many of them are reasoning."""
        parser = self._answer.parser
        before = _count_reasoning(parser)
        segments = list(self._read_segments(parser.feed(list(token_ids)), truncated=False)) if len(token_ids) else []
        return ChunkResult(segments=segments, reasoning_token_count=self._count(len(token_ids), before))

    def flush(self) -> list[Any]:
        """The segments of a message that the end of the output cut off; the parser is as new afterwards."""
        parser = self._answer.parser
        events = parser.finish()
        segments = list(self._read_segments(events, truncated=not was_closed(parser.messages)))
        self._end()
        return segments

    def _read_segments(self, events: Iterable[Event], truncated: bool) -> Iterator[Any]:
        reader = self._answer.reader
        for event in events:
            if isinstance(event, MessageStart):
                self._header = self._choose_header(event.header.channel, event.header.recipient)
                self._written = []
            raw = self._header[1] is not None and not self._header[1].startswith("functions.")
            for step, _, text in reader.feed([event], truncated):
                if step is Step.TEXT:
                    if raw:
                        text = event.text if isinstance(event, Delta) else ""
                    if text:
                        self._written.append(text)
                        yield Segment(*self._header, text, None)
                elif step is Step.END and isinstance(event, MessageEnd):
                    yield Segment(*self._header, "", self._make_message(event))

    def _choose_header(self, channel: str | None, recipient: str | None) -> tuple[str, str | None]:
        """Channel and recipient in words that vLLM's Responses code has a branch for."""
        name = self._table.api_name(recipient)
        if name is None:
            return channel if channel in _CHANNELS else FINAL, None
        space = name.partition(".")[0]
        if not (recipient or "").startswith("functions.") and (space in self._offered or space in self._labels):
            return channel if channel in _CHANNELS else COMMENTARY, recipient
        return COMMENTARY, f"functions.{name}"

    def _make_message(self, event: MessageEnd) -> Any:
        channel, recipient = self._header
        text = "".join(self._written)
        if recipient and recipient.startswith("browser.") and not _is_browser_call(recipient, text):
            recipient = f"functions.{recipient}"
        message = Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)
        if recipient is not None:
            message = message.with_recipient(recipient)
        if event.message.content_type is not None:
            message = message.with_content_type(event.message.content_type)
        return message

    # Both -------------------------------------------------------------------------------------------------------------

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens of reasoning and of calls' arguments, as vLLM counts them."""
        if len(token_ids) == self._num_counted_tokens:
            return int(self._num_reasoning_tokens)
        parser = Parser("assistant", tools=self._table.namespaces())
        parser.feed(list(token_ids))
        return _count_reasoning(parser)

    def _count(self, tokens: int, before: int) -> int:
        new = _count_reasoning(self._answer.parser) - before
        self._num_counted_tokens += tokens
        self._num_reasoning_tokens += new
        return new

    def adjust_request(self, request: Any) -> Any:
        """Hold the model to what the request demands: a call (tool_choice), or an answer of a JSON schema.

        Our structural tag matches control tokens as tokens. What it has no words for goes vLLM's own way.
        """
        tag = make_structural_tag(request) if self.makes_tags else None
        if tag is None:
            return super().adjust_request(request)
        metrics.count_held_tag()
        request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(tag))
        if isinstance(request, ResponsesRequest):
            request.text = None
        else:
            request.response_format = None
        return request


def _to_dict(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    dumped: dict[str, Any] = tool.model_dump(mode="json", exclude_none=True)
    return dumped


def _make_table(tools: Sequence[Mapping[str, Any]]) -> ToolTable:
    """The function tools of a request; others are vLLM's own affair, and a bad one must not cost the answer."""
    functions = [tool for tool in tools if tool.get("type", "function") == "function"]
    try:
        return ToolTable(functions)
    except LayoutError:
        return ToolTable()


def _join_texts(items: Sequence[Item], *kinds: ItemKind) -> str | None:
    return "\n".join(item.text for item in items if item.kind in kinds and item.text) or None


def _count_reasoning(parser: Parser) -> int:
    counts = parser.counts
    return counts.reasoning + counts.tool_call


def _is_browser_call(recipient: str, arguments: str) -> bool:
    """Can vLLM make a web search item of it?"""
    action = recipient.removeprefix("browser.")
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    needed = _BROWSER_NEEDS.get(action, "")
    return needed != "" and isinstance(value, dict) and (needed is None or isinstance(value.get(needed), str))


def _replace_builtin() -> None:
    """Make vLLM's `HarmonyParser` ours; ours is a subclass, so what the built-in promises still holds. Its tags are
    compiled our way, or are vLLM's.
    """
    TolerantHarmonyParser.makes_tags = _install_tags()
    vllm.parser.harmony.HarmonyParser = TolerantHarmonyParser
    vllm.parser.HarmonyParser = TolerantHarmonyParser
    if rendering.wanted():
        _try("prompts are rendered by vLLM", rendering.install)


def _install_tags() -> bool:
    if find_obstacle(hooks.TAGS.needs, Sources()):
        return False  # which was said at the start

    def install() -> None:
        from gptoss_adapters.vllm_plugin import tag_compiler

        tag_compiler.install()

    return _try("structural tags are vLLM's own", install)


def _try(otherwise: str, install: Callable[[], None]) -> bool:
    try:
        install()
    except Exception as error:  # the parser must not go with it
        log.warning("gptoss-adapters: %s: %s: %s", otherwise, type(error).__name__, error)
        return False
    return True


_replace_builtin()
