"""JSON schema to GBNF rules (llama.cpp's grammar format, which xgrammar reads too).

The rules never accept what the schema forbids, except where a note says so: a keyword that has no rule here is left
out and named in `Converter.notes`. They do accept less than the schema allows: properties come in their declared
order, an object with declared properties has no others unless ``additionalProperties`` says so, whitespace is at most
a space or one indented line break, numbers have at most 16 digits. Text inside strings can never be a control token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, floor
from typing import Any, TypeAlias

from .errors import LayoutError
from .gbnf_numbers import integer_rule, number_rule
from .gbnf_rules import BASE_RULES, json_literal, other_keys, safe_name, times

MAX_REPEAT = 1999
"""llama.cpp refuses, or silently drops, higher repetition counts."""

_DEPTH = 3
"""Nesting of generic values in a bounded grammar."""

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
    | {"$schema", "$id", "$defs", "definitions", "nullable", "strict"}
)
_KNOWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
_OF_OTHER_TYPES = frozenset().union(*_KNOWN.values())

class Converter:
    """Collects rules for any number of schemas.

    `bound` limits what the schemas leave open: characters per string, elements per array or open object; generic
    values then nest at most 3 deep. Without it a model that never closes a string never ends.
    """

    def __init__(self, bound: int | None = None) -> None:
        self.rules: dict[str, str] = {"ws": BASE_RULES["ws"]}
        self.notes: list[str] = []
        self.bound = None if bound is None else min(bound, MAX_REPEAT)
        self._depth = None if bound is None else _DEPTH
        self._root: Any = True
        self._refs: dict[str, str] = {}
        self._note_scope = ""

    def convert(self, schema: Any, name: str) -> str:
        """Adds the rules of `schema`; returns the name of its rule, which starts with `name`."""
        self._root, self._refs, self._note_scope = schema, {}, name
        return self._visit(schema, name)

    def _visit(self, schema: Any, name: str) -> str:
        if schema is True or schema == {}:
            return self._value(self._depth)
        if not isinstance(schema, Mapping):
            raise LayoutError(name, f"not a JSON schema (expected an object or true / got {schema!r})")
        for keyword, convert in _DECIDING.items():
            if keyword in schema:
                return convert(self, schema, name)
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._any_of([dict(schema) | {"type": one} for one in kind], name)
        if kind is None:
            kind = self._guess_type(schema)
            if kind is None:
                self._ignore(schema, _ANNOTATIONS, name)
                return self._value(self._depth)
        if kind not in _TYPES:
            raise LayoutError(name, f"unknown type (expected one of {', '.join(_TYPES)} / got {kind!r})")
        self._ignore(schema, _ANNOTATIONS | {"type"} | _KNOWN[kind] | (_OF_OTHER_TYPES - _KNOWN[kind]), name)
        return _TYPED[kind](self, schema, name)

    def _guess_type(self, schema: Mapping[str, Any]) -> str | None:
        """The type that a schema without one is about: all its keywords belong to it."""
        found = {kind for kind in ("object", "array", "string") if _KNOWN[kind] & schema.keys()}
        if len(found) == 1 and (kind := found.pop()):
            self._note(f"type is missing, taken to be {kind}")
            return kind
        return None

    def _note(self, text: str) -> None:
        note = f"{self._note_scope}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _ignore(self, schema: Mapping[str, Any], known: Iterable[str], name: str) -> None:
        for keyword in sorted(set(schema) - set(known)):
            self._note(f"{name.removeprefix(self._note_scope) or 'schema'}: {keyword} is not enforced")

    def _rule(self, name: str, body: str) -> str:
        """Adds a rule under `name`, or a numbered name if another rule has it."""
        unique, n = name, 1
        while self.rules.get(unique, body) != body:
            n += 1
            unique = f"{name}-{n}"
        self.rules[unique] = body
        return unique

    def base(self, name: str) -> str:
        """The name of a rule of BASE_RULES, added with the rules that it needs."""
        if name not in self.rules:
            self.rules[name] = BASE_RULES[name]
            for other in BASE_RULES:
                if other != name and other in BASE_RULES[name].replace("(", " ").split():
                    self.base(other)
        return name

    def _ref(self, schema: Mapping[str, Any], name: str) -> str:
        ref = schema["$ref"]
        self._ignore(schema, _ANNOTATIONS | {"$ref"}, name)
        if not ref.startswith("#"):
            self._note(f"{ref} is outside the schema and not followed")
            return self._visit(True, name)
        if ref not in self._refs:
            target = _resolve(self._root, ref, name)
            self._refs[ref] = rule = self._reserve(f"{self._note_scope}-ref-{safe_name(ref.rsplit('/', 1)[-1])}")
            self.rules[rule] = self._visit(target, f"{rule}-x")
        return self._refs[ref]

    def _reserve(self, name: str) -> str:
        unique, n = name, 1
        while unique in self.rules:
            n += 1
            unique = f"{name}-{n}"
        self.rules[unique] = ""
        return unique

    def _const(self, schema: Mapping[str, Any], name: str) -> str:
        self._ignore(schema, {"const", "type", "enum"} | _ANNOTATIONS, name)
        return self._value_rule(schema["const"], name)

    def _enum(self, schema: Mapping[str, Any], name: str) -> str:
        self._ignore(schema, {"enum", "type"} | _ANNOTATIONS, name)
        values = [value for value in schema["enum"] if "type" not in schema or _is_type(value, schema["type"])]
        if not values:
            raise LayoutError(name, "enum has no value of the schema's type")
        ways = [self._value_rule(v, f"{name}-{i}") if _is_nested(v) else json_literal(v) for i, v in enumerate(values)]
        return self._rule(name, " | ".join(ways))

    def _value_rule(self, value: Any, name: str) -> str:
        """Exactly `value`, with the usual freedom of whitespace inside."""
        if not _is_nested(value):
            return self._rule(name, json_literal(value))
        if isinstance(value, dict):
            fields = {key: {"const": inner} for key, inner in value.items()}
            return self._object({"properties": fields, "required": list(value), "additionalProperties": False}, name)
        return self._array({"prefixItems": [{"const": inner} for inner in value], "items": False, "maxItems": len(value)}, name)

    def _one_of(self, schema: Mapping[str, Any], name: str) -> str:
        if not _disjoint(schema["oneOf"]):
            self._note(f"{name.removeprefix(self._note_scope) or 'schema'}: oneOf is treated as anyOf")
        return self._any_of(self._variants(schema, "oneOf"), name)

    def _variants(self, schema: Mapping[str, Any], keyword: str) -> list[Any]:
        rest = {key: value for key, value in schema.items() if key != keyword}
        if set(rest) <= _ANNOTATIONS:
            return list(schema[keyword])
        return [self._merge(rest, variant) for variant in schema[keyword]]

    def _any_of(self, variants: Sequence[Any], name: str) -> str:
        names = [self._visit(variant, f"{name}-{i}") for i, variant in enumerate(variants)]
        return self._rule(name, " | ".join(dict.fromkeys(names)))

    def _all_of(self, schema: Mapping[str, Any], name: str) -> str:
        merged: Mapping[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            merged = self._merge(merged, part)
        return self._visit(merged, name)

    def _merge(self, first: Mapping[str, Any], second: Any) -> Mapping[str, Any]:
        """Both schemas at once. Where two values of one keyword cannot be joined the second counts, with a note."""
        if isinstance(second, Mapping) and set(second) == {"$ref"}:
            second = _resolve(self._root, second["$ref"], self._note_scope)
        if second is True:
            return first
        out = dict(first)
        for key, value in second.items():
            if key == "properties" and key in out:
                out[key] = {**out[key], **{k: self._merge(out[key][k], v) if k in out[key] else v for k, v in value.items()}}
            elif key == "required" and key in out:
                out[key] = list(dict.fromkeys([*out[key], *value]))
            else:
                if key in out and key not in _ANNOTATIONS and out[key] != value:
                    self._note(f"{key}: two values, the last one counts")
                out[key] = value
        return out

    # Types.

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if low > MAX_REPEAT or (high or 0) > MAX_REPEAT:
            self._note(f"{name.removeprefix(self._note_scope)}: lengths above {MAX_REPEAT} are not enforced")
            low, high = min(low, MAX_REPEAT), None if (high or 0) > MAX_REPEAT else high
        if self.bound is not None and high is None:
            high = max(low, self.bound)
        if high is not None and low > high:
            raise LayoutError(name, f"no string of {low} to {high} characters")
        if not low and high is None:
            return self.base("string")
        self.base("char")
        return self._rule(f"string-{low}-{'' if high is None else high}", f'"\\"" char{times(low, high)} "\\""')

    def _number(self, schema: Mapping[str, Any], name: str) -> str:
        self.base("integer")
        bounds = {key: schema[key] for key in _KNOWN["number"] if schema.get(key) is not None}
        if not bounds:
            return self.base("number")
        body = number_rule(bounds)
        if body is None:
            self._note(f"{name.removeprefix(self._note_scope)}: {', '.join(sorted(bounds))} not enforced")
            return self.base("number")
        return self._rule(name, body)

    def _integer(self, schema: Mapping[str, Any], name: str) -> str:
        low, high = _integer_bounds(schema)
        if low is None and high is None:
            return self.base("integer")
        if low is not None and high is not None and low > high:
            raise LayoutError(name, f"no integer from {low} to {high}")
        return self._rule(name, integer_rule(low, high))

    def _object(self, schema: Mapping[str, Any], name: str) -> str:
        properties = dict(schema.get("properties") or {})
        required = set(schema.get("required") or ())
        open_schema = schema.get("additionalProperties", "properties" not in schema)
        if open_schema is True and not properties and not required:
            return self._generic_object(self._depth)
        for key in sorted(required - properties.keys()):
            properties[key] = True if open_schema is False else open_schema
        tail = self._open_tail(open_schema, properties, name)
        pairs = []
        for i, (key, value) in enumerate(properties.items()):
            rule = self._visit(value, f"{name}-{safe_name(key) or i}")
            pairs.append((f'{json_literal(key)} ":" ws {rule}', key in required))
        inside = self._pairs(pairs, tail, name)
        return self._rule(name, f'"{{" ws {inside} ws "}}"' if inside else '"{" ws "}"')

    def _open_tail(self, schema: Any, properties: Mapping[str, Any], name: str) -> str | None:
        """The rule of an undeclared pair: any other key, written without escapes, so that it cannot be a declared one."""
        if schema is False:
            return None
        value = self._visit(schema, f"{name}-any")
        self.base("key-rest")
        key = self._rule(f"{name}-key", f'"\\"" ({other_keys(list(properties))})')
        return self._rule(f"{name}-pair", f'{key} ":" ws {value}')

    def _pairs(self, pairs: list[tuple[str, bool]], other: str | None, name: str) -> str:
        """Pairs in order, the optional ones left out at will; a comma exactly between two that are there."""
        rest = f'("," ws {other}){times(0, self.bound)}' if other else ""  # all pairs after this point, when one stands before them
        first = f"({other} {rest})?" if other else ""  # the same when none does
        for i in range(len(pairs) - 1, -1, -1):
            pair, required = pairs[i]
            body = f"{pair} {rest}".strip()
            if not required:
                body = f"{body} | {first}" if first else f"({body})?"
            first = self._rule(f"{name}-from-{i}", body)
            after = f'"," ws {pair}'
            rest = self._rule(f"{name}-after-{i}", f"{after if required else f'({after})?'} {rest}".strip())
        return first

    def _array(self, schema: Mapping[str, Any], name: str) -> str:
        prefix = schema.get("prefixItems") or []
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if low > MAX_REPEAT or (high or 0) > MAX_REPEAT:
            self._note(f"{name.removeprefix(self._note_scope)}: item counts above {MAX_REPEAT} are not enforced")
            low, high = min(low, MAX_REPEAT), None if (high or 0) > MAX_REPEAT else high
        if self.bound is not None and high is None:
            high = max(low, self.bound, len(prefix))
        if prefix:
            return self._tuple(schema, prefix, low, high, name)
        if high == 0:
            return self._rule(name, '"[" ws "]"')
        item = self._visit(schema.get("items", True), f"{name}-item")
        body = f'{item} ("," ws {item}){times(max(low - 1, 0), None if high is None else high - 1)}'
        return self._rule(name, f'"[" ws {body if low else f"({body})?"} ws "]"')

    def _tuple(self, schema: Mapping[str, Any], prefix: list[Any], low: int, high: int | None, name: str) -> str:
        """All of `prefix`, then `items`; shorter arrays are allowed by the schema, not by the grammar."""
        names = [self._visit(part, f"{name}-{i}") for i, part in enumerate(prefix)]
        body = ' "," ws '.join(names)
        if high is not None and high < len(prefix):
            raise LayoutError(name, f"maxItems {high} is less than the {len(prefix)} prefixItems")
        if (items := schema.get("items", True)) is not False and high != len(prefix):
            item = self._visit(items, f"{name}-item")
            body += f' ("," ws {item}){times(max(low - len(prefix), 0), None if high is None else high - len(prefix))}'
        return self._rule(name, f'"[" ws {body} ws "]"')

    # Values of any type; `depth` levels of nesting are left, None is no limit.

    def _value(self, depth: int | None) -> str:
        name = "value" if depth is None else f"value-{depth}"
        if name not in self.rules:
            self.rules[name] = ""
            scalars = [self._string({}, name), *(self.base(kind) for kind in ("number", "boolean", "null"))]
            nested = [self._generic_object(depth), self._generic_array(depth)] if depth is None or depth else []
            self.rules[name] = " | ".join(nested + scalars)
        return name

    def _generic_object(self, depth: int | None) -> str:
        value = self._value(depth and depth - 1)
        pair = f'{self._string({}, "")} ":" ws {value}'
        return self._rule("object" if depth is None else f"object-{depth}", f'"{{" ws ({self._listed(pair)})? ws "}}"')

    def _generic_array(self, depth: int | None) -> str:
        value = self._value(depth and depth - 1)
        return self._rule("array" if depth is None else f"array-{depth}", f'"[" ws ({self._listed(value)})? ws "]"')

    def _listed(self, element: str) -> str:
        return f'{element} ("," ws {element}){times(0, self.bound)}'


_Convert: TypeAlias = Callable[[Converter, Mapping[str, Any], str], str]

_DECIDING: dict[str, _Convert] = {
    "$ref": Converter._ref,
    "const": Converter._const,
    "enum": Converter._enum,
    "allOf": Converter._all_of,
    "anyOf": lambda self, schema, name: self._any_of(self._variants(schema, "anyOf"), name),
    "oneOf": Converter._one_of,
}
"""Keywords that decide before the type does."""

_TYPED: dict[str, _Convert] = {
    "object": Converter._object,
    "array": Converter._array,
    "string": Converter._string,
    "number": Converter._number,
    "integer": Converter._integer,
    "boolean": lambda self, schema, name: self.base("boolean"),
    "null": lambda self, schema, name: self.base("null"),
}


def _integer_bounds(schema: Mapping[str, Any]) -> tuple[int | None, int | None]:
    low = [ceil(schema["minimum"])] if schema.get("minimum") is not None else []
    high = [floor(schema["maximum"])] if schema.get("maximum") is not None else []
    low += [floor(schema["exclusiveMinimum"]) + 1] if schema.get("exclusiveMinimum") is not None else []
    high += [ceil(schema["exclusiveMaximum"]) - 1] if schema.get("exclusiveMaximum") is not None else []
    return max(low, default=None), min(high, default=None)


def _resolve(root: Any, ref: str, where: str) -> Any:
    node = root
    for step in ref[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            node = node[int(step)] if isinstance(node, list) else node[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise LayoutError(where, f"nothing at {ref!r}") from None
    return node


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _is_type(value: Any, kinds: str | list[str]) -> bool:
    actual = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]
    wanted = [kinds] if isinstance(kinds, str) else kinds
    return actual in wanted or (actual == "integer" and "number" in wanted)


def _disjoint(variants: Sequence[Any]) -> bool:
    """True if no value can match two of the variants, judged by their constants and types alone."""
    pairs = [(first, second) for i, first in enumerate(variants) for second in variants[i + 1 :]]
    return all(isinstance(a, Mapping) and isinstance(b, Mapping) and _differ(a, b) for a, b in pairs)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    values, others = _constants(first), _constants(second)
    if values is not None and others is not None:
        return not any(value == other for value in values for other in others)
    if values is None and others is None:
        kinds = [first.get("type"), second.get("type")]
        return all(isinstance(kind, str) for kind in kinds) and len({str(k).replace("integer", "number") for k in kinds}) == 2
    kind, values = (second.get("type"), values) if values is not None else (first.get("type"), others)
    return kind is not None and not any(_is_type(value, kind) for value in values or ())


def _constants(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")
