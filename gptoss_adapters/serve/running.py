"""Responses that are being written, so that another request can end one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from gptoss_adapters.serve.errors import Json


class RunningResponse:
    def __init__(self, stop: Callable[[], None]) -> None:
        self.cancelled = False
        self._stop = stop
        self._whole: Json | None = None
        self._over = asyncio.Event()

    async def cancel(self) -> Json | None:
        """End it; the response as it is then stored, None if it was not."""
        self.cancelled = True
        self._stop()
        await self._over.wait()
        return self._whole

    def end(self, whole: Json | None) -> None:
        self._whole = self._whole or whole
        self._over.set()


@contextlib.contextmanager
def keep_running(
    running: dict[str, RunningResponse], response: Json, stop: Callable[[], None]
) -> Iterator[RunningResponse]:
    """`running` has the response while the block lasts, if it will be stored."""
    one = RunningResponse(stop)
    if response["store"]:
        running[response["id"]] = one
    try:
        yield one
    finally:
        running.pop(response["id"], None)
        one.end(None)
