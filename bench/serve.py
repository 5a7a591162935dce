"""What gptoss-serve adds to a backend's own time, per token and per request. An engine that costs next to nothing says
what it is told; the same generations go through `Backend` alone, and through the server to a client that only reads
bytes. Interleaved.

    python bench/serve.py [--rounds 7] [--out bench/results/serve.json]

Per token: wall time of a long streamed answer, and CPU time of the server's process against that of a process that
reads from the backend alone; at full speed, where tokens travel in company, and at 2 ms per token, where each is sent
by itself and the CPU time is largest. The promise is about wall time. Per request: wall time of answers of one word,
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _paths
import psutil
from _machine import cpu_model
from gptoss_harmony import Renderer, render
from gptoss_harmony.openai.chat_completions import to_conversation
from helpers.serve_fakes import DATE, TESTS, Served

from gptoss_adapters.backends import Backend, open_backend

TOKENS = {"full speed": 4000, "one by one": 500}
PACE = 0.002  # seconds
WORD = "hello"
SHORT = [{"role": "user", "content": WORD}]
REQUESTS = 60  # of one word, in each round
PROMISED = {"us_per_token": 100.0, "ms_per_request": 5.0}


class Client:
    """HTTP/1.1 on one connection, read to the end of the answer and not looked at."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + data)
        seen = bytearray()
        while b"\r\n\r\n" not in seen:
            seen += self._socket.recv(1 << 16)
        header, _, rest = bytes(seen).partition(b"\r\n\r\n")
        assert b" 200 " in header.split(b"\r\n")[0], seen[:500]
        if b"content-length" in header:
            left = int(header.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(rest)
            while left > 0:
                left -= len(self._socket.recv(1 << 16))
        else:
            while not rest.endswith(b"0\r\n\r\n"):
                rest = rest[-5:] + self._socket.recv(1 << 16)


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_all(backend: Backend, ids: list[int]) -> int:
    return sum(1 for _ in backend.stream(ids, max_tokens=100_000))


def per_token(backend: Backend, server: Served, client: Client, rounds: int, pace: str) -> dict[str, Any]:
    said = [{"role": "user", "content": (WORD + " ") * TOKENS[pace]}]
    ids = render(to_conversation({"messages": said}, date=DATE), renderer=Renderer())
    n = read_all(backend, ids)
    paths = {
        "chat": ("/v1/chat/completions", {"messages": said}),
        "responses": ("/v1/responses", {"input": said, "store": False}),
    }
    wall: dict[str, list[float]] = {name: [] for name in ("backend", *paths)}
    cpu: dict[str, list[float]] = {name: [] for name in ("backend", *paths)}
    ours, theirs = psutil.Process(), psutil.Process(server.process.pid)
    for _ in range(rounds):
        before = sum(ours.cpu_times()[:2])
        wall["backend"].append(seconds(lambda: read_all(backend, ids)))
        cpu["backend"].append(sum(ours.cpu_times()[:2]) - before)
        for name, (path, body) in paths.items():
            before = sum(theirs.cpu_times()[:2])
            wall[name].append(seconds(lambda path=path, body=body: client.post(path, body | {"stream": True})))
            cpu[name].append(sum(theirs.cpu_times()[:2]) - before)
    best = {
        kind: {name: min(values) for name, values in table.items()} for kind, table in (("wall", wall), ("cpu", cpu))
    }
    added = {name: {kind: 1e6 * (best[kind][name] - best[kind]["backend"]) / n for kind in best} for name in paths}
    return {"tokens": n, "backend_us": {kind: 1e6 * best[kind]["backend"] / n for kind in best}, "added_us": added}


def per_request(backend: Backend, client: Client, rounds: int) -> dict[str, Any]:
    renderer = Renderer()
    ids = render(to_conversation({"messages": SHORT}, date=DATE), renderer=renderer)
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("/v1/chat/completions", {"messages": SHORT}),
        "chat, streamed": ("/v1/chat/completions", {"messages": SHORT, "stream": True}),
        "responses": ("/v1/responses", {"input": SHORT, "store": False}),
        "responses, stored in a file": ("/v1/responses", {"input": SHORT}),
    }
    times: dict[str, list[float]] = {name: [] for name in ("backend", *bodies)}
    for _ in range(rounds * REQUESTS):
        times["backend"].append(seconds(lambda: read_all(backend, ids)))
        for name, (path, body) in bodies.items():
            times[name].append(seconds(lambda path=path, body=body: client.post(path, body)))
    middle = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {"backend_ms": middle["backend"], "added_ms": {name: middle[name] - middle["backend"] for name in bodies}}


@contextmanager
def running(delay: float) -> Iterator[tuple[Backend, Served, Client]]:
    """The engine that takes `delay` seconds for a token: by itself, and behind a server that a client has spoken to."""
    engine = "helpers.serve_fakes:Echo=x"
    with tempfile.TemporaryDirectory() as folder:
        options = ("--model", "m", "--set", f"delay={delay}")
        with (
            open_backend(engine, delay=delay) as backend,
            Served(engine, Path(folder), *options, store=f"{folder}/responses.sqlite") as server,
        ):
            client = Client(server.url)
            client.post("/v1/chat/completions", {"messages": SHORT})
            yield backend, server, client


def make_report(tokens: dict[str, Any], requests: dict[str, Any], rounds: int) -> dict[str, Any]:
    worst_token = max(row["wall"] for part in tokens.values() for row in part["added_us"].values())
    worst_request = max(requests["added_ms"].values())
    return {
        "conditions": {
            "python": platform.python_version(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "rounds": rounds,
            **{name: version(name) for name in ("uvicorn", "starlette", "httptools")},
        },
        "per_token": tokens,
        "per_request": requests,
        "promised": PROMISED,
        "meets": {
            "us_per_token": worst_token <= PROMISED["us_per_token"],
            "ms_per_request": worst_request <= PROMISED["ms_per_request"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=_paths.RESULTS / "serve.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])
    tokens: dict[str, Any] = {}
    with running(PACE) as (backend, server, client):
        tokens["one by one"] = per_token(backend, server, client, options.rounds, "one by one")
    with running(0.0) as (backend, server, client):
        tokens["full speed"] = per_token(backend, server, client, options.rounds, "full speed")
        requests = per_request(backend, client, options.rounds)
    report = make_report(tokens, requests, options.rounds)
    print(json.dumps(report, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
