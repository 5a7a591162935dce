"""/v1/responses: create (whole and streamed), and count the tokens of a request."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass
from typing import Any

from gptoss_harmony.messages import Conversation
from gptoss_harmony.openai.output import make_id
from gptoss_harmony.openai.response_items import Summarise
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.responses import to_conversation, to_response, to_turn, to_usage

from gptoss_adapters.serve.answers import Answer, find_warnings
from gptoss_adapters.serve.arguments import Reading
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.bodies import ResponsesBody
from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.exchange import Exchange, dump
from gptoss_adapters.serve.history import read_history
from gptoss_adapters.serve.running import RunningResponse, keep_running
from gptoss_adapters.serve.service import Service, to_api_error

_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"
_FIRST_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|$)", re.DOTALL)


class ResponseLogprobs:
    """Puts log-probabilities into the events of a message, and all of them into its parts."""

    def __init__(self) -> None:
        self._of_item: list[Json] = []

    def __call__(self, events: list[Json], entries: list[Json]) -> list[Json]:
        for event in events:
            kind = event["type"]
            if kind == "response.output_text.delta":
                event["logprobs"] = entries
                self._of_item += entries
                entries = []
            elif kind == "response.output_text.done":
                self._of_item = [*self._of_item, *entries]
                entries = []
                event["logprobs"] = self._of_item
            elif kind == "response.content_part.done" and event["part"]["type"] == "output_text":
                event["part"]["logprobs"] = self._of_item
            elif kind == "response.output_item.done" and event["item"]["type"] == "message":
                event["item"]["content"][0]["logprobs"] = self._of_item
                self._of_item = []
        return entries


async def create(service: Service, exchange: Exchange, raw: Json) -> None:
    given = raw.get("tools")
    reading, conversation = await _read(service, raw)
    body, raw = reading.body, reading.raw
    if raw.get("input") in (None, []) and body.previous_response_id is None:
        raise bad_request("input: there is nothing to answer: send input, or previous_response_id", "input")
    include = body.include or ()
    asked = service.ask(reading, conversation, to_turn(raw), (body.top_logprobs or 0) if _LOGPROBS in include else None)
    begun = to_response(raw | {"tools": given}, reading.model, int(time.time()))
    begun |= {name: asked.settings.get(name, 0.0) for name in ("presence_penalty", "frequency_penalty")}
    begun |= {"store": body.store is not False, "tools": [_complete_tool(tool) for tool in begun["tools"]]}
    stream = ResponseStream(
        begun,
        body.tools,
        parallel=body.parallel_tool_calls is not False,
        summarise=_choose_summary((raw.get("reasoning") or {}).get("summary")),
        stops=body.stops,
        may_call=bool(body.tools) and body.tool_choice != "none",
        seal=service.sealer.seal if _ENCRYPTED in include else None,
    )
    answer = await service.begin(exchange, asked, stream, ResponseLogprobs())
    with keep_running(service.running, begun, answer.cancel) as running:
        making = Making(service, exchange, answer, asked, stream, raw, running)
        await (making.stream_events() if body.stream else making.answer_whole())


async def count_tokens(service: Service, exchange: Exchange, raw: Json) -> None:
    """POST /v1/responses/input_tokens: the length of the prompt that a request would be."""
    reading, conversation = await _read(service, raw)
    n_tokens = len(service.prompts.ids(conversation))
    warnings = {"warnings": reading.warnings} if reading.warnings else {}
    await exchange.json({"object": "response.input_tokens", "input_tokens": n_tokens, **warnings})


async def _read(service: Service, raw: Json) -> tuple[Reading[ResponsesBody], Conversation]:
    reading = service.read(ResponsesBody, raw)
    previous = await _load_previous(service, reading.body.previous_response_id)
    await asyncio.to_thread(read_history, reading, previous, service.store.find_item, service.sealer.open)
    restore = service.prompts.restore
    return reading, to_conversation(reading.raw, previous=previous, date=service.date, restore=restore)


@dataclass(frozen=True, slots=True)
class Making:
    """One response in the making. raw: the request."""

    service: Service
    exchange: Exchange
    answer: Answer
    asked: Ask
    stream: ResponseStream
    raw: Json
    running: RunningResponse

    async def answer_whole(self) -> None:
        self.stream.start()
        async for _ in self.answer.events():
            pass
        await self._complete()
        await self.exchange.json(self.stream.response)

    async def stream_events(self) -> None:
        await self.exchange.events(_encode(self.stream.start()))
        try:
            async for events in self.answer.events():
                if events:
                    await self.exchange.events(_encode(events))
            last = await self._complete()
        except Exception as error:  # whatever it is, a stream does not just break off
            last = self.stream.fail(str(to_api_error(error)))
            with contextlib.suppress(Exception):  # it may be the store that failed
                await self._store()
            await self.exchange.events(_encode(last), last=True)
            raise
        await self.exchange.events(_encode(last), last=True)

    async def _complete(self) -> list[Json]:
        """The last events; the response is stored before they are sent."""
        events = self.answer.finish(to_usage)
        self.service.record(self.exchange, self.answer)
        whole = self.stream.response
        if self.running.cancelled:
            whole |= {"status": "cancelled", "completed_at": None, "incomplete_details": None}
            events[-1]["type"] = "response.incomplete"  # the API has no event of its own for it
        called = any(item["type"] not in ("message", "reasoning") for item in whole["output"])
        messages = [item for item in whole["output"] if item["type"] == "message"]
        text = "".join(part["text"] for item in messages for part in item["content"])
        found = find_warnings(self.asked, self.stream, text, called, whole["status"] == "completed")
        if found:
            whole["warnings"] = found
        await self._store()
        return events

    async def _store(self) -> None:
        whole = self.stream.response
        if whole["store"]:
            await asyncio.to_thread(self.service.store.add, whole, complete_input(self.raw))
        self.running.end(whole)


def _encode(events: list[Json]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dump(event)) for event in events])


async def _load_previous(service: Service, ident: str | None) -> list[Json]:
    if ident is None:
        return []
    found = await asyncio.to_thread(service.store.chain, ident)
    if found is None:
        raise ApiError(
            404,
            f"no response {ident[:100]!r} with all before it is stored here",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return found


def _choose_summary(kind: Any) -> Summarise | None:
    """gpt-oss writes no summaries: what is asked for is taken from the chain of thought itself."""
    if kind is None:
        return None
    if kind not in ("auto", "concise", "detailed"):
        raise bad_request(
            f"unknown summary (expected auto, concise or detailed / got {str(kind)[:100]!r})", "reasoning.summary"
        )
    return _take_first_sentence if kind == "concise" else str.strip


def _take_first_sentence(text: str) -> str:
    found = _FIRST_SENTENCE.match(text.strip())
    return found[0].strip() if found else ""


def _complete_tool(tool: Json) -> Json:
    """A tool as the API's answers spell it, whichever way the request did."""
    if tool.get("type") == "code_interpreter":
        return {"container": {"type": "auto"}} | tool
    if tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "description": None, "parameters": None, "strict": None} | (
        tool.get("function") or tool
    )


def complete_input(raw: Json) -> list[Json]:
    """The input in the form in which it is kept and listed: items with ids, contents as parts."""
    given = raw.get("input") or []
    return [
        _complete_item(item) for item in ([{"role": "user", "content": given}] if isinstance(given, str) else given)
    ]


def _complete_item(item: Json) -> Json:
    kind = item.get("type") or "message"
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}.get(
        kind, "item"
    )
    whole = {"id": make_id(prefix), "type": kind, **{key: value for key, value in item.items() if value is not None}}
    if kind == "message" and isinstance(whole.get("content"), str):
        part = {"type": "output_text", "annotations": []} if whole["role"] == "assistant" else {"type": "input_text"}
        whole["content"] = [part | {"text": whole["content"]}]
    return whole
