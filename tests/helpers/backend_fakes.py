"""Engines that misbehave, for the tests of the child process. Not a test module."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.backends import Capabilities, Engine, Info, Request, Token


class Fake(Engine):
    """Row i of the logits is i everywhere; token n of an answer is n. `trouble` comes where its name says.

    meets: the logits wait until so many engines compute theirs; each says so with a file in `place`.
    """

    def __init__(
        self,
        path: str | None,
        trouble: str = "",
        vocab_size: int = 10,
        delay: float = 0.0,
        meets: int = 0,
        place: str = "",
    ) -> None:
        self.trouble = trouble
        self.delay = delay
        self.meets = meets
        self.place = Path(place)
        self._trouble("open")
        self.info = Info("fake", sys.executable, vocab_size, 100_000, (9,), Capabilities("full"), {"path": path})

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        self._trouble("logits")
        self._meet()
        out = np.repeat(np.arange(start, len(tokens), dtype=np.float32)[:, None], self.info.vocab_size, 1)
        if "nan" in self.trouble:
            out[-1, 3] = np.nan
        yield out[1:] if "short" in self.trouble else out

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        while "prefill" in self.trouble and not cancelled():
            time.sleep(0.01)
        for n in range(0 if cancelled() else 1_000_000):
            if n == 3:
                self._trouble("generate")
            time.sleep(self.delay)
            yield Token(n % 9, -0.5, ((n % 9, -0.5),))

    def _meet(self) -> None:
        if self.meets:
            (self.place / str(os.getpid())).touch()
        while self.meets and len(list(self.place.iterdir())) < self.meets:
            time.sleep(0.01)

    def _trouble(self, where: str) -> None:
        actions: dict[str, Callable[[], Any]] = {
            "abort": os.abort,
            "hang": lambda: time.sleep(60),
            "exit": lambda: os._exit(7),
            "raise": lambda: 1 // 0,
            "noise": lambda: os.write(1, b'{"done": "logits"}\n' * 5000) and os.write(2, b"\0\xff" * 100_000),
        }
        for name, act in actions.items():
            if f"{name} {where}" in self.trouble:
                print("error: a word before the end", file=sys.stderr, flush=True)
                act()
