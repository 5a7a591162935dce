"""What can be read off a JSON schema before any rule is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor
from typing import Any

from gptoss_harmony.errors import LayoutError

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
    | {"$schema", "$id", "$defs", "definitions", "nullable", "strict"}
)
KNOWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
OF_OTHER_TYPES = frozenset().union(*KNOWN.values())


def infer_type(schema: Mapping[str, Any]) -> str | None:
    """The type that a schema without one is about: all its keywords belong to it."""
    found = [kind for kind in ("object", "array", "string") if KNOWN[kind] & schema.keys()]
    return found[0] if len(found) == 1 else None


def read_bounds(schema: Mapping[str, Any]) -> dict[str, float]:
    """The numeric bounds; draft 4 said with a boolean that minimum or maximum is exclusive."""
    bounds = {key: schema[key] for key in KNOWN["number"] if schema.get(key) is not None}
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := bounds.get(exclusive), bool):
            del bounds[exclusive]
            if flag and plain in bounds:
                bounds[exclusive] = bounds.pop(plain)
    return bounds


def read_integer_bounds(schema: Mapping[str, Any]) -> tuple[int | None, int | None]:
    bounds = read_bounds(schema)
    low = [ceil(bounds["minimum"])] if "minimum" in bounds else []
    high = [floor(bounds["maximum"])] if "maximum" in bounds else []
    low += [floor(bounds["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in bounds else []
    high += [ceil(bounds["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in bounds else []
    return max(low, default=None), min(high, default=None)


def resolve(root: Any, ref: str, where: str) -> Any:
    node = root
    for step in ref[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            node = node[int(step)] if isinstance(node, list) else node[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise LayoutError(where, f"nothing at {ref!r}") from None
    return node


def merge(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    merge_property: Callable[[Mapping[str, Any], Any], Any],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Both schemas at once. Where two values of one keyword cannot be joined the second counts, with a note."""
    properties = [part.get("properties", {}).keys() for part in (first, second)]
    if "additionalProperties" in {**first, **second} and properties[0] != properties[1]:
        note("additionalProperties is taken to be about the properties of all parts")
    out = dict(first)
    for key, value in second.items():
        known: Any = out.get(key)
        if key == "properties" and key in out:
            out[key] = {**known, **{k: merge_property(known[k], v) if k in known else v for k, v in value.items()}}
        elif key == "required" and key in out:
            out[key] = list(dict.fromkeys([*known, *value]))
        else:
            if key in out and key not in ANNOTATIONS and known != value:
                note(f"of two values of {key} the last one counts")
            out[key] = value
    return out


def is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def is_type(value: Any, kinds: str | list[str]) -> bool:
    actual = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
        type(None): "null",
    }[type(value)]
    wanted = [kinds] if isinstance(kinds, str) else kinds
    return actual in wanted or (actual == "integer" and "number" in wanted)


def are_disjoint(variants: Sequence[Any]) -> bool:
    """True if no value can match two of the variants, judged by their constants and types alone."""
    pairs = [(first, second) for i, first in enumerate(variants) for second in variants[i + 1 :]]
    return all(isinstance(a, Mapping) and isinstance(b, Mapping) and _differ(a, b) for a, b in pairs)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    values = _list_constants(first)
    others = _list_constants(second)
    if values is not None and others is not None:
        return not any(value == other for value in values for other in others)
    if values is None and others is None:
        kinds = [first.get("type"), second.get("type")]
        return (
            all(isinstance(kind, str) for kind in kinds)
            and len({str(k).replace("integer", "number") for k in kinds}) == 2
        )
    constants = others if values is None else values
    kind = (first if values is None else second).get("type")
    return kind is not None and not any(is_type(value, kind) for value in constants or ())


def _list_constants(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")
