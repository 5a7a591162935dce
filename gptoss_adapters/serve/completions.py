"""POST /v1/completions, whole and streamed: text or ids go on as they are, without a chat around them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from gptoss_harmony.openai.output import make_id

from gptoss_adapters.backends.scoring import PromptLogprobs
from gptoss_adapters.serve.arguments import Reading
from gptoss_adapters.serve.asking import choose_sampling
from gptoss_adapters.serve.completion_text import CompletionText, spell_prompt_logprobs
from gptoss_adapters.serve.completions_body import CompletionBody, read_completion, read_prompts
from gptoss_adapters.serve.errors import Json, bad_request
from gptoss_adapters.serve.exchange import ClientGone, Exchange, dump
from gptoss_adapters.serve.scheduler import RunningGeneration
from gptoss_adapters.serve.service import Service, to_api_error
from gptoss_adapters.serve.shaping import shape_sampling


@dataclass(slots=True)
class _Job:
    """A request in the making. `head`: what every chunk says; `settings`: keyword arguments of `Backend.stream`;
    `admitted`: it has had a place in the queue.
    """

    service: Service
    exchange: Exchange
    body: CompletionBody
    reading: Reading[Any]
    prompts: list[list[int]]
    head: Json
    settings: Json
    admitted: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0, "cached": 0})

    def usage(self) -> Json:
        prompt = self.counts["prompt"]
        completion = self.counts["completion"]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.counts["cached"]},
        }


async def create(service: Service, exchange: Exchange, raw: Json) -> None:
    reading = read_completion(raw, service.settings.strict_arguments)
    body: CompletionBody = reading.body
    service.choose_model(reading)
    prompts = read_prompts(body, service.vocabulary)
    for prompt in prompts:
        _check_prompt(prompt, body, service)
    _check_scoring(body, service)
    head = {"id": make_id("cmpl"), "object": "text_completion", "created": int(time.time())}
    head["model"] = reading.model
    shape, lacking = shape_sampling(body, service.info, held=False)
    reading.note(*lacking)
    settings = choose_sampling(body) | {"logprobs": body.logprobs} | shape
    job = _Job(service, exchange, body, reading, prompts, head, settings)
    if body.stream:
        await _stream(job)
    else:
        await _answer_whole(job)


def _check_prompt(prompt: list[int], body: CompletionBody, service: Service) -> None:
    info = service.info
    if max(prompt) >= info.vocab_size:
        raise bad_request(f"prompt: no such token (expected 0..{info.vocab_size - 1} / got {max(prompt)})", "prompt")
    if len(prompt) + (body.limit != 0) > info.n_ctx:
        message = (
            f"the prompt has {len(prompt)} tokens, the context holds {info.n_ctx}: nothing is left for an answer; "
            "shorten it, or start the server with a larger --context"
        )
        raise bad_request(message, "prompt", "context_length_exceeded")


def _check_scoring(body: CompletionBody, service: Service) -> None:
    if body.n_scored is None or service.info.capabilities.scores_prompts:
        return
    name = "echo" if body.prompt_logprobs is None else "prompt_logprobs"
    raise bad_request(
        f"{name}: the engine {service.info.engine} gives no log-probabilities of a prompt's tokens: leave out "
        f"{'echo or logprobs' if name == 'echo' else name}, or serve the model by llama_server, llama_cpp, torch or "
        "vllm",
        name,
    )


async def _answer_whole(job: _Job) -> None:
    choices: dict[int, Json] = {}
    async for piece in _run(job):
        _add(choices.setdefault(piece["index"], {}), piece)
    _record(job)
    answer = job.head | {"choices": [choices[i] for i in sorted(choices)], "usage": job.usage()}
    await job.exchange.json(answer | _find_warnings(job))


def _add(choice: Json, piece: Json) -> None:
    """A whole choice is the sum of its pieces, so that it says the same as a streamed one."""
    logprobs = piece["logprobs"]
    if choice and logprobs:
        for key, values in logprobs.items():
            choice["logprobs"][key] += values
    text = choice.get("text", "") + piece["text"]
    kept = choice.get("logprobs") or logprobs
    choice |= piece | {"text": text, "logprobs": kept}


async def _stream(job: _Job) -> None:
    exchange = job.exchange
    try:
        async for piece in _run(job):
            await exchange.events(_encode(job.head | {"choices": [piece]}))
    except ClientGone:
        raise
    except Exception as error:
        if exchange.status:
            await exchange.events(_encode(to_api_error(error).body), last=True)
        raise
    _record(job)
    last = _find_warnings(job)
    if job.body.stream_options and job.body.stream_options.include_usage:
        last["usage"] = job.usage()
    end = _encode(job.head | {"choices": []} | last) if last else b""
    await exchange.events(end + b"data: [DONE]\n\n", last=True)


def _encode(chunk: Json) -> bytes:
    return b"data: %b\n\n" % dump(chunk)


async def _run(job: _Job) -> AsyncIterator[Json]:
    """The pieces of all choices, one choice after the other."""
    n = job.body.n or 1
    seed = secrets.randbits(32) if job.body.seed is None else job.body.seed
    for i, prompt in enumerate(job.prompts):
        job.counts["prompt"] += len(prompt)
        scored = None
        if job.body.n_scored is not None:
            scored = await job.service.score(job.exchange, prompt, job.body.n_scored, job.admitted)
            job.admitted = True
        for j in range(n):
            settings = job.settings | {"seed": (seed + j) % 2**32}
            async for piece in _run_choice(job, prompt, scored, settings):
                yield piece | {"index": i * n + j}


async def _run_choice(
    job: _Job, prompt: list[int], scored: PromptLogprobs | None, settings: Json
) -> AsyncIterator[Json]:
    body = job.body
    skip = body.skip_special_tokens is not False
    text = CompletionText(job.service.vocabulary, body.stops, body.logprobs is not None, skip)
    extra: Json = {}
    if scored is not None and body.prompt_logprobs is not None:
        extra["prompt_logprobs"] = spell_prompt_logprobs(prompt, scored, body.prompt_logprobs, text)
    if body.echo or extra:
        yield _spell(text, text.echo(prompt, scored) if body.echo else "") | extra
    reason = "length"
    room = job.service.info.n_ctx - len(prompt)
    limit = room if body.limit is None else min(room, body.limit)
    if limit:
        generation = await job.service.start(job.exchange, prompt, settings | {"max_tokens": limit}, job.admitted)
        job.admitted = True
        async for shown in _read(job, generation, text):
            yield _spell(text, shown)
        reason = "stop" if text.stopped or generation.reason == "stop" else "length"
        job.counts["cached"] += generation.reused
    yield _spell(text, text.close(), reason)


async def _read(job: _Job, generation: RunningGeneration, text: CompletionText) -> AsyncIterator[str]:
    """Token by token, so that the same answer is the same pieces whatever the timing."""
    try:
        async for batch in generation.batches():
            for token in batch:
                job.counts["completion"] += 1
                if shown := text.feed(token):
                    yield shown
                if text.stopped:
                    return
    finally:
        generation.cancel()


def _spell(text: CompletionText, shown: str, reason: str | None = None) -> Json:
    return {"index": 0, "text": shown, "logprobs": text.take_logprobs(last=reason is not None), "finish_reason": reason}


def _record(job: _Job) -> None:
    prompt, written, reused = job.counts.values()
    job.exchange.facts |= {"prompt_tokens": prompt, "completion_tokens": written, "cached_tokens": reused}
    job.service.count_tokens(prompt, written, reused)


def _find_warnings(job: _Job) -> Json:
    """`warnings`, an addition to the API, is there only where an answer is not what was asked for."""
    return {"warnings": job.reading.warnings} if job.reading.warnings else {}
