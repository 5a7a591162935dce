"""Starting and asking `vllm serve` in tests: one server per configuration, ended with its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DESCRIPTION = "Get the weather for a city."
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "description": DESCRIPTION, "parameters": WEATHER}}
RESPONSES_TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": DESCRIPTION,
    "parameters": WEATHER,
    "strict": False,
}


def environment(**more: str) -> dict[str, str]:
    """A small machine, no network, no telemetry, the date that the pocket model's lessons know."""
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_SYSTEM_START_DATE": "2026-01-01",
        **more,
    }


def command(checkpoint: Path, port: int, *more: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(checkpoint),
        "--served-model-name",
        "pocket",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        "4",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "openai",
        *more,
    ]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def server(checkpoint: Path, log: Path, *more: str, seconds: float = 280) -> AbstractContextManager[str]:
    """A running server's base URL, see `started`."""
    port = free_port()
    return started(command(checkpoint, port, *more), port, log, environment(), seconds)


@contextmanager
def started(argv: list[str], port: int, log: Path, env: dict[str, str], seconds: float) -> Iterator[str]:
    """The base URL of a server that `argv` starts on `port`, in the log's folder. Fails with the log's end if it dies
    or is not ready in time.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=out, cwd=log.parent, start_new_session=True)
    try:
        deadline = time.monotonic() + seconds
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
