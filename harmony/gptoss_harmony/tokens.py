"""The special tokens of o200k_harmony, as data. No other file of this package holds a token id.

The ordinary ranks are 0 to 199 997; every id from FIRST_SPECIAL to LAST_SPECIAL is special. The embedding of the
published models has LAST_SPECIAL rows, so LAST_SPECIAL itself can be decoded but never sampled. LAST_NAMED is the last
one that published tokenizers list, as ``<|endofprompt|>``.
"""

from __future__ import annotations

N_RANKS = 199_998
FIRST_SPECIAL = N_RANKS
LAST_NAMED = 200_018
LAST_SPECIAL = 201_088

STARTOFTEXT = 199_998
ENDOFTEXT = 199_999
RETURN = 200_002
CONSTRAIN = 200_003
CHANNEL = 200_005
START = 200_006
END = 200_007
MESSAGE = 200_008
CALL = 200_012

_NAMED = {
    STARTOFTEXT: "<|startoftext|>",
    ENDOFTEXT: "<|endoftext|>",
    RETURN: "<|return|>",
    CONSTRAIN: "<|constrain|>",
    CHANNEL: "<|channel|>",
    START: "<|start|>",
    END: "<|end|>",
    MESSAGE: "<|message|>",
    CALL: "<|call|>",
}

SPECIAL_NAMES: tuple[str, ...] = tuple(
    _NAMED.get(token) or f"<|reserved_{token}|>" for token in range(FIRST_SPECIAL, LAST_SPECIAL + 1)
)
"""Text of each special token; index 0 is FIRST_SPECIAL."""

SPECIAL_TOKENS: dict[str, int] = {name: FIRST_SPECIAL + i for i, name in enumerate(SPECIAL_NAMES)}
"""Text to id, all 1 091 of them."""

MESSAGE_STOPS = frozenset({RETURN, END, CALL})
"""Ids that close a message in a stream."""

ACTION_STOPS = frozenset({RETURN, CALL})
"""Ids at which the assistant hands over: openai-harmony's stop_tokens_for_assistant_actions."""

GENERATION_STOPS = ACTION_STOPS | {ENDOFTEXT}
"""Ids at which an engine must stop generating; the published generation config includes ENDOFTEXT."""

ANALYSIS, COMMENTARY, FINAL = CHANNELS = ("analysis", "commentary", "final")
"""The channels that gpt-oss was trained on."""


def is_special(token: int) -> bool:
    """True for the 1 091 special ids; ids above LAST_SPECIAL are unknown, not special."""
    return FIRST_SPECIAL <= token <= LAST_SPECIAL
