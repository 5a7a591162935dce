"""JSON schemas as grammars: what they accept and refuse, what has no rule, and random ones."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
import xgrammar
from gptoss_harmony import LayoutError
from gptoss_harmony.grammars.gbnf_numbers import write_integer_rule, write_number_rule
from gptoss_harmony.grammars.grammar import Turn, gbnf
from gptoss_harmony.grammars.json_schema_gbnf import SchemaConverter
from xgrammar.testing import _is_grammar_accept_string


def accepts_json(schema: Any, value: str, bound: int | None = None) -> bool:
    return _is_grammar_accept_string(schema_grammar(json.dumps(schema), bound), value)


@cache
def schema_grammar(schema: str, bound: int | None) -> Any:
    converter = SchemaConverter(bound)
    root = converter.convert(json.loads(schema), "it")
    lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in converter.rules.bodies.items())]
    return xgrammar.Grammar.from_ebnf("\n".join(lines))


@pytest.mark.parametrize(
    ("low", "high"),
    [(None, None), (0, None), (None, 0), (1, 9), (-5, 5), (7, 123), (-250, -13), (99, 100), (-1, 1000), (1000, 1000)],
)
def test_integers(low: int | None, high: int | None) -> None:
    grammar = xgrammar.Grammar.from_ebnf(f"root ::= {write_integer_rule(low, high)}")
    for number in [*range(-1101, 1102, 7), *range(-30, 131), -250, -13, 999, 1000, 1001, 10**15]:
        inside = (low is None or number >= low) and (high is None or number <= high)
        assert _is_grammar_accept_string(grammar, str(number)) is inside, number
    assert not any(_is_grammar_accept_string(grammar, text) for text in ("", "01", "+1", "1.0", "1e1", "- 1", "--1"))


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 0},
        {"minimum": 0, "maximum": 1},
        {"exclusiveMinimum": 0, "maximum": 5},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"minimum": -3, "exclusiveMaximum": 0},
        {"minimum": -2.5, "maximum": 2.5},
        {"maximum": -10},
        {"exclusiveMaximum": 100},
    ],
)
def test_numbers_stay_within_bounds(bounds: dict[str, float]) -> None:
    rule = write_number_rule(bounds)
    assert rule is not None
    grammar = xgrammar.Grammar.from_ebnf(f"root ::= {rule}")
    rng = random.Random(3)
    texts = (
        [str(i) for i in range(-12, 12)]
        + [f"{rng.uniform(-12, 12):.{rng.randrange(1, 6)}f}" for _ in range(400)]
        + ["0.0", "-0.0", "2.00", "-3.0"]
    )
    accepted = [text for text in texts if _is_grammar_accept_string(grammar, text)]
    assert accepted
    for text in accepted:
        jsonschema.validate(float(text), {"type": "number", **bounds})


def test_numbers_that_have_no_rule_are_reported() -> None:
    converter = SchemaConverter()
    converter.convert({"type": "number", "minimum": 0.1, "maximum": 0.9}, "it")
    assert len(converter.notes) == 1 and "maximum, minimum" in converter.notes[0]
    assert write_number_rule({"minimum": 0.1, "maximum": 0.9}) is None


SCHEMAS: list[tuple[Any, list[Any], list[Any]]] = [
    (True, [1, "a", None, [], {"a": [{}]}, 1.5e3], []),
    ({"type": "string"}, ["", 'a"b\\c\n', "é日本\U0001f600", "a<b|c<|"], [1, None]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語"], ["a", "abcd"]),
    ({"type": "string", "maxLength": 0}, [""], ["a"]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}]),
    ({"enum": [1, "a", None, "<|end|>"]}, [1, "a", None], [2, "b"]),
    ({"type": "integer", "enum": [1, 2, "3"]}, [1, 2], [3, "3"]),
    ({"type": ["integer", "null"]}, [1, None], ["a", 1.5]),
    (
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "boolean"}}]},
        ["a", [True, False], []],
        [1, [1]],
    ),
    ({"oneOf": [{"type": "string"}, {"type": "number"}]}, ["a", 1.5], [None]),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}},
            "required": ["b"],
        },
        [{"b": "x"}, {"a": 1, "b": "x"}, {"b": "x", "c": None}, {"a": 1, "b": "x", "c": None}],
        [{}, {"a": 1}, {"b": "x", "d": 1}, {"b": 1}],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{"c": 1}],
    ),
    ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
    ({"type": "object"}, [{}, {"a": {"b": []}}], [[]]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "x"}]),
    (
        {
            "type": "object",
            "properties": {"ab": {"type": "string"}, "a": {"type": "null"}},
            "additionalProperties": {"type": "integer"},
        },
        [{}, {"ab": "x"}, {"ab": "x", "a": None, "b": 1, "abc": 2, "": 3, "ac": 4}, {"q": 1}],
        [{"ab": 1}, {"a": 1}, {"x": "y"}],
    ),
    (
        {"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}},
        [{"z": 1}, {"z": 1, "y": 2}],
        [{}, {"z": "a"}],
    ),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[1], [1, 2, 3, 4], [1, "a"]],
    ),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    ({"type": "array", "minItems": 1}, [[1], ["a", None]], [[]]),
    (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        [["a", 1]],
        [["a", "b"], ["a", 1, 2]],
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [{"type": "string"}],
            "additionalItems": False,
        },
        [["a"]],
        [[1], ["a", 1]],
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "integer",
            "minimum": 3,
            "exclusiveMinimum": True,
        },
        [4],
        [3],
    ),
    (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                    "required": ["next"],
                }
            },
            "$ref": "#/$defs/node",
        },
        [{"next": None}, {"next": {"next": {"next": None}}}],
        [{}, {"next": 1}],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "string"}}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}],
    ),
    (
        {
            "type": "object",
            "properties": {'we"ird\\ <|end|> é': {"type": "integer"}},
            "required": ['we"ird\\ <|end|> é'],
        },
        [],
        [{}],
    ),
    ({"type": "boolean"}, [True, False], [0, "true"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=[json.dumps(row[0])[:60] for row in SCHEMAS])
@pytest.mark.parametrize("bound", [None, 16])
def test_schemas(schema: Any, good: list[Any], bad: list[Any], bound: int | None) -> None:
    for value in good:
        jsonschema.validate(value, schema)
        for text in spellings(value, escape_bars=bound is not None or "Length" in json.dumps(schema)):
            assert accepts_json(schema, text, bound), text
    for value in bad:
        assert not any(accepts_json(schema, text, bound) for text in spellings(value, False)), value


def spellings(value: Any, escape_bars: bool) -> list[str]:
    texts = [
        json.dumps(value, ensure_ascii=False),
        json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        json.dumps(value, ensure_ascii=False, indent=2),
    ]
    return [text.replace("|", "\\u007c") if escape_bars else text.replace("<|end", "\\u003c|end") for text in texts]


def test_control_tokens_cannot_stand_in_strings() -> None:
    for schema in (
        {"type": "string"},
        {"type": "string", "maxLength": 40},
        {"type": "object", "additionalProperties": True},
    ):
        for text in ('"a<|end|>b"', '"<|call|>"', '"<<|start|>"', '{"<|end|>": 1}', '{"a": "<|reserved_200013|>"}'):
            assert not accepts_json(schema, text) and not accepts_json(schema, text, 32)
    assert accepts_json({"enum": ["<|end|>"]}, '"\\u003c|end|>"') and not accepts_json(
        {"enum": ["<|end|>"]}, '"<|end|>"'
    )


@pytest.mark.parametrize(
    ("schema", "note"),
    [
        ({"type": "string", "pattern": "^a+$"}, "pattern"),
        ({"type": "string", "format": "date"}, "format"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "object", "patternProperties": {}, "properties": {}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {"not": {"const": 1}}}}, "not is not enforced"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "maxLength": 5000}, "lengths above"),
        ({"$ref": "https://example.com/x"}, "not followed"),
    ],
)
def test_what_has_no_rule_is_reported(schema: Any, note: str) -> None:
    grammar = gbnf(Turn(final={"type": "object", "properties": {"x": schema}}))
    assert len(grammar.notes) == 1 and note in grammar.notes[0]


@pytest.mark.parametrize(
    "schema",
    [
        False,
        3,
        {"type": "text"},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "minLength": "3"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "prefixItems": [True], "items": False, "minItems": 2},
        {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": [1]},
        {"type": "string", "enum": [1]},
        {"$ref": "#/$defs/absent"},
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "allOf": [{"$ref": "#/$defs/a"}]},
    ],
)
def test_schemas_that_nothing_satisfies_are_refused(schema: Any) -> None:
    with pytest.raises(LayoutError):
        SchemaConverter().convert(schema, "it")
