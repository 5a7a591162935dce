"""Do tool calls survive the target? Its greedy answers to real requests, parsed, against the reference's answers.

The model must have the real vocabulary and write Harmony (the pocket checkpoint does). Each case compares name,
arguments as JSON, channel, recipient and content type; that streamed is whole in every chunking; that rendering,
parsing and rendering again gives the same ids; and, where the engine has a chat endpoint of its own, what that makes of
the same request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptoss_harmony import Message, Parser, parse, render
from gptoss_harmony.openai.chat_completions import ChatStream, from_messages, to_conversation
from gptoss_harmony.tokens import N_RANKS

from gptoss_adapters.backends import Backend, BackendFailed
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.errors import GptOssError, NotComparable
from gptoss_adapters.parity.report.schema import FAIL, LOOK, PASS, SKIPPED, ToolCall, ToolCalls
from gptoss_adapters.parity.text.corpus import Json, questions
from gptoss_adapters.parity.text.text_layer import expected_ids

MAX_TOKENS = 96
ALLOWED = 1.0  # nats: where the reference's own choice is as close as this, another token may be noise
_MIN_GOOD = (
    0.5  # of the reference's answers must be finished Harmony, else the model does not speak it and nothing is compared
)
_FIELDS = ("name_equal", "arguments_equal", "channel_equal", "recipient_equal", "content_type_equal")
Reference = Callable[[list[int]], tuple[list[int], list[float]]]


def check_tool_calls(
    checkpoint: Checkpoint, backend: Backend, reference: Reference | None = None, allowed: float = ALLOWED
) -> ToolCalls:
    """The target's answers against the reference's.

    reference: a prompt -> greedy ids, and by how many nats each led the next best (default: the torch model). allowed:
    a different token is no fault where the lead was at most this.
    """
    if checkpoint.config.vocab_size < N_RANKS:
        return ToolCalls([], SKIPPED, "the model has no gpt-oss vocabulary")
    answer = reference or torch_reference(checkpoint)
    asked = questions()
    prompts = [expected_ids(request) for request in asked]
    expected = [answer(prompt) for prompt in prompts]
    if sum(_finished(ids) for ids, _ in expected) < _MIN_GOOD * len(expected):
        return ToolCalls([], SKIPPED, "the model does not answer in Harmony within the tokens allowed")
    judged = [_case(backend, r, p, *e, allowed) for r, p, e in zip(asked, prompts, expected, strict=True)]
    cases, found = [case for case, _ in judged], {verdict for _, verdict in judged}
    return ToolCalls(cases, next(v for v in (FAIL, LOOK, PASS) if v in found), _detail(cases))


def _detail(cases: Sequence[ToolCall]) -> str:
    missed = sum(case.server_equal is False for case in cases)
    if not missed:
        return ""
    return (
        f"{missed} answers of the engine's own chat endpoint differ: it makes its prompt by the template in the "
        "model, so the model is asked something else"
    )


def _finished(ids: Sequence[int]) -> bool:
    """A whole answer: an end that a model may stop at, and no repairs."""
    messages = parse(ids)
    return bool(messages) and messages[-1].end is not None and not any(message.flags for message in messages)


def torch_reference(checkpoint: Checkpoint) -> Reference:
    """The torch model's greedy answers."""
    from gptoss_adapters.reference.generate import generate
    from gptoss_adapters.reference.model import GptOss

    model = GptOss.from_checkpoint(checkpoint)

    def answer(prompt: list[int]) -> tuple[list[int], list[float]]:
        got = generate(model, prompt, max_tokens=MAX_TOKENS, top_logprobs=2)[0]
        return got.tokens, [best[0][1] - best[1][1] for best in got.top_logprobs]

    return answer


def _case(
    backend: Backend, request: Json, prompt: list[int], expected: list[int], leads: list[float], allowed: float
) -> tuple[ToolCall, str]:
    """One request, and the verdict on it."""
    case = ToolCall(
        f"{request['messages'][-1]['content'][:40]} ({len(request.get('tools', ()))} tools, "
        f"{request['reasoning_effort']})"
    )
    try:
        got = backend.generate(prompt, max_tokens=MAX_TOKENS).ids
    except GptOssError as error:
        case.detail = str(error)
        return case, FAIL
    a, b = parse(expected), parse(got)
    case.expected, case.got = show(a), show(b)
    compare(case, a, b)
    case.stream_equal, case.round_trip_equal = streams_alike(got, request.get("tools")), round_trip(request, got)
    _ask_server(case, backend, request, a)
    return case, _judge(case, expected, got, leads, allowed)


def _judge(case: ToolCall, expected: Sequence[int], got: Sequence[int], leads: Sequence[float], allowed: float) -> str:
    """A text layer that disagrees with itself fails; an answer that differs fails where the reference was sure of
    its own.
    """
    if case.stream_equal is False or case.round_trip_equal is False:
        return FAIL
    if all(getattr(case, name) for name in _FIELDS):
        return LOOK if case.server_equal is False else PASS
    at = next((i for i, (x, y) in enumerate(zip(expected, got, strict=False)) if x != y), min(len(expected), len(got)))
    lead = leads[at] if at < len(leads) else float("inf")
    case.detail = f"the answers part at token {at}, where the reference's choice led by {lead:.2f} nats" + (
        f"; {case.detail}" if case.detail else ""
    )
    return FAIL if lead > allowed else LOOK


