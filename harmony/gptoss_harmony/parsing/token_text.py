"""What single tokens say: their bytes, and the deltas of those that are whole characters. Shared by all parsers."""

from __future__ import annotations

from functools import cache

from gptoss_harmony.messages import Role
from gptoss_harmony.parsing.events import Delta
from gptoss_harmony.vocabulary import load_vocabulary

NO_DELTAS: dict[int, Delta] = {}
"""In the place of `shared_deltas()` while nothing may be looked up there."""


@cache
def token_bytes() -> list[bytes]:
    """Bytes by id, the special tokens' names included."""
    return load_vocabulary().token_bytes


def join_bytes(run: list[int]) -> bytes:
    """Bytes of ordinary tokens. The list is twice as fast as `map`."""
    table = token_bytes()
    return b"".join([table[token] for token in run])


@cache
def shared_deltas() -> dict[int, Delta]:
    """Tokens seen so far that are whole characters: spares most tokens the decoder. It only grows."""
    return {}


def remember_delta(token: int) -> None:
    """Adds the delta of an ordinary token if its bytes are whole characters."""
    try:
        shared_deltas()[token] = Delta(token_bytes()[token].decode())
    except UnicodeDecodeError:
        return


@cache
def role_id(role: Role) -> int:
    """The one token that a role's word is."""
    return token_bytes().index(role.value.encode())
