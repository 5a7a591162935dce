"""POST /v1/chat/completions, whole and streamed."""

from __future__ import annotations

import time

from gptoss_harmony.openai.chat_completions import Stream, completion, to_conversation, turn, usage

from gptoss_adapters.errors import GptOssError
from gptoss_adapters.serve.answers import Answer, shortcomings
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.bodies import ChatBody
from gptoss_adapters.serve.errors import Json, bad_request
from gptoss_adapters.serve.exchange import Exchange, dump
from gptoss_adapters.serve.service import Service, api_error


class ChatLogprobs:
    """Puts log-probabilities into chunks, and keeps all of them for a whole answer."""

    def __init__(self) -> None:
        self.all: list[Json] = []

    def __call__(self, chunks: list[Json], entries: list[Json]) -> list[Json]:
        for chunk in chunks if entries else ():
            if chunk["choices"] and ("content" in chunk["choices"][0]["delta"] or chunk["choices"][0]["finish_reason"]):
                chunk["choices"][0]["logprobs"] = {"content": entries, "refusal": None}
                self.all += entries
                return []
        return entries


async def create(service: Service, exchange: Exchange, raw: Json) -> None:
    body: ChatBody = service.read(ChatBody, raw)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    asked = service.ask(
        body, to_conversation(raw, date=service.date), turn(raw), (body.top_logprobs or 0) if body.logprobs else None
    )
    stream = Stream(
        service.settings.model,
        int(time.time()),
        body.tools,
        parallel=body.parallel_tool_calls is not False,
        stops=body.stops,
    )
    attach = ChatLogprobs()
    answer = await service.begin(exchange, asked, stream, attach)
    if body.stream:
        await _streamed(
            service, exchange, answer, asked, stream, bool(body.stream_options and body.stream_options.include_usage)
        )
        return
    async for _ in answer.events():
        pass
    answer.finish(usage)
    service.ended(exchange, answer)
    whole = completion(stream.message, service.settings.model, int(time.time()), answer.usage(usage))
    if body.logprobs:
        whole["choices"][0]["logprobs"] = {"content": attach.all, "refusal": None}
    await exchange.json(whole | _warnings(asked, stream))


async def _streamed(
    service: Service, exchange: Exchange, answer: Answer, asked: Ask, stream: Stream, tell_usage: bool
) -> None:
    try:
        async for chunks in answer.events():
            if chunks:
                await exchange.events(_spelled(chunks))
    except GptOssError as error:
        await exchange.events(_spelled([api_error(error).body]), last=True)
        raise
    chunks = answer.finish(usage, tell_usage)
    service.ended(exchange, answer)
    chunks[-1] |= _warnings(asked, stream)
    await exchange.events(_spelled(chunks) + b"data: [DONE]\n\n", last=True)


def _spelled(chunks: list[Json]) -> bytes:
    return b"".join([b"data: %b\n\n" % dump(chunk) for chunk in chunks])


def _warnings(asked: Ask, stream: Stream) -> Json:
    """`warnings`, an addition to the API, is there only where an answer is not what was asked for."""
    message = stream.message
    found = shortcomings(
        asked, message["content"], bool(message.get("tool_calls")), message["finish_reason"] != "length"
    )
    return {"warnings": found} if found else {}
