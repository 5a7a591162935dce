"""Several choices to one chat request: each is an answer of its own, with a seed of its own, to the same prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gptoss_harmony.openai.chat_completions import ChatStream, to_usage

from gptoss_adapters.serve.answers import Answer
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.errors import Json
from gptoss_adapters.serve.exchange import Exchange
from gptoss_adapters.serve.service import Service


class Kept(Protocol):
    """An `Attach` that keeps all entries too."""

    all: list[Json]

    def __call__(self, chunks: list[Json], entries: list[Json], /) -> list[Json]: ...


@dataclass(slots=True)
class Choice:
    """One of the answers in the making."""

    index: int
    asked: Ask
    stream: ChatStream
    attach: Kept
    answer: Answer | None = None

    def usage(self) -> Json:
        assert self.answer is not None
        return self.answer.usage(to_usage)


def plan_choices(asked: Ask, n: int, open_stream: Callable[[], tuple[ChatStream, Kept]]) -> list[Choice]:
    """What is not done as asked is said once, with the first choice."""
    out = []
    for index in range(n):
        seed = (asked.settings["seed"] + index) % 2**32
        own = replace(asked, settings=asked.settings | {"seed": seed}, warnings=() if index else asked.warnings)
        out.append(Choice(index, own, *open_stream()))
    return out


async def run_choices(
    service: Service, exchange: Exchange, choices: Sequence[Choice]
) -> AsyncGenerator[tuple[Choice, list[Json], bool], None]:
    """(choice, its new chunks, are they its last?) as they come; as many choices at once as there are backends."""
    ready: asyncio.Queue[tuple[Choice, list[Json], bool] | BaseException] = asyncio.Queue()
    free = asyncio.Semaphore(len(service.backends))

    async def run(choice: Choice) -> None:
        try:
            async with free:
                answer = choice.answer = await service.begin(
                    exchange, choice.asked, choice.stream, choice.attach, admitted=choice.index > 0
                )
                async for chunks in answer.events():
                    ready.put_nowait((choice, chunks, False))
                last = answer.finish(to_usage, tell=False)
                service.record(exchange, answer)
                ready.put_nowait((choice, last, True))
        except BaseException as error:
            ready.put_nowait(error)

    async with _tasks(run, choices):
        left = len(choices)
        while left:
            got = await ready.get()
            if isinstance(got, BaseException):
                raise got
            for chunk in got[1]:
                chunk["choices"][0]["index"] = got[0].index
            left -= got[2]
            yield got


@asynccontextmanager
async def _tasks(run: Callable[[Choice], Any], choices: Sequence[Choice]) -> AsyncIterator[None]:
    """The runs, ended with the block."""
    tasks = [asyncio.ensure_future(run(choice)) for choice in choices]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sum_usage(usages: Sequence[Json]) -> Json:
    """The prompt, which is the same for all, is counted once, and what the first choice found of it in the cache."""
    first = usages[0]
    written = sum(usage["completion_tokens"] for usage in usages)
    thought = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    cached = first["prompt_tokens_details"]["cached_tokens"]
    return to_usage(first["prompt_tokens"], written, thought, cached)
