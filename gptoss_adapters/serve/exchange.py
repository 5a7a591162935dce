"""One HTTP exchange at the level of ASGI: a JSON body in, JSON or server-sent events out, and the client leaving
noticed.

Starlette's responses are not used here: they see a client leave only between two chunks, if at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any

from starlette.types import Receive, Scope, Send

from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.scheduler import RunningGeneration


class ClientGone(Exception):
    """Nobody listens any more."""


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.status = 0  # once it is sent
        self.facts: dict[str, Any] = {}  # for the log line
        self.headers: dict[str, str] = {}  # sent with every answer
        self.generations: list[RunningGeneration] = []  # to be ended with the exchange
        self.deadline: float | None = None  # of the answer, by the event loop's clock; set when it first waits
        self.spell_error: Callable[[ApiError], Json] = lambda error: error.body
        self._events_begun = False

    def header(self, name: str) -> str:
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted), "")

    async def body(self, most: int, seconds: float) -> Json:
        """The JSON object that the client sends. Raises ApiError: 400, 408, 413, 415."""
        if self.header("content-type").partition(";")[0].strip().lower() != "application/json":
            # Also keeps web pages out: they cannot send this type to another origin without asking first.
            raise ApiError(415, "the body must be JSON (expected Content-Type: application/json)")
        if self.header("content-length").isdecimal() and int(self.header("content-length")) > most:
            raise _refuse_size(most)
        try:
            async with asyncio.timeout(seconds):
                data = await self._read(most)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {seconds:g} s") from None
        return _read_object(data)

    async def _read(self, most: int) -> bytes:
        data = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            data += message.get("body", b"")
            if len(data) > most:
                raise _refuse_size(most)
            if not message.get("more_body", False):
                return bytes(data)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, and cancel it when the client leaves (ClientGone). The body must have been read."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise ClientGone
        finally:
            for one in (gone, task):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self.send(dump(value), "application/json", status, headers)

    async def send(self, data: bytes, kind: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        await self._start(status, {"content-type": kind, "content-length": str(len(data)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def error(self, error: ApiError) -> None:
        await self.json(self.spell_error(error), error.status, error.headers)

    async def events(self, data: bytes, last: bool = False) -> None:
        """Send events that are spelled out already; the first call sends the headers too."""
        if not self._events_begun:
            self._events_begun = True
            await self._start(
                200,
                {
                    "content-type": "text/event-stream; charset=utf-8",
                    "cache-control": "no-cache",
                    "x-accel-buffering": "no",
                },
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        pairs = [
            (key.lower().encode(), value.encode("latin-1", "replace"))
            for key, value in {**self.headers, **headers}.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)  # made once: it is hot


def dump(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "replace")


def _read_object(data: bytes) -> Json:
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, MutableMapping):
        raise bad_request(f"the body must be a JSON object (got {type(value).__name__})")
    return dict(value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_size(most: int) -> ApiError:
    return ApiError(413, f"the body is too large (at most {most} bytes)", code="request_too_large")
