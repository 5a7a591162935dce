"""JSON schema to the TypeScript notation in which Harmony shows tools to the model.

The rules are openai-harmony 0.0.8's, oddities included: the model was trained on this text. What they cannot say
(anyOf, $ref, const, ...) becomes ``any``. One difference: floats in defaults are printed exactly, where the reference
reads some floats of many digits with an error in the last one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from gptoss_harmony.errors import LayoutError

_SCALARS = {"number": "number", "integer": "number", "boolean": "boolean"}
_INTEGERS = range(-(2**63), 2**64)


def to_typescript(schema: Any, indent: str = "") -> str:
    """The TypeScript type of a JSON schema (any JSON value; what is not a schema is ``any``).

    Raises LayoutError for a schema nested too deeply, or with a number too large, to be written.
    """
    try:
        return _type(schema, indent)
    except (RecursionError, OverflowError) as error:
        raise LayoutError("", f"not a JSON schema that can be written: {error}") from None


def _type(schema: Any, indent: str) -> str:
    if not isinstance(schema, dict):
        return "any"
    kind = schema.get("type")
    variants = schema.get("oneOf")
    if _is_array(variants):
        return "".join(f"\n{indent} | {_variant(v, indent, _comments(v, _quoted_default))}" for v in variants)
    if names := _strings(kind):
        return " | ".join("number" if name == "integer" else name for name in names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        return " | ".join(f'"{value}"' for value in _strings(schema.get("enum"))) or "string"
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    return _SCALARS.get(kind, "any") if isinstance(kind, str) else "any"


def compact_json(value: Any) -> str:
    """JSON without spaces, keys in the given order, floats in the shortest form (``1.0``, ``1e20``)."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(int(value)) if value in _INTEGERS else _float(float(value))
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{compact_json(str(key))}:{compact_json(item)}" for key, item in value.items()) + "}"
    if _is_array(value):
        return "[" + ",".join(map(compact_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _object(schema: dict[str, Any], indent: str) -> str:
    properties = schema.get("properties")
    required = set(_strings(schema.get("required")))
    lines = [_description_line(schema, indent), "{\n"]
    for name, value in properties.items() if isinstance(properties, dict) else ():
        lines += _property(f"{name}{'' if name in required else '?'}", value, indent)
    return "".join([*lines, indent, "}"])


def _property(name: str, schema: Any, indent: str) -> Iterator[str]:
    """The lines of one property; `name` carries its question mark. They stand at the indent of the brace."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(title := schema.get("title"), str):
        yield f"{indent}// {title}\n{indent}//\n"
    if "oneOf" not in schema:
        yield _description_line(schema, indent)
    if _is_array(examples := schema.get("examples")) and examples:
        yield f"{indent}// Examples:\n"
        yield from (f'{indent}// - "{example}"\n' for example in _strings(examples))
    if _is_array(schema.get("oneOf")):
        yield from _one_of_property(name, schema, indent)
    else:
        default = "" if "oneOf" in schema else _default(schema)
        yield f"{indent}{name}: {_nullable(schema, f'{indent}    ')},{' // ' if default else ''}{default}\n"


def _one_of_property(name: str, schema: dict[str, Any], indent: str) -> Iterator[str]:
    variants = schema["oneOf"]
    description = _description(schema)
    printed = description is not None and not (variants and _description(variants[0]) == description)
    if printed:
        yield _description_line(schema, indent)
    if default := _default(schema):
        yield f"{indent}// {default}\n"
    yield f"{indent}{name}:\n"
    for i, variant in enumerate(variants):
        comments = _comments(variant, _default)
        if _description(variant) is not None and (_description(variant) == description or (i == 0 and printed)):
            comments = comments[1:]
        yield f"{indent} | {_variant(variant, indent, comments)}\n"
    yield f"{indent},\n"


def _variant(schema: Any, indent: str, comments: list[str]) -> str:
    return _nullable(schema, f"{indent}   ") + (f" // {' '.join(comments)}" if comments else "")


def _nullable(schema: Any, indent: str) -> str:
    """The type, with ``| null`` if the schema is nullable and no "null" stands anywhere in the type's text."""
    text = _type(schema, indent)
    nullable = isinstance(schema, dict) and schema.get("nullable") is True and "null" not in text
    return f"{text} | null" if nullable else text


def _comments(variant: Any, default: Any) -> list[str]:
    """Description and default of a oneOf variant, as far as they exist and in this order."""
    if not isinstance(variant, dict):
        return []
    description = _description(variant)
    return [text for text in (description, default(variant) or None) if text is not None]


def _default(schema: dict[str, Any]) -> str:
    """``default: ...``: a string raw in quotes, or bare where an enum quotes it already; "" without a default."""
    value = schema.get("default")
    if not isinstance(value, str):
        return f"default: {compact_json(value)}" if "default" in schema else ""
    return f"default: {value}" if _has_enum(schema) else f'default: "{value}"'


def _quoted_default(schema: dict[str, Any]) -> str:
    """As `_default`, but an enum's value is a JSON string: the form in a union that is not a property's own."""
    if isinstance(value := schema.get("default"), str) and _has_enum(schema):
        return f"default: {compact_json(value)}"
    return _default(schema)


def _has_enum(schema: dict[str, Any]) -> bool:
    return _is_array(enum := schema.get("enum")) and bool(enum)


def _description(schema: Any) -> str | None:
    text = schema.get("description") if isinstance(schema, dict) else None
    return text if isinstance(text, str) else None


def _description_line(schema: dict[str, Any], indent: str) -> str:
    text = _description(schema)
    return "" if text is None else f"{indent}// {text}\n"


def _is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if _is_array(value) else []


def _float(value: float) -> str:
    """The shortest decimal that reads back the same; plain for 1e-5 <= abs(value) < 1e16, else ``1e20``, ``1.5e-7``."""
    if not math.isfinite(value):
        return "null"
    digits, _, exponent = repr(value).partition("e")
    if not exponent:
        return digits
    if int(exponent) == -5:
        return f"{'-' if value < 0 else ''}0.0000{digits.lstrip('-').replace('.', '')}"
    return f"{digits}e{int(exponent)}"
