"""What must hold for any token stream, as functions of a seed: test_parser_fuzz.py runs some, bench/fuzz_harmony.py
many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import openai_harmony
from gptoss_harmony import Delta, Message, MessageEnd, MessageStart, ParseError, Parser, Role, load_vocabulary, parse
from gptoss_harmony.parsing.parser import Strictness
from gptoss_harmony.parsing.utf8 import REPLACEMENT
from gptoss_harmony.tokens import FIRST_SPECIAL, LAST_SPECIAL, N_RANKS, SPECIAL_NAMES

from helpers.harmony_oracle import oracle
from helpers.random_streams import CONTROLS, any_stream

NAMES = [SPECIAL_NAMES[token - FIRST_SPECIAL] for token in CONTROLS]
FIELDS = ("role", "name", "channel", "recipient", "content_type")


def our_state(parser: Parser) -> dict[str, Any]:
    return {
        "state": parser.state.value,
        "state_data": parser.state_data,
        "role": parser.current_role and parser.current_role.value,
        "channel": parser.current_channel,
        "recipient": parser.current_recipient,
        "content_type": parser.current_content_type,
        "content": parser.current_content,
        "delta": parser.last_content_delta,
        "tokens": parser.tokens,
        "messages": [[*(message.to_dict()[key] for key in FIELDS), message.text] for message in parser.messages],
    }


def their_state(parser: openai_harmony.StreamableParser) -> dict[str, Any]:
    data = parser.state_data
    messages = [message.to_dict() for message in parser.messages]
    return {
        "state": data["state"],
        "state_data": data,
        "role": parser.current_role and parser.current_role.value,
        "channel": parser.current_channel,
        "recipient": parser.current_recipient,
        "content_type": parser.current_content_type,
        "content": parser.current_content,
        "delta": parser.last_content_delta,
        "tokens": parser.tokens,
        "messages": [
            [*(message.get(key) for key in FIELDS), "".join(part["text"] for part in message["content"])]
            for message in messages
        ],
    }


def check_strict(seed: int) -> None:
    """Every attribute after every token, and every error, as in the installed openai_harmony. After an error both
    read on.
    """
    rng = Random(seed)
    role, ids = any_stream(rng)
    strict: Strictness = rng.choice((True, "lax"))
    ours = Parser(role, strict)
    theirs = openai_harmony.StreamableParser(oracle(), role and openai_harmony.Role(role), strict=strict is True)
    for at, token in enumerate([*ids, None]):
        ended = token is None
        errors = [
            _error(ours.finish) if ended else _error(partial(ours.feed, [token])),
            _error(theirs.process_eos) if ended else _error(partial(theirs.process, token)),
        ]
        assert _same_error(*errors), (seed, at, errors)
        got, expected = our_state(ours), their_state(theirs)
        assert got == expected, (seed, at, {key: (got[key], expected[key]) for key in got if got[key] != expected[key]})


def _error(step: Any) -> str | None:
    try:
        step()
    except (ParseError, openai_harmony.HarmonyError) as error:
        return str(error)
    return None


def _same_error(ours: str | None, theirs: str | None) -> bool:
    """The same text, but for two documented differences: 0.0.8 quotes header words as Rust's debug format does (which
    escapes combining marks), and for a header that cannot be decoded it quotes its decoder."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours.partition("Some(")[0] == theirs.partition("Some(")[0] or (
        ours == "could not decode header" and "decode" in theirs
    )


def check_tolerant(seed: int) -> None:
    """No exception; whole, by tokens and in random chunks the same; no text lost."""
    rng = Random(seed)
    role, ids = any_stream(rng)
    tools = rng.choice((None, ["functions.f", "python"]))
    whole, events = follow(role, tools, [ids])
    by_token, token_events = follow(role, tools, [[token] for token in ids])
    cuts = sorted(rng.randrange(len(ids) + 1) for _ in range(rng.randrange(6)))
    chunked, chunk_events = follow(role, tools, [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)])
    assert whole.messages == by_token.messages == chunked.messages, seed
    assert events == token_events == chunk_events, seed
    assert whole.counts == by_token.counts == chunked.counts, seed
    assert parse(ids, role, tools=tools) == whole.messages, seed
    check_events(whole, events)
    check_nothing_lost(role, ids, whole)


