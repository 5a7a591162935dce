"""Dataclasses to plain JSON values and back, by their annotations."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any


def to_plain(value: Any) -> Any:
    """Lists, dicts and numbers of Python's own; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float):  # numpy's float64 is one
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):  # a numpy scalar
        return to_plain(value.item())
    return value


def build(kind: Any, raw: Any) -> Any:
    """`raw` as an object of this type annotation; unknown fields are ignored. Raises ValueError, KeyError, TypeError or
    AttributeError.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return None if raw is None else build(inner, raw)
    if origin is list:
        return [build(arguments[0], item) for item in raw]
    if origin is dict:
        return {key: build(arguments[1], item) for key, item in raw.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        return kind(**{name: build(hints[name], item) for name, item in raw.items() if name in known})
    if kind is Any or raw is None or (kind is str and isinstance(raw, str)):
        return raw
    if kind is float and isinstance(raw, int | float):
        return float(raw)
    if isinstance(raw, kind):
        return raw
    raise ValueError(f"{raw!r} where {kind.__name__} belongs")
