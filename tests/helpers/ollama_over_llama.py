"""Ollama's API on loopback in front of llama.cpp's server, which is the engine that Ollama runs: /api/show, and raw
generation with log-probabilities. Texts go in and out as Ollama shows them: part of a character is U+FFFD.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gptoss_harmony import load_vocabulary

from gptoss_adapters.backends import Backend, open_backend
from gptoss_adapters.backends.prompt_texts import text_ids

CONTEXT = 1024


@contextmanager
def ollama_over_llama(gguf: Path) -> Iterator[str]:
    """The URL of such a server with one model of any name."""
    with open_backend(f"llama_server={gguf}", n_ctx=CONTEXT, cache_type="f16", flash_attn=True) as backend:
        handler = type("Handler", (_Handler,), {"backend": backend, "lock": threading.Lock()})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    backend: Backend
    lock: threading.Lock

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        lines = [self._show()] if self.path == "/api/show" else list(self._generate(body))
        data = "\n".join(map(json.dumps, lines)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _show(self) -> dict[str, Any]:
        about = {
            "general.architecture": "gpt-oss",
            "gpt-oss.context_length": CONTEXT,
            "gpt-oss.vocab_size": self.backend.info.vocab_size,
        }
        return {"parameters": f"num_ctx {CONTEXT}", "model_info": about}

    def _generate(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        vocabulary = load_vocabulary()
        options = body["options"]
        with self.lock:
            answer = self.backend.generate(
                text_ids(body["prompt"], vocabulary),
                max_tokens=options["num_predict"],
                temperature=options.get("temperature", 0.8),
                logprobs=body.get("top_logprobs") or 0,
            )
        shown = [t for t in answer.tokens if t.id not in self.backend.info.stop_ids]
        entries = [
            {
                "token": vocabulary.decode([t.id]),
                "logprob": t.logprob,
                "top_logprobs": [{"token": vocabulary.decode([i]), "logprob": p} for i, p in t.top],
            }
            for t in (shown if body.get("stream", True) else answer.tokens)
        ]
        whole = {"model": body["model"], "response": vocabulary.decode([t.id for t in shown]), "logprobs": entries}
        yield {**whole, "done": True, "done_reason": {"stop": "stop"}.get(answer.reason, "length")}
