"""An Ollama server on loopback that keeps blobs and models in memory, with faults on demand. It renders nothing: it
records.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeOllama:
    """`faults`: what the next uploads meet ("500", "mismatch", "disconnect", "lose"); `asked`: every request as
    (method, path, body).
    """

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answers: list[list[dict[str, Any]]] = field(default_factory=list)

    def paths(self, method: str) -> list[str]:
        return [path for m, path, _ in self.asked if m == method]


@contextmanager
def fake_ollama() -> Iterator[FakeOllama]:
    state = FakeOllama()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeOllama
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.state.asked.append(("HEAD", self.path, None))
        self._send(200 if self.path.removeprefix("/api/blobs/") in self.state.blobs else 404, b"")

    def do_GET(self) -> None:
        self.state.asked.append(("GET", self.path, None))
        if self.path == "/api/version":
            self._json({"version": "0.31.0"})
        else:
            self._json({"models": [{"model": m, "name": m} for m in self.state.models]})

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self._blob(self.path.removeprefix("/api/blobs/"))
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.asked.append(("POST", self.path, body))
        if self.path == "/api/create":
            self._create(body)
        elif body.get("model") not in self.state.models:
            self._json({"error": f"model '{body.get('model')}' not found"}, 404)
        elif self.path == "/api/show":
            self._json(self._show(body["model"]))
        else:
            self._lines(self.state.answers.pop(0), body.get("stream", True))

    def _blob(self, digest: str) -> None:
        self.state.asked.append(("POST", self.path, None))
        fault = self.state.faults.pop(0) if self.state.faults else ""
        size = int(self.headers["Content-Length"])
        if fault in ("500", "disconnect"):
            self.rfile.read(size // 2)
            if fault == "500":
                self._json({"error": "no space left on device"}, 500)
            self.close_connection = True
            return
        data = self.rfile.read(size)
        if fault == "mismatch" or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            self._json({"error": "digest mismatch"}, 400)
            return
        if fault != "lose":
            self.state.blobs[digest] = data
        self._send(201, b"")

    def _create(self, body: dict[str, Any]) -> None:
        lines: list[dict[str, Any]] = [{"status": "parsing GGUF"}]
        if any(d not in self.state.blobs for d in body.get("files", {}).values()):
            lines.append({"error": "blob not found"})
        elif "bad" in body["model"]:
            lines.append({"error": "failed to validate GGUF"})
        elif "cut" not in body["model"]:
            self.state.models[body["model"]] = body
            lines += [{"status": "writing manifest"}, {"status": "success"}]
        self._lines(lines, True)

    def _show(self, name: str) -> dict[str, Any]:
        made = self.state.models[name]
        parameters = "\n".join(f"{k} {json.dumps(v)}" for k, v in made.get("parameters", {}).items())
        return {
            "template": made.get("template", ""),
            "system": made.get("system", ""),
            "parameters": parameters,
            "details": {"family": "gpt-oss", "format": "gguf"},
            "capabilities": ["completion", "tools", "thinking"],
            "model_info": {
                "general.architecture": "gpt-oss",
                "gpt-oss.context_length": 131072,
                "gpt-oss.vocab_size": 201088,
            },
        }

    def _lines(self, lines: list[dict[str, Any]], stream: bool) -> None:
        if stream:
            self._send(200, b"".join(json.dumps(line).encode() + b"\n" for line in lines), "application/x-ndjson")
        else:
            self._json(lines[-1])

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
