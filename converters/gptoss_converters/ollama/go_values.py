"""The values of a template as Go writes them: as JSON, as `%v` and by the names of their types."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from gptoss_converters.ollama.go_nodes import NotKnownHere


class Struct(dict[str, Any]):
    """Values by field name."""


def to_json(value: Any) -> str:
    """JSON as Go's encoding/json writes it: compact, keys of maps sorted, <, > and & and the line separators
    escaped.
    """
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode())
        return "{" + ",".join(f"{_quote(key)}:{to_json(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    if isinstance(value, bytes | str):
        return _quote(value)
    if isinstance(value, float):
        return _format_float(value, 1e-6).replace("e-0", "e-")
    return json.dumps(value)


def _quote(text: bytes | str) -> str:
    quoted = json.dumps(text.decode("utf-8", "replace") if isinstance(text, bytes) else text, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        quoted = quoted.replace(character, f"\\u{ord(character):04x}")
    return quoted


def _format_float(value: float, small: float) -> str:
    """The shortest digits that give the number back, with an exponent below `small` and from 1e21 on."""
    number = Decimal(repr(value)).normalize()
    if value == 0 or small <= abs(value) < 1e21:
        return format(number, "f")
    sign, digits, _ = number.as_tuple()
    rest = "".join(map(str, digits[1:]))
    power = number.adjusted()
    return f"{'-' * sign}{digits[0]}{'.' * bool(rest)}{rest}e{'-' if power < 0 else '+'}{abs(power):02d}"


def show(value: Any) -> bytes:
    """What an action prints."""
    if isinstance(value, bytes):
        return value
    if value is None:
        return b"<no value>"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        return _format_float(value, 1e-4).encode()
    if isinstance(value, list):
        return b"[" + b" ".join(map(show, value)) + b"]"
    return to_json(value).encode() if isinstance(value, dict) else str(value).encode()


def name_type(value: Any) -> str:
    names = {bytes: "string", bool: "bool", int: "int", float: "float64", list: "[]interface {}", type(None): "<nil>"}
    return "struct" if isinstance(value, Struct) else names.get(type(value), "map[string]interface {}")


def format_pattern(pattern: bytes, *values: Any) -> bytes:
    """Go's printf for %T, %v, %s and %d. Raises NotKnownHere for another verb."""
    texts = iter(values)
    parts = pattern.decode().split("%")
    shown = [parts[0]]
    for part in parts[1:]:
        if part[:1] not in ("T", "v", "s", "d"):
            raise NotKnownHere(f"format %{part[:1]} is not known here", 0)
        value = next(texts)
        shown.append((name_type(value) if part[0] == "T" else show(value).decode()) + part[1:])
    return "".join(shown).encode()
