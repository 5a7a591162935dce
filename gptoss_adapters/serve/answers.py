"""One answer in the making: a generation's tokens through the API's stream, with stop strings, log-probabilities
and usage.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from gptoss_harmony import Vocabulary
from gptoss_harmony.openai.answer_stream import AnswerStream
from gptoss_harmony.tokens import FIRST_SPECIAL

from gptoss_adapters.backends.protocol import Info, Token
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.scheduler import RunningGeneration

Json = dict[str, Any]
Attach = Callable[[list[Json], list[Json]], list[Json]]


class Answer:
    """Iterate over `events`, then call `finish`.

    attach(events, entries): puts log-probability entries where the API has them; returns those that found no place yet.
    """

    def __init__(
        self,
        stream: AnswerStream,
        generation: RunningGeneration,
        ask: Ask,
        info: Info,
        vocabulary: Vocabulary,
        attach: Attach,
    ) -> None:
        self.stream = stream
        self._generation = generation
        self._ask = ask
        self._info = info
        self._vocabulary = vocabulary
        self._attach = attach
        self._pending: list[Json] = []
        self.n_tokens = 0
        self._trouble: Exception | None = None  # what came before it is given first

    @property
    def n_reused(self) -> int:
        return self._generation.reused

    def cancel(self) -> None:
        self._generation.cancel()

    async def events(self) -> AsyncIterator[list[Json]]:
        """Chunks or events as they come, all but the last ones. Raises GptOssError when the backend fails."""
        try:
            async for batch in self._generation.batches():
                yield self._feed(batch)
                if self._trouble:
                    raise self._trouble
                if self.stream.stopped:
                    break
        finally:
            self._generation.cancel()

    def finish(self, to_usage: Callable[..., Json], tell: bool = True) -> list[Json]:
        """The last events, with the usage if `tell`."""
        events = self.stream.finish(self._choose_reason(), self.usage(to_usage) if tell else None)
        self._pending = self._attach(events, self._pending)
        return events

    def usage(self, to_usage: Callable[..., Json]) -> Json:
        reasoning = self.stream.parser.counts.reasoning
        return to_usage(len(self._ask.tokens), self.n_tokens, reasoning, self.n_reused)

    def _feed(self, batch: list[Token]) -> list[Json]:
        """Token by token, so that the same answer is the same events whatever the timing."""
        out: list[Json] = []
        feed = self._feed_plain if self._ask.settings["logprobs"] is None else self._feed_with_logprobs
        try:
            for token in batch:
                out += feed(token)
                self.n_tokens += 1
                if self.stream.stopped:
                    break
        except Exception as error:  # an engine that gives what is no token
            self._trouble = error
        return out

    def _feed_plain(self, token: Token) -> list[Json]:
        return self.stream.feed([token.id])

    def _feed_with_logprobs(self, token: Token) -> list[Json]:
        inside = self.stream.in_answer
        events = self.stream.feed([token.id])
        if inside and token.id < FIRST_SPECIAL:
            self._pending.append(self._spell_entry(token))
        self._pending = self._attach(events, self._pending)
        return events

    def _spell_entry(self, token: Token) -> Json:
        return self._spell(token.id, token.logprob) | {"top_logprobs": [self._spell(*pair) for pair in token.top]}

    def _spell(self, ident: int, logprob: float | None) -> Json:
        data = self._vocabulary.token_bytes[ident]
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    def _choose_reason(self) -> str | None:
        """The API's finish reason; None leaves it to how the output ends."""
        if self.stream.stopped or self._generation.reason == "stop":
            return "stop"
        if self._generation.expired or self._generation.reason in ("length", "cancelled"):
            return "length"
        return "length" if len(self._ask.tokens) + self.n_tokens >= self._info.n_ctx else None


def find_warnings(ask: Ask, stream: AnswerStream, text: str | None, called: bool, complete: bool) -> list[str]:
    """All that a client is told beside its answer: what was not done as asked, and what the model did instead."""
    return [*ask.warnings, *find_shortcomings(ask, text, called, complete), *find_odd_calls(stream)]


def find_odd_calls(stream: AnswerStream) -> list[str]:
    """Calls that the request did not ask for."""
    said = "the model called {!r} although it may call no tool: the arguments are given as content"
    unknown = "the model called {!r}, which is not among the tools of the request"
    return [said.format(name) for name in stream.uncalled] + [unknown.format(name) for name in stream.undeclared]


def find_shortcomings(ask: Ask, text: str | None, called: bool, complete: bool) -> list[str]:
    """What was asked of an answer and is not so; it is reported beside the answer, which is given as it is."""
    if ask.must_call and not called:
        return ["tool_choice: a tool had to be called, and the model called none"]
    if ask.schema is None or called or not complete:
        return []
    problem = _find_mismatch(text, ask.schema)
    return [f"response format: the answer does not keep to the schema: {problem}"] if problem else []


def _find_mismatch(text: str | None, schema: Json) -> str | None:
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import best_match
    from referencing import Registry

    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    try:
        # A client's regular expression can take for ever, and its references could make this server fetch things.
        kind = validators.extend(Draft202012Validator, dict.fromkeys(("pattern", "patternProperties"), lambda *_: ()))
        found = best_match(kind(schema, registry=Registry()).iter_errors(value))
    except Exception as broken:  # the schema is the client's: it may be wrong in ways that no validator declares
        return f"the schema itself cannot be used: {str(broken)[:200]}"
    return None if found is None else f"{found.json_path}: {found.message[:200]}"
