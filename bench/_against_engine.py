"""An engine that costs next to nothing: it says the words that it is made with, as often as it may. A module by itself,
since a backend's child process imports it under either checkout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import CALL, CHANNEL, END, MESSAGE, RETURN

from gptoss_adapters.backends import Capabilities, Engine, Info, Request, Token


class Talker(Engine):
    """`words` tokens of a final answer."""

    def __init__(self, path: str | None, words: int = 1) -> None:
        encode = load_vocabulary().encode
        said = (encode(" hello world, said again;") * words)[:words]
        self._tokens = [CHANNEL, *encode("final"), MESSAGE, *said, RETURN]
        self.info = Info("talker", "1", 201_088, 100_000, (RETURN, CALL, END), Capabilities("full"))

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        return (Token(ident, None) for ident in self._tokens)
