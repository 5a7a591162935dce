"""The child process of a backend: `python -m gptoss_adapters.backends.worker FD`, FD being its end of a socket pair.

It opens one engine, answers one call at a time, streams generated tokens and listens for "cancel" meanwhile. It ends
when the parent's end closes. Needs numpy and this package; the engine brings its own.
"""

from __future__ import annotations

import inspect
import os
import queue
import socket
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np

from gptoss_adapters.backends.protocol import BackendFailed, Engine, Request, engine_class
from gptoss_adapters.backends.wire import Channel, Closed, SharedArray
from gptoss_adapters.errors import GptOssError, UsageError


class Worker:
    """Answers the messages of one parent with one engine."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._calls: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancel = threading.Event()
        self._engine: Engine | None = None

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            call = self._calls.get()
            op = call.pop("op")
            try:
                arrays = self._answer(op, call)
                self._channel.send({"done": op}, arrays)
                for shared in arrays.values():
                    shared.close()
            except Closed:
                return
            except GptOssError as error:
                self._channel.send({"error": type(error).__name__, "line": str(error)})
            except Exception as error:  # whatever an engine throws becomes one line in the parent
                self._channel.send({"error": "BackendFailed", "line": f"{type(error).__name__}: {error}"})
            if self._engine is None:
                return  # nothing to serve; end in order, so that the engine's log is complete

    def _listen(self) -> None:
        """Reads on while the engine computes, so that a cancel and the parent's end are seen at once."""
        try:
            while True:
                message, arrays = self._channel.receive()
                if message["op"] == "cancel":
                    self._cancel.set()
                else:
                    self._cancel.clear()
                    self._calls.put(message | arrays)
        except Closed:
            os._exit(0)

    def _answer(self, op: str, call: dict[str, Any]) -> dict[str, SharedArray]:
        if op == "open":
            self._open(**call)
            return {}
        assert self._engine is not None
        if op == "logits":
            return {"logits": _logits(self._engine, **call)}
        if op == "top_logprobs":
            ids, logprobs = self._engine.top_logprobs(call["tokens"], call["k"], call["start"])
            if not np.isfinite(logprobs[:, 0]).all():
                raise BackendFailed("returned NaN or infinite log-probabilities")
            return {"ids": SharedArray.of(ids), "logprobs": SharedArray.of(logprobs)}
        if op == "prompt_logprobs":
            return self._score(call["tokens"], call["k"])
        if op == "taps":
            taps = self._engine.taps(call["tokens"], call.get("forced"))
            return {name: SharedArray.of(value) for name, value in taps.items()}
        if op == "tokenize":
            found = self._engine.tokenize(call["texts"], call["special"])
            flat = np.array([i for one in found for i in one], np.int32)
            return {
                "ids": SharedArray.of(flat),
                "counts": SharedArray.of(np.array([len(one) for one in found], np.int32)),
            }
        if op in ("chat", "chat_prompt"):
            self._channel.send({"answer": getattr(self._engine, op)(call["request"])})
            return {}
        assert op == "generate", op
        self._generate(self._engine, Request(**call))
        return {}

    def _score(self, tokens: list[int], k: int) -> dict[str, SharedArray]:
        assert self._engine is not None
        found = self._engine.prompt_logprobs(tokens, k, self._cancel.is_set)
        if self._cancel.is_set():
            raise BackendFailed("was told to stop")
        if not np.isfinite(found.own).all():
            raise BackendFailed("returned NaN or infinite log-probabilities")
        return {name: SharedArray.of(array) for name, array in found._asdict().items()}

    def _open(self, name: str, path: str | None, offers: dict[str, str], options: dict[str, Any]) -> None:
        """Says which path it takes before it opens it, so that the parent can name it whatever happens."""
        found = engine_class(name)
        known = list(inspect.signature(found).parameters)[1:]  # all but the path
        for option in options:
            if option not in known:
                raise UsageError(f"backend {name} has no option {option}", expected=", ".join(known) or "none")
        if path is None:
            path = next((offers[form] for form in found.opens if form in offers), None)
        self._channel.send({"path": path})
        engine = found(path, **options)
        engine.info = replace(engine.info, arithmetic=found.arithmetic, opens=found.opens)
        self._engine = engine
        self._channel.send({"info": engine.info.to_json()})

    def _generate(self, engine: Engine, request: Request) -> None:
        stops = set(engine.info.stop_ids if request.stop_ids is None else request.stop_ids)
        reason, engine.reused = "engine", 0
        for count, token in enumerate(engine.generate(request, self._cancel.is_set), 1):
            self._channel.send({"token": token, "reused": engine.reused} if count == 1 else {"token": token})
            if token.id in stops:
                reason = "stop"
            elif count == request.max_tokens:
                reason = "length"
            if reason != "engine" or self._cancel.is_set():
                break
        self._channel.send({"reason": "cancelled" if reason == "engine" and self._cancel.is_set() else reason})


def _logits(engine: Engine, tokens: list[int], start: int) -> SharedArray:
    shared = SharedArray((len(tokens) - start, engine.info.vocab_size), np.float32)
    at = 0
    for block in engine.rows(tokens, start):
        sums = block.sum(axis=1, dtype=np.float64)  # NaN and inf both survive a sum
        if not np.isfinite(sums).all():
            bad = start + at + int(np.flatnonzero(~np.isfinite(sums))[0])
            raise BackendFailed(f"returned NaN or infinite logits at position {bad}")
        shared.array[at : at + len(block)] = block
        at += len(block)
    if at != len(shared.array):
        raise BackendFailed("returned logits for the wrong number of positions", expected=len(shared.array), got=at)
    return shared


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    Worker(Channel(sock)).run()


if __name__ == "__main__":
    main()
