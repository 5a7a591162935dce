"""Random JSON schemas and those of pydantic: their grammars compile, and make what is valid and nothing else."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import xgrammar
from gptoss_harmony.grammars.grammar import Turn, gbnf
from gptoss_harmony.grammars.json_schema_gbnf import SchemaConverter
from helpers.grammar_engines import Llama
from xgrammar.testing import _is_grammar_accept_string


def accepts_json(schema: Any, value: str, bound: int | None = None) -> bool:
    return _is_grammar_accept_string(schema_grammar(json.dumps(schema), bound), value)


@cache
def schema_grammar(schema: str, bound: int | None) -> Any:
    converter = SchemaConverter(bound)
    root = converter.convert(json.loads(schema), "it")
    lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in converter.rules.bodies.items())]
    return xgrammar.Grammar.from_ebnf("\n".join(lines))


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_compiles_large_counts_and_random_schemas(llama: Llama) -> None:
    large = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "string", "maxLength": 1999}, "maxItems": 1999},
            "b": {"type": "array", "minItems": 1999},
            "c": {"type": "object", "additionalProperties": {"type": "array"}},
        },
    }
    for bound in (None, 1999, 5000):
        llama.api.llama_sampler_free(llama.sampler(gbnf(Turn(final=large), bound=bound)))
    rng = random.Random(12)
    for _ in range(100):
        llama.api.llama_sampler_free(llama.sampler(gbnf(Turn(final=random_schema(rng)), bound=rng.choice([None, 3]))))


def test_pydantic_schemas_are_enforced_whole() -> None:
    from pydantic import BaseModel, Field

    class Address(BaseModel):
        street: str
        zip: str | None = None

    class Person(BaseModel):
        """A person."""

        name: str = Field(min_length=1, max_length=20, description="Full name")
        age: int = Field(ge=0, le=150)
        tags: list[str] = []
        home: Address
        score: float | None = None

    grammar = gbnf(Turn(final=Person.model_json_schema()))
    assert grammar.notes == ()
    good = Person(name="A", age=3, home=Address(street="x")).model_dump_json(indent=2)
    assert accepts_json(Person.model_json_schema(), good)
    assert not accepts_json(Person.model_json_schema(), good.replace('"age": 3', '"age": 151'))


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    """A schema of what the grammar enforces, so that no note may come with it."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "any"]
    kind = rng.choice(kinds + (["object", "object", "array", "anyOf", "tuple", "allOf"] if depth else []))
    low = rng.randrange(-20, 20)
    if kind == "string":
        return {"type": "string", **random_length(rng)}
    if kind in ("integer", "number"):
        return {"type": kind, **random_range(rng, kind, low)}
    if kind in ("enum", "const"):
        values = rng.sample(
            [1, 0, -2.5, "x", 'a"b\\', "", "é<|end|>", None, True, [1, {"k": "v"}], {}, {"a": [None]}], 3
        )
        return {"enum": values} if kind == "enum" else {"const": values[0]}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "any":
        return rng.choice([True, {}, {"type": "object"}, {"type": ["string", "null"]}, {"type": "array"}])
    inner = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    if kind == "anyOf":
        return {"anyOf": inner}
    if kind in ("tuple", "array"):
        return {"type": "array", **random_items(rng, kind, inner)}
    return random_object(rng, kind, inner)


def random_length(rng: random.Random) -> dict[str, int]:
    least = rng.randrange(3)
    return rng.choice(
        [
            {},
            {"minLength": least},
            {"maxLength": 4},
            {"minLength": least, "maxLength": least + rng.randrange(3)},
        ]
    )


def random_range(rng: random.Random, kind: str, low: int) -> dict[str, float]:
    if kind == "number":
        return rng.choice([{}, {"minimum": low}, {"exclusiveMinimum": low}, {"minimum": low + 0.5, "maximum": low + 9}])
    both = {"minimum": low, "exclusiveMaximum": low + rng.randrange(1, 300)}
    return rng.choice([{}, {"minimum": low}, {"maximum": low}, both])


def random_items(rng: random.Random, kind: str, inner: list[Any]) -> dict[str, Any]:
    if kind == "tuple":
        rest = rng.choice([False, {"type": "null"}])
        return {"prefixItems": inner, "items": rest, "minItems": len(inner), "maxItems": len(inner) + 1}
    least = rng.randrange(3)
    count = rng.choice([{}, {"minItems": least}, {"minItems": least, "maxItems": least + 2}])
    return {"items": inner[0], **count}


def random_object(rng: random.Random, kind: str, inner: list[Any]) -> dict[str, Any]:
    names = rng.sample(["a", "ab", "b c", 'q"', "é", "", "x|y", "<|end|>", "a-b", "x]y[", "^", "\\"], len(inner))
    fields = {
        "type": "object",
        "properties": dict(zip(names, inner, strict=True)),
        "required": rng.sample(names, rng.randrange(len(names) + 1)),
    }
    more = rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    return {"allOf": [fields, {"title": "t"}]} if kind == "allOf" else fields | more


@cache
def byte_compiler() -> xgrammar.GrammarCompiler:
    """A vocabulary of the 256 bytes and a stop token: masks are made in no time."""
    pieces = [bytes([i]) for i in range(256)] + [b"<stop>"]
    return xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
    )


def generate(schema: Any, bound: int, rng: random.Random) -> str:
    matcher = xgrammar.GrammarMatcher(byte_compiler().compile_grammar(schema_grammar(json.dumps(schema), bound)))
    mask, out = xgrammar.allocate_token_bitmask(1, 257), bytearray()
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[:257]
        token = 256 if bits[256] and rng.random() < 0.5 else rng.choice(np.flatnonzero(bits).tolist())
        assert matcher.accept_token(token)
        out += bytes([token]) if token < 256 else b""
        assert len(out) < 20_000
    return out.decode("utf-8")


def test_whatever_a_random_schemas_grammar_makes_is_valid() -> None:
    rng = random.Random(11)
    for _ in range(150):
        schema = random_schema(rng)
        converter = SchemaConverter(5)
        converter.convert(schema, "it")
        assert converter.notes == []
        for _ in range(2):
            text = generate(schema, 5, rng)
            jsonschema.validate(json.loads(text), schema)
            assert not any(name in text for name in ("<|end|>", "<|call|>", "<|start|>"))
