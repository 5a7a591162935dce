"""A server in the test's own process: requests straight through ASGI, and a backend that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Sequence
from typing import Any

from gptoss_adapters.backends import Capabilities, Info, Token
from gptoss_adapters.backends.protocol import StopReason
from gptoss_adapters.serve.app import App, create_app
from gptoss_adapters.serve.settings import Settings
from gptoss_adapters.serve.store import Store
from helpers.open_responses import check_answer
from helpers.outputs import ids_of
from helpers.serve_fakes import STOPS


async def post(app: App, path: str, body: dict[str, Any], method: str = "POST") -> tuple[int, bytes]:
    """One request, straight through ASGI."""
    data, sent = json.dumps(body).encode(), []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
    }
    inbox = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> Any:
        return inbox.pop() if inbox else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status, answer = sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
    if (status, path, method) == (200, "/v1/responses", "POST"):
        check_answer(answer)
    return status, answer


class Said:
    """A backend without a process, which gives the outputs (texts in Harmony) one after the other."""

    def __init__(self, *outputs: str) -> None:
        self._outputs = [ids_of(text) for text in outputs]
        self._next = 0
        self.reused = 0
        self.limited = False  # obeys max_tokens
        self.prompts: list[list[int]] = []
        self.info = Info("said", "1", 201_088, 100_000, STOPS, Capabilities("full"))

    def stream(self, tokens: Sequence[int], **request: Any) -> Generator[Token, None, StopReason]:
        self.prompts.append(list(tokens))
        output = self._outputs[self._next % len(self._outputs)]
        self._next += 1
        limit = request["max_tokens"] if self.limited else len(output)
        for ident in output[:limit]:
            yield Token(ident, None)
        return "stop" if limit >= len(output) else "length"

    def cancel(self) -> None: ...
    def close(self) -> None: ...


def ask_app(
    requests: Sequence[tuple[str, dict[str, Any]]],
    *outputs: str,
    backend: Said | None = None,
    store: Store | None = None,
    **settings: Any,
) -> list[tuple[int, Any]]:
    """(status, answer) of requests to a server in this process, whose model gives the outputs one after the other."""
    engine: Any = backend or Said(*outputs)

    async def run() -> list[tuple[int, bytes]]:
        app = create_app([engine], Settings(**{"model": "m", **settings}), store)
        answers = [await post(app, path, body) for path, body in requests]
        app.service.scheduler.close()
        return answers

    return [(status, json.loads(data) if data[:1] == b"{" else data.decode()) for status, data in asyncio.run(run())]
