"""Who computes when: a few backends, a bounded queue in front of them, and generations that stop when nobody listens.

A backend serves one generation at a time, in a thread that waits for its child process. All else happens in the event
loop.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gptoss_adapters.backends.client import Backend
from gptoss_adapters.backends.protocol import BackendFailed, StopReason, Token, common_prefix
from gptoss_adapters.errors import GptOssError
from gptoss_adapters.serve.errors import ApiError

_LONGEST_RETRY = 60
Result = TypeVar("Result")


class Slot:
    """One backend, and the tokens that its cache holds."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.tokens: list[int] = []
        self.lock = threading.Lock()  # a cancel must not reach the next generation
        self.running: RunningGeneration | None = None


class RunningGeneration:
    """One running generation: iterate over `batches`. `reason` and `reused` are there when it is over."""

    def __init__(self, slot: Slot, tokens: list[int], request: dict[str, Any], scheduler: Scheduler) -> None:
        self._slot = slot
        self._tokens = tokens
        self._request = request
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._new: deque[Token] = deque()
        self._told = False  # the event loop knows that there are tokens
        self._cancelled = self._over = self.expired = False
        self._error: GptOssError | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.reason: StopReason = "cancelled"
        self.reused = 0
        slot.running = self

    async def batches(self) -> AsyncIterator[list[Token]]:
        """New tokens as they come, several at once where they come fast. Raises GptOssError when the backend fails."""
        while not self.expired:
            await self._ready.wait()
            self._ready.clear()
            self._told = False
            over = self._over  # read before the tokens: what came before the end is then taken
            if batch := [self._new.popleft() for _ in range(len(self._new))]:
                yield batch
            if over:
                break
        if self._error:
            raise self._error

    def cancel(self) -> None:
        """End it after its current token, or in its prefill. May come at any time, also twice."""
        with self._slot.lock:
            if self._slot.running is self and not self._cancelled:
                self._cancelled = True
                self._slot.backend.cancel()

    def expire(self) -> None:
        """Its time is over: whoever reads `batches` goes on at once."""
        self.expired = True
        self._ready.set()
        self.cancel()

    def run(self) -> None:
        """In the slot's thread: pump tokens from the backend into the event loop."""
        stream = self._slot.backend.stream(self._tokens, reuse=True, **self._request)
        try:
            while not self._cancelled:
                self._push(next(stream))
        except StopIteration as end:
            self.reason = end.value
        except GptOssError as error:
            self._error = error
        except Exception as error:  # a backend that was closed meanwhile
            self._error = BackendFailed(f"{type(error).__name__}: {error}")
        finally:
            self._finish(stream)

    def _push(self, token: Token) -> None:
        self.reused = self._slot.backend.reused
        self._new.append(token)
        self._tokens.append(token.id)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._ready.set)

    def _finish(self, stream: Any) -> None:
        try:
            stream.close()
        except Exception as error:  # the tokens before it are good
            self._error = self._error or BackendFailed(str(error))
        with self._slot.lock:
            self._slot.running = None
        self._slot.tokens = [] if self._error else self._tokens
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._over = True
        self._ready.set()
        self.on_end()
        self._scheduler.release(self._slot)


class Scheduler:
    """Hands out slots in the order of arrival; a request gets the idle slot whose cache shares most with its prompt."""

    def __init__(self, backends: Sequence[Backend], queue: int) -> None:
        self._slots = [Slot(backend) for backend in backends]
        self._idle = list(self._slots)
        self._n = len(self._slots)
        self._queue = queue
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._threads = ThreadPoolExecutor(self._n, "backend")
        self._usual_seconds = 1.0  # of a generation, a moving average
        self._since: dict[Slot, float] = {}

    @property
    def n_waiting(self) -> int:
        return sum(not place.done() for place in self._waiting)

    @property
    def n_running(self) -> int:
        return self._n - len(self._idle)

    async def start(self, tokens: Sequence[int], request: dict[str, Any], admitted: bool = False) -> RunningGeneration:
        """Begin a generation, after those that came before. Raises ApiError 429 when the queue is full, unless it is
        of a request that was `admitted` before.
        """
        slot = await self._acquire(tokens, admitted)
        self._since[slot] = time.monotonic()
        generation = RunningGeneration(slot, list(tokens), request, self)
        self._threads.submit(generation.run)
        return generation

    async def run(self, work: Callable[[Backend], Result], admitted: bool = False) -> Result:
        """Have a backend do something that is no generation, in its turn; cancelled with the task that waits for it.
        Raises ApiError 429 as `start` does, and what the backend raises.
        """
        slot = await self._acquire((), admitted)
        slot.tokens = []

        def free(done: asyncio.Future[Any]) -> None:
            if not done.cancelled():
                done.exception()  # seen, even where nobody waits for it any more
            self.release(slot)

        running = asyncio.get_running_loop().run_in_executor(self._threads, work, slot.backend)
        running.add_done_callback(free)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            slot.backend.cancel()
            raise

    async def _acquire(self, tokens: Sequence[int], admitted: bool) -> Slot:
        if self._idle and not self._waiting:
            slot = self._idle[0]
            if len(self._idle) > 1:
                slot = max(self._idle, key=lambda s: common_prefix(s.tokens, tokens))
            self._idle.remove(slot)
            return slot
        if self.n_waiting >= self._queue and not admitted:
            retry = min(_LONGEST_RETRY, math.ceil(self._usual_seconds * (self.n_waiting + 1) / self._n))
            raise ApiError(429, "the queue is full", code="queue_full", headers={"Retry-After": str(max(1, retry))})
        place: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given a slot in the same moment
                self.release(place.result())
            raise

    def release(self, slot: Slot) -> None:
        """Give a slot to the first who still waits."""
        if slot in self._since:
            self._usual_seconds += 0.2 * (time.monotonic() - self._since.pop(slot) - self._usual_seconds)
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(slot)
                return
        self._idle.append(slot)

    def close(self) -> None:
        """End what still runs."""
        for slot in self._slots:
            if running := slot.running:
                running.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
