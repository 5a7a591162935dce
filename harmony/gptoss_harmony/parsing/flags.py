"""Flags: what the parser repaired in a message, or found odd about its content.

A flag is a code of `FLAGS`, or ``code:text`` where `text` is model output that stands nowhere else in the message. So
the fields, the content and the flags together account for every word of the stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from gptoss_harmony.messages import Message, Role
from gptoss_harmony.tokens import COMMENTARY

FLAGS = {
    "missing_start": "no <|start|> before the header",
    "missing_message": "no <|message|>: content and header were told apart by their words",
    "missing_end": "the next message began without a closing token",
    "missing_role": "the header names no role: assistant was assumed",
    "missing_space": "two header words were glued together",
    "missing_channel_marker": "the channel's name without <|channel|>",
    "missing_to": "the recipient without `to=`, or with another spelling of it",
    "repeated_start": "<|start|> came again before the header was complete",
    "repeated_role": "the role's word came twice",
    "repeated_channel": "more than one channel; the last valid one counts",
    "repeated_recipient": "more than one recipient; the last one that is not assistant counts",
    "empty_channel": "<|channel|> without a name",
    "repaired_channel": "a channel with junk around its name, or only the beginning of one",
    "unknown_channel": "a channel that gpt-oss does not have",
    "unknown_role": "not a role, and no declared tool: taken as a tool's name",
    "resolved_recipient": "the recipient was completed from the declared tools, is like one of them, or was in parts",
    "undeclared_tool": "a call of a tool that is not among the declared ones",
    "tool_in_channel": "a declared tool's name stood in the place of the channel",
    "tool_in_role": "a declared tool's name stood in the place of the role",
    "tool_in_constrain": "a declared tool's name stood in the place of the content type",
    "repaired_content_type": "the content type was written in an odd way, or is not one",
    "extra_header_words": "words in the header that mean nothing",
    "special_in_header": "a special token in the header that means nothing there",
    "special_in_content": "a special token inside the content, kept as its text",
    "repeated_message": "<|message|> came again before any content",
    "extra_special": "a special token between two messages",
    "unknown_token": "an id outside the vocabulary, shown as U+FFFD",
    "truncated_header": "the header was cut off or given up: what little follows it was not meant as content",
    "abandoned_call": "the header of a call was given up, and what follows it is no JSON object: no tool is called",
    "stray_text": "text between two messages, or after the last one",
    "specials_stripped": "a stream whose special tokens were lost: split at the words that are left",
    "after_return": "the model went on after <|return|>",
    "hallucinated_turn": "the model spoke for the user, a tool or the system",
    "unclosed_call": "a tool call that was not closed by <|call|>",
    "call_without_recipient": "<|call|>, but no tool is called",
    "json_without_recipient": "a JSON object on commentary that is sent to nobody",
    "arguments_not_json": "a function call whose arguments are not one JSON value",
}


def is_unfinished(flags: Iterable[str]) -> bool:
    """Did the message never get as far as its content?"""
    return any(flag.partition(":")[0] == "truncated_header" for flag in flags)


def content_flags(message: Message, closed_by: str) -> list[str]:
    """What is odd about the content of a closed message (`closed_by`: a key of END_REASONS)."""
    text = message.text
    call = message.recipient is not None and message.role is Role.ASSISTANT
    flags = []
    if call and closed_by != "call":
        flags.append("unclosed_call")
    if not call and closed_by == "call":
        flags.append("call_without_recipient")
    if call and message.recipient.startswith("functions.") and not is_json(text):  # type: ignore[union-attr]
        flags.append("arguments_not_json")
    if message.recipient is None and message.channel == COMMENTARY and text.startswith("{") and is_json(text):
        flags.append("json_without_recipient")
    return flags


def is_json(text: str) -> bool:
    """Is the whole text one JSON value?"""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def first_json_value(text: str) -> tuple[object, str]:
    """The first JSON value of `text` and what follows it; (None, text) if there is none."""
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:].strip(" \t\n\r")
