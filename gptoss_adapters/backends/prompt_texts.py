"""Prompts for engines that take text: the text of ids, the ids of a text, and whether one gives back the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptoss_harmony import Vocabulary, load_vocabulary
from gptoss_harmony.tokens import SPECIAL_NAMES, SPECIAL_TOKENS

from gptoss_adapters.errors import NotComparable

_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_NAMES)) + ")")


def prompt_text(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """The text that is read as these ids. Raises NotComparable when there is none: control-token text in a message,
    bytes that are no UTF-8, tokens that an encoder would not choose.
    """
    text = vocabulary.decode(tokens)
    if text_ids(text, vocabulary) != list(tokens):
        raise NotComparable("Ollama takes text only, and these ids would not come back from their text")
    return text


def text_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids as an engine reads a prompt: control tokens wherever their names stand."""
    ids: list[int] = []
    for i, part in enumerate(_SPECIAL.split(text)):
        ids += [SPECIAL_TOKENS[part]] if i % 2 else vocabulary.encode(part)
    return ids


def readable_length(tokens: Sequence[int]) -> int:
    """How many of the first tokens an engine that takes text can be asked about: every prompt up to there, as text, is
    read as the same ids.
    """
    vocabulary = load_vocabulary()
    for end in range(1, len(tokens) + 1):
        try:
            prompt_text(tokens[:end], vocabulary)
        except NotComparable:
            return end - 1
    return len(tokens)
