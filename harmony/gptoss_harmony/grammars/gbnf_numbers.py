"""GBNF for integers and decimals within bounds: an alternation of digit patterns."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor

_DIGITS = 16
_LIMIT = 10**_DIGITS - 1


def write_integer_rule(low: int | None, high: int | None) -> str:
    """Integers from `low` to `high`, None meaning 16 digits."""
    if low is None and high is None:
        return f'"-"? ("0" | [1-9] [0-9]{{0,{_DIGITS - 1}}})'
    low = -max(_LIMIT, -(high or 0)) if low is None else low
    high = max(_LIMIT, low) if high is None else high
    ways = [f'"-" ({_alternate(max(1, -high), -low)})'] if low < 0 else []
    if high >= 0:
        ways.append(_alternate(max(low, 0), high))
    return " | ".join(ways)


def write_number_rule(bounds: Mapping[str, float]) -> str | None:
    """Decimals without exponent within minimum, maximum, exclusiveMinimum, exclusiveMaximum.

    Fractions are allowed after an integer part that keeps them inside whatever the digits. None if that leaves nothing.
    """
    low = max((bounds[key] for key in ("minimum", "exclusiveMinimum") if key in bounds), default=None)
    high = min((bounds[key] for key in ("maximum", "exclusiveMaximum") if key in bounds), default=None)
    open_low = low is not None and bounds.get("exclusiveMinimum") == low
    open_high = high is not None and bounds.get("exclusiveMaximum") == high
    ways = []
    if low is None or low < 0:
        ways += _alternate_magnitudes(
            0 if high is None or high > 0 else -high,
            None if low is None else -low,
            open_high and high is not None and high <= 0,
            open_low,
            '"-" ',
        )
    if high is None or high >= 0:
        ways += _alternate_magnitudes(
            0 if low is None or low < 0 else low, high, open_low and low is not None and low >= 0, open_high, ""
        )
    return " | ".join(ways) or None


def _alternate_magnitudes(low: float, high: float | None, open_low: bool, open_high: bool, sign: str) -> list[str]:
    """Non-negative decimals from `low` to `high` after `sign`."""
    top = float(_LIMIT) if high is None else high
    first = floor(low) + 1 if open_low else ceil(low)
    last = ceil(top) - 1 if open_high else floor(top)
    ways = [f"{sign}({_alternate(first, last)})"] if first <= last else []
    # x.5 with x >= low is above low; x < floor(top) keeps it below top. An open end at x itself needs a digit not 0.
    fraction = "[0-9]{0,15} [1-9]" if open_low else "[0-9]{1,16}"
    if ceil(low) <= floor(top) - 1:
        ways.append(f'{sign}({_alternate(ceil(low), floor(top) - 1)}) "." {fraction}')
    return ways


def _alternate(low: int, high: int) -> str:
    """Non-negative integers from `low` to `high` without leading zeros."""
    ways = []
    while len(str(low)) < len(str(high)):
        edge = 10 ** len(str(low)) - 1
        ways += _alternate_same_length(str(low), str(edge))
        low = edge + 1
    return " | ".join(ways + _alternate_same_length(str(low), str(high)))


def _alternate_same_length(low: str, high: str) -> list[str]:
    n = len(low)
    if low == high:
        return [f'"{low}"']
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        first = f"[{low[0]}-{high[0]}]" if low[0] != high[0] else f'"{low[0]}"'
        return [first if n == 1 else f"{first} [0-9]{{{n - 1}}}"]
    if low[0] == high[0]:
        return [f'"{low[0]}" ({" | ".join(_alternate_same_length(low[1:], high[1:]))})']
    ways = _alternate_same_length(low, low[0] + "9" * (n - 1))
    if int(low[0]) + 1 < int(high[0]):
        ways += _alternate_same_length(str(int(low[0]) + 1) + "0" * (n - 1), str(int(high[0]) - 1) + "9" * (n - 1))
    return ways + _alternate_same_length(high[0] + "0" * (n - 1), high)
