"""Engines that break in the middle of a run, for the runner to survive, and one such as others write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gptoss_adapters.backends.llama_cpp import LlamaCpp
from gptoss_adapters.backends.protocol import Capabilities, Engine, Info, Request, Token


class _Fake(Engine):
    def __init__(self, path: str | None, **options: Any) -> None:
        self.info = Info("fake", "1", 512, 4096, (), Capabilities("full"))
        self.calls = 0

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        self.calls += 1
        yield self.row(np.zeros((len(tokens) - start, 512), np.float32))

    def row(self, logits: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        return iter(())


class Dies(_Fake):
    def row(self, logits: np.ndarray) -> np.ndarray:
        if self.calls > 3:
            os.abort()
        return logits


class Nan(_Fake):
    def row(self, logits: np.ndarray) -> np.ndarray:
        return logits + np.nan


class Hangs(_Fake):
    def row(self, logits: np.ndarray) -> np.ndarray:
        time.sleep(600)
        return logits


class ThirdParty(LlamaCpp):
    """Says only by its class that it is ggml's arithmetic: its name tells nothing."""

    def __init__(self, path: str | None) -> None:
        super().__init__(path)
        self.info = replace(self.info, engine="mine", version="1")
