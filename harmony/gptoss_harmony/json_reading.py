"""Values out of JSON: of the expected type, or a LayoutError that says where the bad one stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from gptoss_harmony.errors import LayoutError

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)


def expect(value: Any, kind: type[_T], where: str) -> _T:
    """`value`, or a LayoutError naming `where` if it is not a `kind`."""
    if not isinstance(value, kind):
        raise LayoutError(where, f"wrong type (expected {kind.__name__} / got {type(value).__name__})")
    return value


def expect_or_none(value: Any, kind: type[_T], where: str) -> _T | None:
    """As `expect`, but None is allowed."""
    return None if value is None else expect(value, kind, where)


def expect_member(value: Any, kind: type[_E], where: str) -> _E:
    """The member of the enumeration `kind` with this value. Raises LayoutError."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise LayoutError(where, f"unknown value (expected one of {known} / got {value!r})") from None


def read_json(text: str | bytes, from_dict: Callable[[dict[str, Any]], _T]) -> _T:
    """What `from_dict` makes of the JSON object in `text`. Raises LayoutError.

    Not every JSON can be read: Python limits depth and digits.
    """
    try:
        return from_dict(expect(json.loads(text), dict, ""))
    except LayoutError:
        raise
    except (ValueError, RecursionError) as error:
        raise LayoutError("", f"not JSON that can be read: {error}") from None
