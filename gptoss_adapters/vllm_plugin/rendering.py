"""`GPTOSS_ADAPTERS_RENDER=1`: vLLM's server renders gpt-oss chats with `gptoss_harmony`.

vLLM spells every call of a history anew. Here a call that this server's model wrote goes back as the ids that it
wrote, so that a conversation only ever appends to its prompt, and past reasoning is kept and dropped as the Harmony
format asks. What vLLM does itself stays: its checks of a request, its messages (for `echo`, `store`, built-in tools
of MCP servers), its limits of length. Only the ids of the prompt are ours:

    Chat Completions, Messages, Responses with function tools    the request's own, by `gptoss_harmony.openai`
    a chain by `previous_response_id`, built-in tools            vLLM's messages, with calls as they were written

A request that we cannot read is rendered by vLLM, and a line in the log says so.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, wraps
from typing import Any

from gptoss_harmony import Conversation, Message, Renderer, render
from gptoss_harmony.openai import chat_completions, responses
from gptoss_harmony.openai.calls import WrittenCalls
from gptoss_harmony.openai.requests import drop_finished_reasoning

from gptoss_adapters.vllm_plugin import log

SWITCH = "GPTOSS_ADAPTERS_RENDER"
_CHAT = ("tool_choice", "response_format", "reasoning_effort")
_RESPONSES = {"input", "instructions", "tools", "tool_choice", "text", "reasoning"}
_CONSTRAINED = "<|constrain|>json"

Read = Callable[[], Conversation]
_reading: ContextVar[Read | None] = ContextVar("gptoss_adapters_reading", default=None)
"""How to read the request whose prompt is being made, from the time before vLLM changed it."""


def wanted() -> bool:
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "false", "off")


def remember(messages: Iterable[Message]) -> None:
    """Keeps the calls in a model's output, to give them back as they were written."""
    if wanted():
        for message in messages:
            _written().remember(message)


def install() -> None:
    """Puts our ids into vLLM's renderer; may be called again. Raises AttributeError where that looks otherwise."""
    from vllm import envs
    from vllm.renderers import online_renderer

    if getattr(online_renderer.render_for_completion, "gptoss_adapters", False):
        return
    if envs.VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS:
        log.warning("gptoss-adapters: %s stays out: VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS is vLLM's own", SWITCH)
        return
    renderer = online_renderer.OnlineRenderer
    chat, answer = renderer.render_chat, renderer._render_responses_with_harmony

    @wraps(chat)
    async def render_chat(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        token = _reading.set(_try_to_read(read_chat, request) if self.use_harmony else None)
        try:
            return await chat(self, request, *args, **kwargs)
        finally:
            _reading.reset(token)

    @wraps(answer)
    def render_responses(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        token = _reading.set(_try_to_read(read_response, request, kwargs.get("previous_messages")))
        try:
            return answer(self, request, *args, **kwargs)
        finally:
            _reading.reset(token)

    renderer.render_chat, renderer._render_responses_with_harmony = render_chat, render_responses
    online_renderer.render_for_completion = _wrap_renderer(online_renderer.render_for_completion)
    log.info("gptoss-adapters: chats are rendered by gptoss_harmony (%s)", SWITCH)


def _wrap_renderer(builtin: Callable[..., list[int]]) -> Callable[..., list[int]]:
    @wraps(builtin)
    def render_for_completion(messages: Sequence[Any]) -> list[int]:
        try:
            return render_ids(messages)
        except Exception as error:  # a chat must not fail because of us
            log.warning("gptoss-adapters: vLLM renders this chat: %s: %s", type(error).__name__, error)
            return list(builtin(messages))

    render_for_completion.gptoss_adapters = True  # type: ignore[attr-defined]
    return render_for_completion


def _try_to_read(reader: Callable[..., Read | None], *given: Any) -> Read | None:
    try:
        return reader(*given)
    except Exception as error:  # vLLM has its own words for a request that it cannot read either
        log.warning("gptoss-adapters: vLLM reads this request: %s: %s", type(error).__name__, error)
        return None


def read_chat(request: Any) -> Read:
    """How to read a ChatCompletionRequest, copied before vLLM takes the response format out of it."""
    plain = _dump(request, set(_CHAT) | {"tools"})
    messages = [_copy_message(message) for message in request.messages]
    return lambda: chat_completions.to_conversation(
        plain | {"messages": messages}, date=_today(), restore=_written().restore
    )


def read_response(request: Any, previous: Any) -> Read | None:
    """How to read a ResponsesRequest; None where its history or tools are only in vLLM's messages."""
    plain = _dump(request, _RESPONSES)
    kinds = {tool.get("type") for tool in plain.get("tools") or ()}
    if previous is not None or getattr(request, "previous_input_messages", None) or kinds - {"function"}:
        return None
    return lambda: responses.to_conversation(plain, date=_today(), restore=_written().restore)


def render_ids(messages: Sequence[Any]) -> list[int]:
    """The prompt of the request that is being read, else of vLLM's (openai_harmony's) messages. Raises LayoutError,
    RenderError.
    """
    read = _reading.get()
    conversation = read() if read else _translate(messages)
    return render(conversation.messages, drop="none", headers="as_parsed", renderer=_renderer())


def _translate(messages: Sequence[Any]) -> Conversation:
    ours = []
    for message in messages:
        made = Message.from_dict(message.to_dict())
        if made.recipient and made.content_type == "json":  # vLLM's short form of what the format says
            made = replace(made, content_type=_CONSTRAINED)
        ours.append(_written().restore(made))
    return drop_finished_reasoning(ours)


def _dump(request: Any, fields: set[str]) -> dict[str, Any]:
    dumped: dict[str, Any] = request.model_dump(
        mode="json", by_alias=True, exclude_none=True, include=fields, warnings=False
    )
    return dumped


def _copy_message(message: Any) -> dict[str, Any]:
    """A message with the calls that pydantic hands out once."""
    copied = dict(message) if isinstance(message, Mapping) else message.model_dump(exclude_none=True)
    if copied.get("tool_calls") is not None:
        copied["tool_calls"] = [dict(call) for call in copied["tool_calls"]]
        if isinstance(message, dict):
            message["tool_calls"] = copied["tool_calls"]
    return {key: value for key, value in copied.items() if value is not None}


def _today() -> str:
    from vllm import envs

    return envs.VLLM_SYSTEM_START_DATE or datetime.datetime.now().strftime("%Y-%m-%d")  # vLLM's own rule


@cache
def _renderer() -> Renderer:
    return Renderer()


@cache
def _written() -> WrittenCalls:
    return WrittenCalls()
