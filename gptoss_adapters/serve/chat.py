"""POST /v1/chat/completions, whole and streamed."""

from __future__ import annotations

import time
from contextlib import aclosing

from gptoss_harmony.openai.chat_completions import ChatStream, to_completion, to_conversation, to_turn, to_usage
from gptoss_harmony.openai.output import make_id

from gptoss_adapters.serve.answers import Answer, find_warnings
from gptoss_adapters.serve.arguments import Reading
from gptoss_adapters.serve.asking import Ask
from gptoss_adapters.serve.bodies import ChatBody
from gptoss_adapters.serve.choices import Choice, plan_choices, run_choices, sum_usage
from gptoss_adapters.serve.errors import Json, bad_request
from gptoss_adapters.serve.exchange import Exchange, dump
from gptoss_adapters.serve.history import read_tool_messages
from gptoss_adapters.serve.service import Service, to_api_error


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
    reading = service.read(ChatBody, raw)
    read_tool_messages(reading)
    body, raw = reading.body, reading.raw
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    asked = service.ask(
        reading,
        to_conversation(raw, date=service.date, restore=service.prompts.restore),
        to_turn(raw),
        (body.top_logprobs or 0) if body.logprobs else None,
    )
    tell_usage = bool(body.stream_options and body.stream_options.include_usage)
    ident, created = make_id("chatcmpl"), int(time.time())
    if body.n and body.n > 1:
        choices = plan_choices(asked, body.n, lambda: (_open_stream(reading, ident, created), ChatLogprobs()))
        await (_stream_several if body.stream else _answer_several)(service, exchange, choices, tell_usage)
        return
    stream = _open_stream(reading, ident, created)
    attach = ChatLogprobs()
    answer = await service.begin(exchange, asked, stream, attach)
    if body.stream:
        await _stream(service, exchange, answer, asked, stream, tell_usage)
        return
    async for _ in answer.events():
        pass
    answer.finish(to_usage)
    service.record(exchange, answer)
    whole = to_completion(stream.message, reading.model, int(time.time()), answer.usage(to_usage))
    if body.logprobs:
        whole["choices"][0]["logprobs"] = {"content": attach.all, "refusal": None}
    await exchange.json(whole | _find_warnings(asked, stream))


def _open_stream(reading: Reading[ChatBody], ident: str, created: int) -> ChatStream:
    body = reading.body
    return ChatStream(
        reading.model,
        created,
        body.tools,
        parallel=body.parallel_tool_calls is not False,
        completion_id=ident,
        stops=body.stops,
        may_call=bool(body.tools) and body.tool_choice != "none",
        show_reasoning=body.include_reasoning is not False,
    )


async def _stream(
    service: Service, exchange: Exchange, answer: Answer, asked: Ask, stream: ChatStream, tell_usage: bool
) -> None:
    try:
        async for chunks in answer.events():
            if chunks:
                await exchange.events(_encode(chunks))
        chunks = answer.finish(to_usage, tell_usage)
        service.record(exchange, answer)
        chunks[-1] |= _find_warnings(asked, stream)
    except Exception as error:  # whatever it is, a stream does not just break off
        await exchange.events(_encode([to_api_error(error).body]) + b"data: [DONE]\n\n", last=True)
        raise
    await exchange.events(_encode(chunks) + b"data: [DONE]\n\n", last=True)


def _encode(chunks: list[Json]) -> bytes:
    return b"".join([b"data: %b\n\n" % dump(chunk) for chunk in chunks])


def _find_warnings(asked: Ask, stream: ChatStream) -> Json:
    """`warnings`, an addition to the API, is there only where an answer is not what was asked for."""
    message = stream.message
    called = bool(message.get("tool_calls"))
    found = find_warnings(asked, stream, message["content"], called, message["finish_reason"] != "length")
    return {"warnings": found} if found else {}


async def _answer_several(service: Service, exchange: Exchange, choices: list[Choice], _: bool) -> None:
    async with aclosing(run_choices(service, exchange, choices)) as made:
        async for _made in made:
            pass
    usage = sum_usage([choice.usage() for choice in choices])
    whole = to_completion({"finish_reason": None}, choices[0].stream.model, int(time.time()), usage)
    whole["choices"] = [_spell_choice(choice) for choice in choices]
    found = [text for choice in choices for text in _find_warnings(choice.asked, choice.stream).get("warnings", ())]
    await exchange.json(whole | ({"warnings": found} if found else {}))


def _spell_choice(choice: Choice) -> Json:
    message = dict(choice.stream.message)
    reason = message.pop("finish_reason")
    told = choice.asked.settings["logprobs"] is not None
    logprobs = {"content": choice.attach.all, "refusal": None} if told else None
    return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": reason}


async def _stream_several(service: Service, exchange: Exchange, choices: list[Choice], tell_usage: bool) -> None:
    last: list[Json] = []
    try:
        async with aclosing(run_choices(service, exchange, choices)) as made:
            async for choice, chunks, over in made:
                if over:
                    last = chunks
                    chunks[-1] |= _find_warnings(choice.asked, choice.stream)
                if chunks:
                    await exchange.events(_encode(chunks))
        usage = sum_usage([choice.usage() for choice in choices])
    except Exception as error:  # whatever it is, a stream does not just break off
        if not exchange.status:
            raise
        await exchange.events(_encode([to_api_error(error).body]) + b"data: [DONE]\n\n", last=True)
        raise
    end = b"data: [DONE]\n\n"
    if tell_usage:
        about = {key: value for key, value in last[-1].items() if key not in ("choices", "warnings")}
        end = _encode([about | {"choices": [], "usage": usage}]) + end
    await exchange.events(end, last=True)
