"""render -> parse -> render gives the same ids, and as_parsed gives back the ids of every well-formed stream."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest
from gptoss_harmony import Conversation, Message, Role, parse, render
from gptoss_harmony.rendering.pieces import Form
from gptoss_harmony.tokens import CALL, END, RETURN, START
from helpers.outputs import gold_cases
from helpers.random_harmony import message as random_message

DATA = Path(__file__).parents[1] / "data" / "harmony"


def gold_assistant_messages() -> list[Message]:
    lines = gzip.decompress((DATA / "render_cases.jsonl.gz").read_bytes()).decode().splitlines()
    conversations = [Conversation.from_dict(json.loads(line)["conversation"]) for line in lines]
    return [message for conversation in conversations for message in conversation if message.role is Role.ASSISTANT]


GOLD = gold_assistant_messages()


def ids_of(message: Message, headers: str = "canonical", form: Form = "channel") -> list[int]:
    return render([message], mode="plain", drop="none", headers=headers, form=form)  # type: ignore[arg-type]


def completion_of(ids: list[int]) -> list[int]:
    """What the model wrote of a message: all but ``<|start|>`` and the role, which the prompt ends with."""
    return ids[2:]


def test_gold_has_enough() -> None:
    assert len(GOLD) > 700


def test_as_parsed_is_the_identity() -> None:
    """For every message of the gold conversations; also as a completion, which can give itself no name."""
    for message in GOLD:
        ids = ids_of(message)
        for role, stream in ((None, ids), ("assistant", completion_of(ids)))[: 1 + (message.name is None)]:
            (parsed,) = parse(stream, role)
            assert ids_of(parsed, "as_parsed") == ids, message


def ordinary(message: Message) -> bool:
    """A message that says what a model can say (recipient `all` prints nothing): known channel, tool-like
    recipient, a content type, one text.
    """
    return (
        message.name is None
        and message.channel in (None, "analysis", "commentary", "final")
        and message.recipient
        in (
            None,
            "functions.f",
            "functions.get_weather",
            "functions.search-web",
            "browser.search",
            "python",
            "assistant",
        )
        and message.content_type
        in (None, "json", "code", "<|constrain|>json", "<|constrain|>", "text/plain; charset=utf-8")
        and len(message.content) == 1
    )


def constrained(content_type: str | None) -> str | None:
    return content_type and f"<|constrain|>{content_type.removeprefix('<|constrain|>')}"


@pytest.mark.parametrize("form", ["role", "channel"])
def test_canonical_is_the_identity(form: Form) -> None:
    """Also without the header form: what was parsed says the same as what was rendered. The form of the channel marks
    every content type.
    """
    messages = [message for message in GOLD if ordinary(message)]
    assert len(messages) > 200
    for message in messages:
        (parsed,) = parse(ids_of(message, form=form), None)
        flags = {flag.partition(":")[0] for flag in parsed.flags} - {"arguments_not_json", "json_without_recipient"}
        assert not flags, message
        assert (parsed.channel, parsed.recipient, parsed.content_type, parsed.text) == (
            message.channel,
            message.recipient,
            message.content_type if form == "role" else constrained(message.content_type),
            message.text,
        )
        assert ids_of(parsed, form=form) == ids_of(message, form=form), message


def test_random_messages() -> None:
    rng = Random(0)
    seen = 0
    while seen < 1500:
        message = Message.from_dict(random_message(rng))
        if message.role is Role.ASSISTANT:
            seen += 1
            ids = ids_of(message)
            (parsed,) = parse(ids, None)
            assert ids_of(parsed, "as_parsed") == ids, message


WELL_FORMED = [case for case in gold_cases() if case["kind"] == "valid"]


@pytest.mark.parametrize("case", WELL_FORMED, ids=lambda case: case["id"])
def test_as_parsed_reproduces_gold_streams(case: dict) -> None:  # type: ignore[type-arg]
    """Strict and tolerant, whole conversations and completions; a stream cut inside the last content gets its end."""
    prompt = [START, *render([], next_role=case["role"])[1:]] if case["role"] else []
    whole = prompt + case["tokens"]
    if whole[-1] not in (END, CALL, RETURN):
        whole = [*whole, END]
    for strict in (True, False):
        messages = parse(whole[len(prompt) :], case["role"], strict=strict)
        assert [i for message in messages for i in ids_of(message, "as_parsed")] == whole


def test_not_canonical_tokens_survive() -> None:
    """A model may spell a word in another way than the encoder does; its cache holds those ids."""
    stream = [35644, 200008, 39, 68, 75, 75, 78, END]  # H, e, l, l, o
    (message,) = parse([200005, *stream])
    assert ids_of(message, "as_parsed")[2:] == [200005, *stream]
    assert len(ids_of(message)) < len(ids_of(message, "as_parsed"))
