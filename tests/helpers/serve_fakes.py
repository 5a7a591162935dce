"""Engines that say what a test wants, and `gptoss-serve` as its users start it. Not a test module."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import CHANNEL, END, MESSAGE, RETURN, START
from openai import DefaultHttpxClient, OpenAI

from gptoss_adapters.backends import Capabilities, Engine, Info, Request, Token
from helpers.open_responses import check_response

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATE = "2025-08-05"  # one of those that pocket was taught
STOPS = (200002, 200012, 199999)
KEY = "sk-test"


class Scripted(Engine):
    """Gives the outputs of a JSON-lines file (lists of ids), one after the other, from the start again at its end."""

    def __init__(self, path: str | None, n_ctx: int = 100_000) -> None:
        assert path is not None
        self._outputs = [json.loads(line) for line in Path(path).read_text().splitlines()]
        self._next = 0
        self.info = Info("scripted", "1", 201_088, n_ctx, STOPS, Capabilities("full"))

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        output = self._outputs[self._next % len(self._outputs)]
        self._next += 1
        yield from (Token(i, -1.0, ((i, -1.0),) * min(1, request.logprobs or 0)) for i in output)


class Echo(Engine):
    """Says the last user message again and again, `times` times, with `delay` seconds before each token.

    stands_after: it stands still after so many tokens until it is cancelled, and would then go on.
    trouble: "fail" after the third token, or "die" there.
    """

    def __init__(
        self, path: str | None, delay: float = 0.0, times: int = 1, stands_after: int | None = None, trouble: str = ""
    ) -> None:
        self._delay = delay
        self._times = times
        self._stands_after = stands_after
        self._trouble = trouble
        load_vocabulary()
        self.info = Info("echo", "1", 201_088, 100_000, STOPS, Capabilities("full"))

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        said = last_user_message(request.tokens) * self._times
        logprob = None if request.logprobs is None else -1.0  # the protocol: one where it was asked for
        for n, ident in enumerate([CHANNEL, *load_vocabulary().encode("final"), MESSAGE, *said, RETURN]):
            if n == 3 and self._trouble:
                os.abort() if self._trouble == "die" else 1 // 0
            while n == self._stands_after and not cancelled():
                time.sleep(0.005)
            if self._delay:
                time.sleep(self._delay)
            yield Token(ident, logprob)


class SlowLogits(Echo):
    """One that takes 20 ms for the logits of a position."""

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        for _ in tokens[start:]:
            time.sleep(0.02)
            yield np.zeros((1, 201_088), np.float32)


class TextOnly(Echo):
    """One that gives no logits."""

    def __init__(self, path: str | None) -> None:
        super().__init__(path)
        self.info = replace(self.info, capabilities=Capabilities("text"))


def last_user_message(tokens: Sequence[int]) -> list[int]:
    user = load_vocabulary().encode("user")[0]
    starts = [i + 3 for i in range(len(tokens) - 2) if tokens[i : i + 3] == [START, user, MESSAGE]]
    return list(tokens[starts[-1] : tokens.index(END, starts[-1])]) if starts else []


def _check_answer(response: httpx.Response) -> None:
    """Every whole response has all that it must have; streams are read by those who asked for them."""
    request = response.request
    is_json = response.headers.get("content-type") == "application/json"
    if (request.method, request.url.path, response.status_code) == ("POST", "/v1/responses", 200) and is_json:
        response.read()
        check_response(response.json())


class Served:
    """A server in a process of its own; `.client` talks to it as a user's program would."""

    def __init__(
        self, backend: str, folder: Path, *arguments: str, key: str | None = None, store: str = ":memory:"
    ) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *(p for p in sys.path if p)]),
            "GPTOSS_API_KEY": key or "",
        }
        self.log = folder / f"log-{time.monotonic_ns()}"
        command = [
            sys.executable,
            "-m",
            "gptoss_adapters.serve.cli",
            "--backend",
            backend,
            "--port",
            "0",
            "--store",
            store,
            "--date",
            DATE,
            *arguments,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=env, cwd=folder)
        self.url = self._wait()
        hooks: dict[str, Any] = {"response": [_check_answer]}
        checked = DefaultHttpxClient(event_hooks=hooks)
        self.client = OpenAI(base_url=self.url, api_key=key or "none", max_retries=0, timeout=60, http_client=checked)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url.removesuffix("/v1"), headers=headers, timeout=60, event_hooks=hooks)

    def _wait(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if found := re.search(r'"event": "listening", "url": "([^"]+)"', self.log.read_text()):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self.log.read_text()}")

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def line_of(self, request: str) -> dict[str, Any]:
        """The log's line of a request (its `x-request-id`), which is written after the answer has been sent."""

        def found() -> list[dict[str, Any]]:
            whole = self.log.read_text().rpartition("\n")[0].splitlines()
            return [line for text in whole if (line := json.loads(text)).get("request") == request and "status" in line]

        self.until(lambda: bool(found()))
        return found()[0]

    def health(self) -> dict[str, Any]:
        return dict(self.http.get("/health").json())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """The limit is there for what never happens; it says nothing about how fast anything is."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
                return
            self.process.kill()
            self.process.wait()
