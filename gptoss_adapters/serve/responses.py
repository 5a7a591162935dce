"""/v1/responses: create (whole and streamed), retrieve, delete, input items."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from gptoss_harmony.openai.output import make_id
from gptoss_harmony.openai.response_items import Summarise
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.responses import to_conversation, to_response, to_turn, to_usage

from gptoss_adapters.serve.answers import Answer, find_warnings
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.bodies import ResponsesBody
from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.exchange import Exchange, dump
from gptoss_adapters.serve.history import read_history
from gptoss_adapters.serve.service import Service, to_api_error
from gptoss_adapters.serve.store import Stored

_LOGPROBS = "message.output_text.logprobs"
_FIRST_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|$)", re.DOTALL)
_PAGE = (1, 100)  # input items


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
    reading = service.read(ResponsesBody, raw)
    body, raw = reading.body, reading.raw
    previous = await _load_previous(service, body.previous_response_id)
    await asyncio.to_thread(read_history, reading, previous, service.store.find_item)
    logprobs = (body.top_logprobs or 0) if _LOGPROBS in (body.include or ()) else None
    summarise = _choose_summary((raw.get("reasoning") or {}).get("summary"))
    conversation = to_conversation(raw, previous=previous, date=service.date)
    if raw.get("input") in (None, []) and not previous:
        raise bad_request("input: there is nothing to answer: send input, or previous_response_id", "input")
    asked = service.ask(reading, conversation, to_turn(raw), logprobs)
    begun = to_response(raw | {"tools": given}, service.settings.model, int(time.time()))
    begun |= {"store": body.store is not False, "tools": [_complete_tool(tool) for tool in begun["tools"]]}
    parallel = body.parallel_tool_calls is not False
    may_call = bool(body.tools) and body.tool_choice != "none"
    stream = ResponseStream(
        begun, body.tools, parallel=parallel, summarise=summarise, stops=body.stops, may_call=may_call
    )
    answer = await service.begin(exchange, asked, stream, ResponseLogprobs())
    if body.stream:
        await _stream(service, exchange, answer, asked, stream, raw)
        return
    stream.start()
    async for _ in answer.events():
        pass
    await _complete(service, exchange, answer, asked, stream, raw)
    await exchange.json(stream.response)


async def _stream(
    service: Service, exchange: Exchange, answer: Answer, asked: Ask, stream: ResponseStream, raw: Json
) -> None:
    await exchange.events(_encode(stream.start()))
    try:
        async for events in answer.events():
            if events:
                await exchange.events(_encode(events))
        last = await _complete(service, exchange, answer, asked, stream, raw)
    except Exception as error:  # whatever it is, a stream does not just break off
        await exchange.events(_encode(stream.fail(str(to_api_error(error)))), last=True)
        raise
    await exchange.events(_encode(last), last=True)


async def _complete(
    service: Service, exchange: Exchange, answer: Answer, asked: Ask, stream: ResponseStream, raw: Json
) -> list[Json]:
    """The last events; the response is stored before they are sent."""
    events = answer.finish(to_usage)
    service.record(exchange, answer)
    whole = stream.response
    called = any(item["type"] not in ("message", "reasoning") for item in whole["output"])
    text = "".join(part["text"] for item in whole["output"] if item["type"] == "message" for part in item["content"])
    found = find_warnings(asked, stream, text, called, whole["status"] == "completed")
    if found:
        whole["warnings"] = found
    if whole["store"]:
        await asyncio.to_thread(service.store.add, whole, complete_input(raw))
    return events


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


async def retrieve(service: Service, exchange: Exchange, ident: str, query: dict[str, str]) -> None:
    if query.get("stream", "false").lower() not in ("false", "0", ""):
        raise bad_request("stream: a stored response cannot be streamed again: ask for it without stream", "stream")
    await exchange.json((await _load(service, ident)).response)


async def delete(service: Service, exchange: Exchange, ident: str) -> None:
    if not await asyncio.to_thread(service.store.delete, ident):
        raise _refuse_unknown(ident)
    await exchange.json({"id": ident, "object": "response", "deleted": True})


async def list_input(service: Service, exchange: Exchange, ident: str, query: dict[str, str]) -> None:
    limit = query.get("limit", "20")
    order = query.get("order", "desc")
    after = query.get("after")
    if not re.fullmatch(r"\d{1,4}", limit, re.ASCII) or not _PAGE[0] <= int(limit) <= _PAGE[1]:
        raise bad_request(f"limit is out of range (expected {_PAGE[0]}..{_PAGE[1]} / got {limit[:100]!r})", "limit")
    if order not in ("asc", "desc"):
        raise bad_request(f"unknown order (expected asc or desc / got {order[:100]!r})", "order")
    items = (await _load(service, ident)).input
    items = items if order == "asc" else items[::-1]
    if after is not None:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise bad_request(f"no item has this id (got {after[:100]!r})", "after")
        items = items[at + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    await exchange.json({"object": "list", "data": page, "has_more": len(items) > len(page), **ends})


async def _load(service: Service, ident: str) -> Stored:
    found = await asyncio.to_thread(service.store.get, ident)
    if found is None:
        raise _refuse_unknown(ident)
    return found


def _refuse_unknown(ident: str) -> ApiError:
    return ApiError(404, f"no response {ident[:100]!r} is stored here", code="response_not_found", param="response_id")