def compare(case: ToolCall, expected: Sequence[Message], got: Sequence[Message]) -> None:
    """Fill in whether the last message, the answer or the call, is the same; and the channels of all."""
    a, b = (messages[-1] if messages else Message.assistant("") for messages in (expected, got))
    case.name_equal = _name(a) == _name(b)
    case.arguments_equal = _value(a) == _value(b)
    case.recipient_equal, case.content_type_equal = a.recipient == b.recipient, a.content_type == b.content_type
    case.channel_equal = [m.channel for m in expected] == [m.channel for m in got]


def _name(message: Message) -> str | None:
    return message.recipient.removeprefix("functions.") if message.recipient else None


def _value(message: Message) -> Any:
    """A call's arguments as a JSON value, so that spacing and key order do not count; other text as it is."""
    if message.recipient is None:
        return message.text
    try:
        return json.loads(message.text)
    except ValueError:
        return message.text


def show(messages: Sequence[Message]) -> str:
    """For readers: one message per line."""
    return "\n".join(_head(m) + m.text for m in messages)


def _head(message: Message) -> str:
    recipient = f" to {message.recipient}" if message.recipient else ""
    content_type = f" {message.content_type}" if message.content_type else ""
    return f"[{message.channel or '-'}{recipient}{content_type}] "


# Streams and round trips ----------------------------------------------------------------------------------------------


def chunkings(ids: Sequence[int], seed: int = 0, n_random: int = 8) -> Iterator[list[Sequence[int]]]:
    """Every cut in two, one by one, and random ones: ways in which ids can arrive."""
    for cut in range(len(ids) + 1):
        yield [ids[:cut], ids[cut:]]
    yield [ids[i : i + 1] for i in range(len(ids))]
    rng = random.Random(seed)
    for _ in range(n_random):
        cuts = sorted(rng.randrange(len(ids) + 1) for _ in range(rng.randint(2, 6)))
        yield [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def streams_alike(ids: Sequence[int], tools: Sequence[Mapping[str, Any]] | None) -> bool:
    """Messages, and the deltas of the Chat Completions stream put together, are the same however the ids arrive."""
    whole = _fields(parse(ids))
    answer = _bare(from_messages(parse(ids), tools))
    for chunks in chunkings(ids):
        parser, stream = Parser("assistant"), ChatStream("m", 0, tools)
        deltas: list[Json] = []
        for chunk in chunks:
            parser.feed(chunk)
            deltas += stream.feed(chunk)
        parser.finish()
        if _fields(parser.messages) != whole or _bare(assemble([*deltas, *stream.finish()])) != answer:
            return False
    return True


def _fields(messages: Sequence[Message]) -> list[Any]:
    return [(m.role, m.channel, m.recipient, m.content_type, m.text, m.end, m.flags) for m in messages]


def assemble(chunks: Sequence[Json]) -> Json:
    """What a client makes of chat.completion.chunk objects."""
    message: Json = {"content": None, "reasoning_content": None, "tool_calls": [], "finish_reason": None}
    for chunk in chunks:
        choice = chunk["choices"][0]
        delta = choice["delta"]
        for key in ("content", "reasoning_content"):
            if delta.get(key) is not None:
                message[key] = (message[key] or "") + delta[key]
        for call in delta.get("tool_calls", ()):
            while len(message["tool_calls"]) <= call["index"]:
                message["tool_calls"].append({"name": "", "arguments": ""})
            known = message["tool_calls"][call["index"]]
            for key, text in call["function"].items():
                known[key] += text or ""
        message["finish_reason"] = choice["finish_reason"] or message["finish_reason"]
    return message


def _bare(message: Mapping[str, Any]) -> Json:
    """What must be the same: text, reasoning, calls (without their random ids), why it ended."""
    calls = [c.get("function", c) for c in message.get("tool_calls") or ()]
    plain = {key: message.get(key) or None for key in ("content", "reasoning_content", "finish_reason")}
    return plain | {"calls": [(c["name"], c["arguments"]) for c in calls]}


def round_trip(request: Json, got: list[int]) -> bool:
    """The answer appended to the conversation renders to the ids that were written; and the canonical form, parsed,
    to itself.
    """
    body = {key: value for key, value in request.items() if key != "date"}
    before = to_conversation(body, date=request["date"]).messages
    prompt, messages = render(before, drop="none"), parse(got)
    if render([*before, *messages], mode="plain", drop="none", headers="as_parsed") != prompt[:-2] + _starting(
        prompt[-2:], got
    ):
        return False
    once = render(messages, mode="plain", drop="none")
    return render(parse(once, None), mode="plain", drop="none") == once


def _starting(opening: list[int], got: list[int]) -> list[int]:
    """`<|start|>assistant` and the answer."""
    return [*opening, *got]


# The engine's own endpoint --------------------------------------------------------------------------------------------


def _ask_server(case: ToolCall, backend: Backend, request: Json, expected: Sequence[Message]) -> None:
    body = {key: value for key, value in request.items() if key != "date"}
    body |= {
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "chat_template_kwargs": {"conversation_start_date": request["date"]},
    }
    try:
        answer = backend.chat(body)["message"]
    except NotComparable:
        return
    except BackendFailed as error:
        case.detail = str(error)
        return
    except GptOssError as error:
        case.server_equal, case.detail = False, str(error)
        return
    wanted, given = _essence(from_messages(expected, request.get("tools"))), _essence(answer)
    case.server_equal = wanted == given
    if not case.server_equal:
        case.detail = (
            f"its own chat endpoint: expected {json.dumps(wanted, ensure_ascii=False)}, got "
            f"{json.dumps(given, ensure_ascii=False)}"
        )


def _essence(message: Mapping[str, Any]) -> Json:
    calls = [
        (c["function"]["name"], json.loads(c["function"]["arguments"] or "{}")) for c in message.get("tool_calls") or ()
    ]
    return {"content": message.get("content") or None, "calls": calls}
