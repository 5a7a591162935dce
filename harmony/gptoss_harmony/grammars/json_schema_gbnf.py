"""JSON schema to GBNF rules (llama.cpp's grammar format, which xgrammar reads too).

The rules never accept what the schema forbids, except where a note says so: a keyword that has no rule here is left
out and named in `SchemaConverter.notes`. They do accept less than the schema allows: properties come in their declared
order, an object with declared properties has no others unless ``additionalProperties`` says so, whitespace is at most
a space or one indented line break, numbers have at most 16 digits. Text inside strings can never be a control token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.gbnf_numbers import write_integer_rule, write_number_rule
from gptoss_harmony.grammars.gbnf_rules import RuleBook, clean_name, exclude_keys, quote_json, repeat
from gptoss_harmony.grammars.json_schema import (
    ANNOTATIONS,
    KNOWN,
    OF_OTHER_TYPES,
    TYPES,
    are_disjoint,
    infer_type,
    is_nested,
    is_type,
    merge,
    read_bounds,
    read_integer_bounds,
    resolve,
)

MAX_REPEAT = 1999
"""llama.cpp refuses, or silently drops, higher repetition counts."""

_DEPTH = 3
"""Nesting of generic values in a bounded grammar."""


class SchemaConverter:
    """Collects rules for any number of schemas.

    `bound` limits what the schemas leave open: characters per string, elements per array or open object; generic
    values then nest at most 3 deep. Without it a model that never closes a string never ends.
    """

    def __init__(self, bound: int | None = None) -> None:
        self.rules = RuleBook()
        self.notes: list[str] = []
        self.bound = None if bound is None else min(bound, MAX_REPEAT)
        self._depth = None if bound is None else _DEPTH
        self._root: Any = True
        self._refs: dict[str, str] = {}
        self._scope = ""
        self._any: dict[int | None, str] = {}

    def convert(self, schema: Any, name: str) -> str:
        """Adds the rules of `schema`; returns the name of its rule. Raises LayoutError for what no value can
        satisfy.
        """
        self._root = schema
        self._refs = {}
        self._scope = name
        try:
            return self._visit(schema, name)
        except LayoutError:
            raise
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
            raise LayoutError(name, f"not a JSON schema that can be followed: {error}") from error

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
            kind = infer_type(schema)
        if kind is None:
            self._ignore(schema, ANNOTATIONS, name)
            return self._value(self._depth)
        if kind not in TYPES:
            raise LayoutError(name, f"unknown type (expected one of {', '.join(TYPES)} / got {kind!r})")
        self._ignore(schema, ANNOTATIONS | {"type"} | KNOWN[kind] | (OF_OTHER_TYPES - KNOWN[kind]), name)
        return _TYPED[kind](self, schema, name)

    def _note(self, name: str, text: str) -> None:
        """`name` is the rule's, whose end says where in the schema it belongs."""
        note = f"{self._scope}{name.removeprefix(self._scope)}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _ignore(self, schema: Mapping[str, Any], known: Iterable[str], name: str) -> None:
        for keyword in sorted(set(schema) - set(known)):
            self._note(name, f"{keyword} is not enforced")

    def _ref(self, schema: Mapping[str, Any], name: str) -> str:
        ref = schema["$ref"]
        self._ignore(schema, ANNOTATIONS | {"$ref"}, name)
        if not ref.startswith("#"):
            self._note(name, f"{ref} is outside the schema and not followed")
            return self._visit(True, name)
        if ref not in self._refs:
            target = resolve(self._root, ref, name)
            self._refs[ref] = rule = self.rules.reserve(f"{self._scope}-ref-{clean_name(ref.rsplit('/', 1)[-1])}")
            self.rules.bodies[rule] = self._visit(target, f"{rule}-x")
        return self._refs[ref]

    def _const(self, schema: Mapping[str, Any], name: str) -> str:
        self._ignore(schema, {"const", "type"} | ANNOTATIONS, name)
        return self._value_rule(schema["const"], name)

    def _enum(self, schema: Mapping[str, Any], name: str) -> str:
        self._ignore(schema, {"enum", "type"} | ANNOTATIONS, name)
        values = [value for value in schema["enum"] if "type" not in schema or is_type(value, schema["type"])]
        if not values:
            raise LayoutError(name, "enum has no value of the schema's type")
        ways = [self._value_rule(v, f"{name}-{i}") if is_nested(v) else quote_json(v) for i, v in enumerate(values)]
        return self.rules.add(name, " | ".join(ways))

    def _value_rule(self, value: Any, name: str) -> str:
        """Exactly `value`, with the usual freedom of whitespace inside."""
        if not is_nested(value):
            return self.rules.add(name, quote_json(value))
        if isinstance(value, dict):
            fields = {key: {"const": inner} for key, inner in value.items()}
            return self._object({"properties": fields, "required": list(value), "additionalProperties": False}, name)
        return self._array(
            {"prefixItems": [{"const": inner} for inner in value], "items": False, "maxItems": len(value)}, name
        )

    def _one_of(self, schema: Mapping[str, Any], name: str) -> str:
        if not are_disjoint(schema["oneOf"]):
            self._note(name, "oneOf is treated as anyOf")
        return self._any_of(self._variants(schema, "oneOf"), name)

    def _variants(self, schema: Mapping[str, Any], keyword: str) -> list[Any]:
        rest = {key: value for key, value in schema.items() if key != keyword}
        if set(rest) <= ANNOTATIONS:
            return list(schema[keyword])
        return [self._merge(rest, variant) for variant in schema[keyword]]

    def _any_of(self, variants: Sequence[Any], name: str) -> str:
        names = [self._visit(variant, f"{name}-{i}") for i, variant in enumerate(variants)]
        return self.rules.add(name, " | ".join(dict.fromkeys(names)))

    def _all_of(self, schema: Mapping[str, Any], name: str) -> str:
        merged: Mapping[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            merged = self._merge(merged, part)
        return self._visit(merged, name)

    def _merge(self, first: Mapping[str, Any], second: Any) -> Mapping[str, Any]:
        """Both schemas at once, see `merge`."""
        if isinstance(second, Mapping) and set(second) == {"$ref"}:
            second = resolve(self._root, second["$ref"], self._scope)
        return first if second is True else merge(first, second, self._merge, partial(self._note, ""))

    # Types.

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        low = schema.get("minLength", 0)
        high = schema.get("maxLength")
        if low > MAX_REPEAT or (high or 0) > MAX_REPEAT:
            self._note(name, f"lengths above {MAX_REPEAT} are not enforced")
            low = min(low, MAX_REPEAT)
            high = None if (high or 0) > MAX_REPEAT else high
        if self.bound is not None and high is None:
            high = max(low, self.bound)
        if high is not None and low > high:
            raise LayoutError(name, f"no string of {low} to {high} characters")
        if not low and high is None:
            return self.rules.add_base("string")
        self.rules.add_base("char")
        return self.rules.add(f"string-{low}-{'' if high is None else high}", f'"\\"" char{repeat(low, high)} "\\""')

    def _number(self, schema: Mapping[str, Any], name: str) -> str:
        self.rules.add_base("integer")
        bounds = read_bounds(schema)
        if not bounds:
            return self.rules.add_base("number")
        body = write_number_rule(bounds)
        if body is None:
            self._note(name, f"{', '.join(sorted(bounds))} not enforced")
            return self.rules.add_base("number")
        return self.rules.add(name, body)

    def _integer(self, schema: Mapping[str, Any], name: str) -> str:
        low, high = read_integer_bounds(schema)
        if low is None and high is None:
            return self.rules.add_base("integer")
        if low is not None and high is not None and low > high:
            raise LayoutError(name, f"no integer from {low} to {high}")
        return self.rules.add(name, write_integer_rule(low, high))

    def _object(self, schema: Mapping[str, Any], name: str) -> str:
        properties = dict(schema.get("properties") or {})
        required = set(schema.get("required") or ())
        open_schema = schema.get("additionalProperties", "properties" not in schema)
        if open_schema is True and not properties and not required:
            return self._any_object(self._depth)
        for key in sorted(required - properties.keys()):
            if open_schema is False and "additionalProperties" in schema:
                raise LayoutError(name, f"{key!r} is required but not allowed")
            properties[key] = open_schema or True
        tail = self._open_tail(open_schema, properties, name)
        pairs = []
        for i, (key, value) in enumerate(properties.items()):
            rule = self._visit(value, f"{name}-{clean_name(key) or i}")
            pairs.append((f'{quote_json(key)} ":" ws {rule}', key in required))
        inside = self._pairs(pairs, tail, name)
        return self.rules.add(name, f'"{{" ws {inside} ws "}}"' if inside else '"{" ws "}"')

    def _open_tail(self, schema: Any, properties: Mapping[str, Any], name: str) -> str | None:
        """The rule of an undeclared pair: any other key, written without escapes, so that it cannot be a declared
        one.
        """
        if schema is False:
            return None
        value = self._visit(schema, f"{name}-any")
        self.rules.add_base("key-rest")
        key = self.rules.add(f"{name}-key", f'"\\"" ({exclude_keys(list(properties))})')
        return self.rules.add(f"{name}-pair", f'{key} ":" ws {value}')

    def _pairs(self, pairs: list[tuple[str, bool]], other: str | None, name: str) -> str:
        """Pairs in order, the optional ones left out at will; a comma exactly between two that are there."""
        # `rest`: all pairs after this point, when one stands before them; `first`: the same when none does.
        rest = self._more(other, 0, self.bound, name) if other else ""
        first = self.rules.add(f"{name}-others", f"{other} {rest}") + "?" if other else ""
        for i in range(len(pairs) - 1, -1, -1):
            pair, required = pairs[i]
            body = f"{pair} {rest}".strip()
            if not required:
                body = f"{body} | {first}" if first else f"({body})?"
            first = self.rules.add(f"{name}-from-{i}", body)
            after = f'"," ws {pair}'
            rest = self.rules.add(f"{name}-after-{i}", f"{after if required else f'({after})?'} {rest}".strip())
        return first

    def _array(self, schema: Mapping[str, Any], name: str) -> str:
        if isinstance(schema.get("items"), list):  # how drafts before 2020 wrote prefixItems
            schema = {**schema, "prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
        prefix = schema.get("prefixItems") or []
        low = schema.get("minItems", 0)
        high = schema.get("maxItems")
        if low > MAX_REPEAT or (high or 0) > MAX_REPEAT:
            self._note(name, f"item counts above {MAX_REPEAT} are not enforced")
            low = min(low, MAX_REPEAT)
            high = None if (high or 0) > MAX_REPEAT else high
        if self.bound is not None and high is None:
            high = max(low, self.bound, len(prefix))
        if high is not None and low > high:
            raise LayoutError(name, f"no array of {low} to {high} items")
        if prefix:
            return self._tuple(schema, prefix, low, high, name)
        if high == 0:
            return self.rules.add(name, '"[" ws "]"')
        items = self._listed(self._visit(schema.get("items", True), f"{name}-item"), low, high, name)
        return self.rules.add(name, f'"[" ws {items}{"" if low else "?"} ws "]"')

    def _tuple(self, schema: Mapping[str, Any], prefix: list[Any], low: int, high: int | None, name: str) -> str:
        """All of `prefix`, then `items`; shorter arrays are allowed by the schema, not by the grammar."""
        items = schema.get("items", True)
        n = len(prefix)
        if (high is not None and high < n) or (items is False and low > n):
            raise LayoutError(name, f"the {n} prefixItems do not fit minItems, maxItems and items")
        body = ' "," ws '.join([self._visit(part, f"{name}-{i}") for i, part in enumerate(prefix)])
        if items is not False and high != n:
            item = self._visit(items, f"{name}-item")
            body += " " + self._more(item, max(low - n, 0), None if high is None else high - n, name)
        return self.rules.add(name, f'"[" ws {body} ws "]"')

    # llama.cpp counts the rules inside a repeated group against its limit, so what is repeated gets a rule of its own.

    def _more(self, element: str, low: int, high: int | None, name: str) -> str:
        return self.rules.add(f"{name}-more", f'"," ws {element}') + repeat(low, high) if high != 0 else ""

    def _listed(self, element: str, low: int, high: int | None, name: str) -> str:
        """The rule of one element or more with commas between."""
        rest = self._more(element, max(low - 1, 0), None if high is None else high - 1, name)
        return self.rules.add(f"{name}-list", f"{element} {rest}")

    # Values of any type; `depth` levels of nesting are left, None is no limit.

    def _value(self, depth: int | None) -> str:
        if depth not in self._any:
            self._any[depth] = name = self.rules.reserve("any" if depth is None else f"any-{depth}")
            scalars = [self._string({}, name), *(self.rules.add_base(kind) for kind in ("number", "boolean", "null"))]
            nested = [] if depth == 0 else [self._any_object(depth), self._any_array(depth)]
            self.rules.bodies[name] = " | ".join(nested + scalars)
        return self._any[depth]

    def _any_object(self, depth: int | None) -> str:
        inner = self._value(depth and depth - 1)
        pair = self.rules.add(f"{inner}-pair", f'{self._string({}, inner)} ":" ws {inner}')
        return self.rules.add(f"{inner}-object", f'"{{" ws {self._listed(pair, 1, self.bound, pair)}? ws "}}"')

    def _any_array(self, depth: int | None) -> str:
        inner = self._value(depth and depth - 1)
        return self.rules.add(f"{inner}-array", f'"[" ws {self._listed(inner, 1, self.bound, inner)}? ws "]"')


_Convert: TypeAlias = Callable[[SchemaConverter, Mapping[str, Any], str], str]

_DECIDING: dict[str, _Convert] = {
    "$ref": SchemaConverter._ref,
    "const": SchemaConverter._const,
    "enum": SchemaConverter._enum,
    "allOf": SchemaConverter._all_of,
    "anyOf": lambda self, schema, name: self._any_of(self._variants(schema, "anyOf"), name),
    "oneOf": SchemaConverter._one_of,
}
"""Keywords that decide before the type does."""

_TYPED: dict[str, _Convert] = {
    "object": SchemaConverter._object,
    "array": SchemaConverter._array,
    "string": SchemaConverter._string,
    "number": SchemaConverter._number,
    "integer": SchemaConverter._integer,
    "boolean": lambda self, schema, name: self.rules.add_base("boolean"),
    "null": lambda self, schema, name: self.rules.add_base("null"),
}
