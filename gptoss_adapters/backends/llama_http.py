"""llama.cpp's server: started in this process, from a `llama-server` binary, or found at a URL; and a client for it.

A prompt is ids, or pieces as `gptoss_harmony.render_pieces` gives them; with pieces the server tokenises the texts, and
text that
looks like a control token becomes one: ids are the safe way.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptoss_adapters.backends.protocol import BackendFailed
from gptoss_adapters.errors import BadInput, UsageError, missing_extra

START_SECONDS = 600.0  # a 120b model is read from disk in this time, or never
_PR_SET_PDEATHSIG = 1


class LlamaClient:
    """JSON to the server, one connection per request: it closes idle ones after some seconds.

    Raises UsageError for what the server finds wrong with a request, BackendFailed for everything else.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self._at = urllib.parse.urlsplit(address)
        if self._at.scheme not in ("http", "https") or not self._at.hostname:
            raise UsageError("not the URL of a llama-server", expected="http://localhost:8080", got=address)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def complete(self, prompt: Sequence[int | str], **settings: Any) -> dict[str, Any]:
        """/completion: the answer's "tokens", "content" and, with n_probs, "completion_probabilities"."""
        return self.post(
            "/completion", {"prompt": list(prompt), "return_tokens": True, "cache_prompt": True, **settings}
        )

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """/v1/chat/completions: the server renders with the template in its GGUF and parses the answer.

        `request` is a Chat Completions body; reasoning_effort reaches the template.
        """
        return self.post("/v1/chat/completions", _with_effort(request))

    def chat_prompt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """/apply-template: the "prompt" that `chat` would send to the model."""
        return self.post("/apply-template", _with_effort(request))

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str | None) -> dict[str, Any]:
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._at.hostname or "", self._at.port)
        try:
            connection.request(method, self._at.path.rstrip("/") + path, body, self._headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BackendFailed(f"the llama-server at {self._at.netloc} does not answer: {error}") from error
        finally:
            connection.close()
        if "error" in answer:
            wrong = UsageError if response.status == 400 else BackendFailed
            raise wrong(f"llama-server says: {answer['error']['message']}")
        return answer


def _with_effort(request: Mapping[str, Any]) -> dict[str, Any]:
    """The template reads its variables from chat_template_kwargs."""
    effort = request.get("reasoning_effort")
    variables = ({"reasoning_effort": effort} if effort else {}) | request.get("chat_template_kwargs", {})
    return {**request, **({"chat_template_kwargs": variables} if variables else {})}


class Served(NamedTuple):
    """A running server; `handle` keeps it alive."""

    client: LlamaClient
    version: str
    handle: Any


def connect(url: str, key: str | None) -> Served:
    client = LlamaClient(url, key)
    build = client.get("/props").get("build_info", "of unknown build")
    return Served(client, f"llama-server {build}", None)


def start_in_process(path: str, n_ctx: int, settings: Mapping[str, Any]) -> Served:
    """The server that xllamacpp carries. The port is open to every local user, so it wants a key."""
    try:
        import xllamacpp
    except ImportError as error:
        raise missing_extra("xllamacpp", "llama-server") from error
    params, key = xllamacpp.CommonParams(), secrets.token_hex(16)
    params.model.path = path
    params.n_ctx = n_ctx
    params.n_parallel = 1
    params.api_keys = [key]
    params.n_batch = params.n_ubatch = settings["n_batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["n_threads"]
    params.cache_type_k = params.cache_type_v = getattr(
        xllamacpp.ggml_type, f"GGML_TYPE_{settings['cache_type'].upper()}"
    )
    kind = "ENABLED" if settings["flash_attn"] else "DISABLED"
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
    params.swa_full = True
    params.warmup = False
    params.fit_params = False
    params.ui = False
    params.use_jinja = True
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        raise BadInput(f"llama-server refuses the file: {error}", file=path) from error
    return Served(LlamaClient(server.listening_address, key), f"xllamacpp {xllamacpp.__version__}", server)


def find_binary(name: str) -> str:
    """The path of a binary, given as one or by a name on PATH. Raises BadInput."""
    found = shutil.which(Path(name).expanduser())
    if found is None:
        raise BadInput(
            "no such llama-server binary",
            file=name,
            hint="name its path, or leave the option out for the one in xllamacpp",
        )
    return found


def start_binary(binary: str, path: str, n_ctx: int, settings: Mapping[str, Any]) -> Served:
    """A server of its own, which ends with this process. Raises BadInput when it ends before it is ready."""
    key, port = secrets.token_hex(16), _free_port()
    process = subprocess.Popen(
        _command(binary, path, n_ctx, port, settings),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env=os.environ | {"LLAMA_API_KEY": key},
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    client = LlamaClient(f"http://127.0.0.1:{port}", key)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/health").get("status") == "ok":
                return Served(client, connect(f"http://127.0.0.1:{port}", key).version, process)
        except BackendFailed:  # not listening, or still loading
            time.sleep(0.1)
    process.kill()
    raise BadInput(f"llama-server refuses the file: it ended with exit status {process.wait()}", file=path)


def _command(binary: str, path: str, n_ctx: int, port: int, settings: Mapping[str, Any]) -> list[str]:
    options = {
        "-m": path,
        "-c": n_ctx,
        "-np": 1,
        "--host": "127.0.0.1",
        "--port": port,
        "-b": settings["n_batch"],
        "-ub": settings["n_batch"],
        "-t": settings["n_threads"],
        "-tb": settings["n_threads"],
        "-ctk": settings["cache_type"],
        "-ctv": settings["cache_type"],
        "-fa": "on" if settings["flash_attn"] else "off",
    }
    pairs = (str(word) for option in options.items() for word in option)
    return [find_binary(binary), *pairs, "--jinja", "--swa-full", "--no-warmup"]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
