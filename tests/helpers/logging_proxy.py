"""A proxy that keeps what a client asks: it forwards to a server, or refuses everything. Not a test module."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "accept-encoding"}
REFUSAL = json.dumps({"error": {"message": "nothing is served here", "type": "invalid_request_error"}}).encode()


@dataclass
class Asked:
    """One request, and the status and text of its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int = 0
    answer: bytearray = field(default_factory=bytearray)


class LoggingProxy:
    """Listens on a free port of this machine; `asked` grows in the order of arrival.

    `upstream` is the server's address without a path; None refuses every request with 400.
    """

    def __init__(self, upstream: str | None = None) -> None:
        self.asked: list[Asked] = []
        self._upstream = None if upstream is None else urlsplit(upstream)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def answer(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_DELETE = do_HEAD = do_OPTIONS = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.address}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def posts(self, path: str) -> list[Asked]:
        """What was posted to paths that end so, queries left aside."""
        return [a for a in self.asked if a.method == "POST" and a.path.split("?")[0].endswith(path)]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        asked = Asked(handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()}, _read(raw))
        self.asked.append(asked)
        if self._upstream is None:
            asked.status = 400
            asked.answer += REFUSAL
            handler.send_response(400)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(REFUSAL)))
            handler.end_headers()
            handler.wfile.write(REFUSAL)
            return
        self._forward(handler, raw, asked)

    def _forward(self, handler: BaseHTTPRequestHandler, raw: bytes, asked: Asked) -> None:
        assert self._upstream is not None
        upstream = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=300)
        headers = {name: value for name, value in asked.headers.items() if name not in HOP_BY_HOP}
        upstream.request(asked.method, asked.path, raw or None, headers)
        answer = upstream.getresponse()
        asked.status = answer.status
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("connection", "close")  # its end is the answer's end, streams included
        handler.end_headers()
        while piece := answer.read1(65536):
            asked.answer += piece
            handler.wfile.write(piece)
            handler.wfile.flush()
        handler.close_connection = True
        upstream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode(errors="replace")
