"""POST /v1/messages, whole and streamed, and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

from gptoss_harmony.messages import Conversation
from gptoss_harmony.openai.messages_api import MessagesRequest
from gptoss_harmony.openai.messages_stream import MessagesStream, to_usage

from gptoss_adapters.serve.answers import Answer, find_warnings
from gptoss_adapters.serve.arguments import Note, Reading
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.exchange import ClientGone, Exchange, dump
from gptoss_adapters.serve.messages_body import CountTokensBody, MessagesBody, read_body
from gptoss_adapters.serve.service import Service, to_api_error

PATH = "/v1/messages"
_PING_SECONDS = 10.0
_VERSION = re.compile(r"\d{4}-\d\d-\d\d")
_INDEX = re.compile(r"\[(\d+)\]")
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def use_own_errors(exchange: Exchange, ident: str) -> None:
    """Errors, and the name of the request's id, as this API has them."""
    exchange.headers["request-id"] = ident

    def spell(error: ApiError) -> Json:
        message = _INDEX.sub(r".\1", str(error))  # messages.0.content.1, as this API writes paths
        if error.code == "context_length_exceeded":
            message = f"prompt is too long: {message}"  # the words that clients look for
        kind = _ERRORS.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": ident}

    exchange.spell_error = spell


async def count_tokens(service: Service, exchange: Exchange, raw: Json) -> None:
    _, _, conversation = _read(service, exchange, CountTokensBody, raw)
    await exchange.json({"input_tokens": len(service.prompts.ids(conversation))})


async def create(service: Service, exchange: Exchange, raw: Json) -> None:
    reading, request, conversation = _read(service, exchange, MessagesBody, raw)
    body: MessagesBody = reading.body
    asked = service.ask(reading, conversation, request.to_turn(), None)
    room = service.info.n_ctx - len(asked.tokens)
    stream = MessagesStream(
        request,
        reading.model,
        stops=body.stop_sequences or (),
        room=room if room < body.max_tokens else None,
    )
    answer = await service.begin(exchange, asked, stream, lambda _, entries: entries)
    if body.stream:
        await _stream(service, exchange, answer, asked, stream)
        return
    async for _ in answer.events():
        pass
    answer.finish(to_usage)
    service.record(exchange, answer)
    await exchange.json(stream.message | _find_warnings(asked, stream))


def _read(
    service: Service, exchange: Exchange, kind: type[CountTokensBody], raw: Json
) -> tuple[Reading[Any], MessagesRequest, Conversation]:
    _check_version(exchange)
    reading = read_body(kind, raw, service.settings.strict_arguments)
    service.choose_model(reading)
    request = MessagesRequest(reading.raw)
    conversation = request.to_conversation(service.date, service.prompts.restore)
    for warning in request.warnings:
        where, _, words = warning.partition(": ")
        reading.note(Note(where, words))
    return reading, request, conversation


async def _stream(service: Service, exchange: Exchange, answer: Answer, asked: Ask, stream: MessagesStream) -> None:
    await exchange.events(_encode(stream.start(to_usage(len(asked.tokens), 0))))
    try:
        async with _pings(exchange):
            async for events in answer.events():
                if events:
                    await exchange.events(_encode(events))
        events = answer.finish(to_usage)
    except ClientGone:
        raise
    except Exception as error:
        said = exchange.spell_error(to_api_error(error))
        await exchange.events(_encode([said]), last=True)
        raise
    service.record(exchange, answer)
    events[-2] |= _find_warnings(asked, stream)
    await exchange.events(_encode(events), last=True)


@contextlib.asynccontextmanager
async def _pings(exchange: Exchange) -> AsyncIterator[None]:
    """Shows a client that waits that the server is there."""

    async def ping() -> None:
        while True:
            await asyncio.sleep(_PING_SECONDS)
            await exchange.events(_encode([{"type": "ping"}]))

    task = asyncio.ensure_future(ping())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _check_version(exchange: Exchange) -> None:
    """Clients send the date of the API that they know; there is one so far. Nobody needs to."""
    version = exchange.header("anthropic-version")
    if version and not _VERSION.fullmatch(version):
        raise bad_request(f"anthropic-version: {version[:100]!r} is not a valid version (expected 2023-06-01)")


def _encode(events: list[Json]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dump(event)) for event in events])


def _find_warnings(asked: Ask, stream: MessagesStream) -> Json:
    """`warnings`, an addition to the API, is there only where an answer is not what was asked for."""
    complete = stream.message["stop_reason"] in ("end_turn", "tool_use", "stop_sequence")
    found = find_warnings(asked, stream, stream.text, stream.called, complete) + stream.warnings
    return {"warnings": found} if found else {}