def follow(role: str | None, tools: Any, chunks: list[list[int]]) -> tuple[Parser, list[Any]]:
    """The parser at the end, and the events with neighbouring deltas joined."""
    parser, events = Parser(role, tools=tools), []
    for chunk in [*chunks, None]:
        for event in parser.finish() if chunk is None else parser.feed(chunk):
            if isinstance(event, Delta) and events and isinstance(events[-1], Delta):
                events[-1] = Delta(events[-1].text + event.text)
            else:
                events.append(event)
    return parser, events


def check_events(parser: Parser, events: list[Any]) -> None:
    """Start, text, end; what they say is what the messages say."""
    ends = [event for event in events if isinstance(event, MessageEnd)]
    assert [end.message for end in ends] == parser.messages
    starts = [event.header for event in events if isinstance(event, MessageStart)]
    assert [[getattr(header, key) for key in FIELDS] for header in starts] == [
        [getattr(m, key) for key in FIELDS] for m in parser.messages
    ]
    texts = [""] * len(starts)
    at = -1
    for event in events:
        at += isinstance(event, MessageStart)
        if isinstance(event, Delta):
            texts[at] += event.text
    assert texts == [message.text for message in parser.messages]
    assert parser.counts.total == len(parser.tokens)


def check_nothing_lost(role: str | None, ids: list[int], parser: Parser) -> None:
    """Each written character stands in a field, the content or a flag, and no special token is in a field."""
    table = load_vocabulary().token_bytes
    runs = [b""]
    for token in ids:
        if token < N_RANKS:
            runs[-1] += table[token]
        elif token <= LAST_SPECIAL:
            runs.append(b"")
        else:
            runs[-1] += REPLACEMENT.encode()
    texts = [run.decode("utf-8", "replace").replace(REPLACEMENT, "") for run in runs]
    text = "\n".join(texts)
    kept = Counter("".join(parser.flags))  # those that found no message to stand on
    for message in parser.messages:
        fields = (message.name, message.channel, message.recipient)
        assert not [field for field in fields for name in NAMES if name in (field or "") and name not in text], (
            role,
            ids,
        )
        for part in (*fields, message.role.value, message.content_type, message.text, *message.flags):
            kept.update(part or "")
        kept.update(":" if message.name is not None else "")
    last = texts[-1].strip()
    kept.update(last if last in ("", *Role) else "")  # a prompt's end: a header that has only a role makes no message
    lost = Counter(text.replace("to=", "")) - kept
    assert not [char for char in lost if not char.isspace()], (role, ids, lost)


def check_text(seed: int) -> None:
    """As text, in one piece and in random chunks: the same messages; and the same as from ids, if text can tell
    them.
    """
    rng = Random(seed)
    role, ids = any_stream(rng)
    table = load_vocabulary().token_bytes
    pieces = [table[token] for token in ids if token <= LAST_SPECIAL]
    text = b"".join(pieces).decode("utf-8", "replace")
    whole = _text_messages(role, [text])
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(12)))
    assert _text_messages(role, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole, seed
    assert _text_messages(role, list(text)) == whole, seed
    ordinary = b"".join([table[token] if token < N_RANKS else b"\n" for token in ids])
    spelled = any(name.encode() in ordinary for name in SPECIAL_NAMES)
    if REPLACEMENT not in text and not spelled and len(pieces) == len(ids):
        assert whole == [_without_ids(message) for message in parse(ids, role)], seed


def _text_messages(role: str | None, chunks: list[str]) -> list[Message]:
    parser = Parser(role)
    for chunk in chunks:
        parser.feed_text(chunk)
    parser.finish()
    return parser.messages


def _without_ids(message: Message) -> Message:
    return replace(message, header=None)
