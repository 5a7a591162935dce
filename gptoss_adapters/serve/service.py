"""What the endpoints share: the backends behind their queue, the response store, prompts, metrics and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from gptoss_harmony import load_vocabulary
from gptoss_harmony.errors import HarmonyError, LayoutError
from gptoss_harmony.grammars.grammar import Turn
from gptoss_harmony.messages import Conversation
from gptoss_harmony.openai.answer_stream import AnswerStream

from gptoss_adapters.backends.client import Backend
from gptoss_adapters.backends.scoring import PromptLogprobs
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError
from gptoss_adapters.serve.answers import Answer, Attach
from gptoss_adapters.serve.arguments import Body, Note, Reading, read_arguments
from gptoss_adapters.serve.asking import Ask, check_tools, choose_holding, make_ask
from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.exchange import Exchange
from gptoss_adapters.serve.metrics import Metrics
from gptoss_adapters.serve.prompts import Prompts
from gptoss_adapters.serve.running import RunningResponse
from gptoss_adapters.serve.scheduler import RunningGeneration, Scheduler
from gptoss_adapters.serve.sealing import Sealer, make_key, open_key_file
from gptoss_adapters.serve.settings import Settings
from gptoss_adapters.serve.shaping import shape_sampling
from gptoss_adapters.serve.store import Store
from gptoss_adapters.serve.tools import select_tools


class Service:
    def __init__(self, backends: Sequence[Backend], settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.backends = backends
        self.info = backends[0].info
        self.holding = choose_holding(settings.hold_headers, self.info)
        self.scheduler = Scheduler(backends, settings.queue)
        self.prompts = Prompts()
        self.running: dict[str, RunningResponse] = {}  # those that will be stored, by id
        file = settings.encryption_key_file
        self.sealer = open_key_file(file) if file else Sealer([store.secret("sealing", make_key)])
        self.vocabulary = load_vocabulary()
        self.created = int(time.time())
        self.metrics = Metrics()
        self.metrics.gauge("requests_running", lambda: self.scheduler.n_running)
        self.metrics.gauge("requests_waiting", lambda: self.scheduler.n_waiting)
        self.metrics.gauge("responses_stored", lambda: len(self.store))

    @property
    def date(self) -> str:
        return self.settings.date or date.today().isoformat()

    def read(self, kind: type[Body], raw: Json) -> Reading[Body]:
        """The request, checked. Raises ApiError."""
        reading = read_arguments(kind, raw, self.settings.strict_arguments)
        self.choose_model(reading)
        select_tools(reading, self.settings.builtin_tools, self.info)
        return reading

    def choose_model(self, reading: Reading[Any]) -> None:
        """The name under which a request is answered. Raises ApiError 404 for one that is not served."""
        given, names = reading.body.model, self.settings.models
        reading.model = given if given in names else names[0]
        if given is None or given in names:
            return
        if not self.settings.any_model:
            raise refuse_model(names)
        reading.note(Note("model", f"{given[:100]!r} is not served here: {names[0]!r} answers", said=True))

    def ask(self, reading: Reading[Any], conversation: Conversation, turn: Turn, logprobs: int | None) -> Ask:
        strict = check_tools(reading.body.tools, self.settings.max_tools)
        tokens = self.prompts.ids(conversation)
        ask = make_ask(reading.body, turn, tokens, self.info, logprobs, strict, self.holding)
        shape, lacking = shape_sampling(reading.body, self.info, ask.settings["grammar"] is not None)
        reading.note(*lacking)
        return replace(ask, settings=ask.settings | shape, warnings=tuple(reading.warnings))

    async def begin(
        self, exchange: Exchange, ask: Ask, stream: AnswerStream, attach: Attach, admitted: bool = False
    ) -> Answer:
        """Wait for a backend and begin the answer. Raises ApiError 429 (the queue is full, unless the exchange was
        `admitted` before), 503 (no turn in time).
        """
        generation = await self.start(exchange, ask.tokens, ask.settings, admitted)
        return Answer(stream, generation, ask, self.info, self.vocabulary, attach)

    async def start(
        self, exchange: Exchange, tokens: list[int], settings: Json, admitted: bool = False
    ) -> RunningGeneration:
        """Wait for a backend and begin a generation, as `begin` does; `settings`: arguments of `Backend.stream`."""
        exchange.facts["prompt_tokens"] = len(tokens)
        if self.settings.log_contents:
            exchange.facts["prompt"] = self.vocabulary.decode(tokens)
        deadline = self._find_deadline(exchange)
        try:
            async with asyncio.timeout_at(deadline):
                began = time.perf_counter()
                generation = await self.scheduler.start(tokens, settings, admitted)
        except TimeoutError:
            raise ApiError(
                503, "no backend became free in time", code="timeout", headers={"Retry-After": "10"}
            ) from None
        waited = time.perf_counter() - began
        self.metrics.observe("wait_seconds", waited)
        exchange.facts["waited_ms"] = round(1000 * waited, 2)
        exchange.generations.append(generation)
        timer = asyncio.get_running_loop().call_at(deadline, generation.expire)
        generation.on_end = timer.cancel
        return generation

    async def score(self, exchange: Exchange, tokens: list[int], k: int, admitted: bool = False) -> PromptLogprobs:
        """Log-probabilities of a prompt's tokens, beside the k best ones. Raises ApiError 429 as `begin` does, and 503
        where they do not come in time.
        """
        try:
            async with asyncio.timeout_at(self._find_deadline(exchange)):
                return await self.scheduler.run(lambda backend: backend.prompt_logprobs(tokens, max(k, 1)), admitted)
        except TimeoutError:
            raise ApiError(
                503, "the prompt's log-probabilities took too long", code="timeout", headers={"Retry-After": "10"}
            ) from None

    def _find_deadline(self, exchange: Exchange) -> float:
        """By the event loop's clock; one for all that a request has done."""
        if not exchange.deadline:
            exchange.deadline = asyncio.get_running_loop().time() + self.settings.request_seconds
        return exchange.deadline

    def record(self, exchange: Exchange, answer: Answer) -> None:
        """Count and remember what was answered."""
        messages = answer.stream.parser.messages
        self.prompts.remember(answer.stream.calls)
        written = exchange.facts.get("completion_tokens", 0) + answer.n_tokens  # a request may have several choices
        exchange.facts |= {"completion_tokens": written, "cached_tokens": answer.n_reused}
        self.count_tokens(exchange.facts["prompt_tokens"], answer.n_tokens, answer.n_reused)
        if repairs := sum(bool(message.flags) for message in messages):
            self.metrics.count("repaired_messages_total", repairs)
            exchange.facts["repaired"] = repairs
        if self.settings.log_contents:
            text = self.vocabulary.decode(answer.stream.parser.tokens)
            exchange.facts["completion"] = exchange.facts.get("completion", "") + text

    def count_tokens(self, prompt: int, written: int, reused: int) -> None:
        """Those of an answer, in the metrics."""
        self.metrics.count("prompt_tokens_total", prompt)
        self.metrics.count("cached_tokens_total", reused)
        self.metrics.count("completion_tokens_total", written)


def refuse_model(names: Sequence[str]) -> ApiError:
    known = ", ".join(map(repr, names))
    words = f"no such model: ask for {known}, or start the server with --any-model"
    return ApiError(404, words, code="model_not_found", param="model")


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LayoutError):
        return bad_request(str(error), error.where)
    if isinstance(error, HarmonyError | UsageError | NotComparable):
        return bad_request(str(error))  # also: what this backend cannot do
    if isinstance(error, GptOssError):
        return ApiError(503, str(error), code="backend_failed", headers={"Retry-After": "1"})
    return ApiError(500, "an error of this server, which its log describes", code="internal_error")
