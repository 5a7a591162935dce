"""How llama.cpp splits text for this vocabulary: not quite as published, and the same in every GGUF.

Its "gpt-4o" rule knows letters by one class and case by ASCII: a combining mark (Tamil and Hindi vowels, a decomposed
accent) ends a word, and a capital that is not ASCII does not begin one. And five control tokens are read in any text,
with specials off too. Applied to the published ranks this gives llama.cpp's ids, which is how a deviation is told from
a fault.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import CHANNEL, CONSTRAIN, END, MESSAGE, N_RANKS, SPECIAL_TOKENS, START

from gptoss_adapters.checkpoint.formats.tokenizer_files import ADDED

_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
ALWAYS_READ = frozenset(
    name for name, ident in SPECIAL_TOKENS.items() if ident in (START, MESSAGE, CHANNEL, CONSTRAIN, END)
)


def encode(text: str, special: bool) -> list[int]:
    """The ids that llama.cpp gives a text; special: all control tokens that the published files name are read."""
    ids: list[int] = _encoding().encode(
        text, allowed_special="all" if special else set(ALWAYS_READ), disallowed_special=()
    )
    return ids


@cache
def _encoding() -> Any:
    import tiktoken

    ranks = {data: rank for rank, data in enumerate(load_vocabulary().token_bytes[:N_RANKS])}
    return tiktoken.Encoding(
        "llama.cpp",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={name: ident for ident, name in ADDED.items()},
    )
