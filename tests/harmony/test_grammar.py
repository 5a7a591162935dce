"""Grammars in the engines that use them: llama.cpp's sampler (llama_cpp, xllamacpp) and xgrammar's matcher."""

from __future__ import annotations

import ctypes
import json
import random
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import real_vocabulary_gguf
import xgrammar
from gptoss_harmony import LayoutError, Tool, load_vocabulary, parse
from gptoss_harmony.chat_completions import from_messages, to_conversation, turn
from gptoss_harmony.gbnf_numbers import integer_rule, number_rule
from gptoss_harmony.grammar import Grammar, Turn, gbnf, structural_tag
from gptoss_harmony.json_schema_gbnf import Converter
from gptoss_harmony.renderer import render
from gptoss_harmony.tokens import CALL, ENDOFTEXT, GENERATION_STOPS, RETURN, SPECIAL_TOKENS
from test_chat_completions import ids_of
from xgrammar.testing import _is_grammar_accept_string

Accepts = Callable[[list[int]], bool]

WEATHER = Tool(
    "get_weather",
    "Weather",
    {
        "type": "object",
        "properties": {
            "location": {"type": "string"},
            "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "parts": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        },
        "required": ["location"],
    },
)
TURN = Turn((WEATHER, Tool("get_location")), ("browser", "python"))

GOOD = [
    '<|channel|>analysis<|message|>Need a < b and x <- y |> z.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"location": "San Francisco"}<|call|>',
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"location":"SF","format":"celsius","days":14}<|call|>',
    '<|channel|>commentary to=functions.get_weather json<|message|>{\n  "location": "\\u00e9\\n日本 < > \\"",\n  "parts": ["a", "b"]\n}<|call|>',
    '<|channel|>commentary to=functions.get_weather<|message|>{"location": "", "parts": []}<|call|>',
    "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.get_location<|message|>{}<|call|>",
    " to=functions.get_location<|channel|>commentary<|message|>{ }<|call|>",
    "<|channel|>analysis to=python code<|message|>print([i for i in range(3)])\n<|call|>",
    " to=python<|channel|>analysis code<|message|>x = 1 | 2<|call|>",
    '<|channel|>analysis to=browser.search code<|message|>{"query": "x", "topn": 5}<|call|>',
    '<|channel|>commentary to=browser.open json<|message|>{"id": "https://a.b", "cursor": 2}<|call|>',
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4<|return|>",
    "<|channel|>final<|message|><|return|>",
]

_CALL = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
BAD = [
    # headers
    _CALL.replace("get_weather", "get_wether") + '{"location": "x"}<|call|>',
    _CALL.replace("functions.", "") + '{"location": "x"}<|call|>',
    _CALL.replace("commentary", "final") + '{"location": "x"}<|call|>',
    _CALL.replace("commentary", "commentary?") + '{"location": "x"}<|call|>',
    _CALL.replace("<|constrain|>json", "<|constrain|> json") + '{"location": "x"}<|call|>',
    _CALL.replace("<|constrain|>json", "<|constrain|>get_weather") + '{"location": "x"}<|call|>',
    _CALL.replace("<|message|>", "") + '{"location": "x"}<|call|>',
    ' to=functions.get_weather<|channel|>commentary<|channel|>commentary json<|message|>{"location": "x"}<|call|>',
    '<|channel|>commentary to=assistant<|channel|>commentary to=functions.get_weather json<|message|>{"location": "x"}<|call|>',
    '<|channel|>commentary to=functions.get_weather to=functions.get_weather<|message|>{"location": "x"}<|call|>',
    "<|channel|>final json<|message|>4<|return|>",
    "<|channel|><|message|>4<|return|>",
    "<|start|>assistant<|channel|>final<|message|>4<|return|>",
    "I must refuse<|end|>",
    # streams
    "<|channel|>analysis<|message|>think<|start|>assistant<|channel|>final<|message|>ok<|return|>",
    "<|channel|>analysis<|message|>think<|end|><|channel|>final<|message|>ok<|return|>",
    "<|channel|>analysis<|message|>think<|end|>assistant<|channel|>final<|message|>ok<|return|>",
    "<|channel|>final<|message|>ok<|end|><|start|>user<|message|>more<|end|>",
    _CALL + '{"location": "x"}<|call|><|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>sunny<|end|>',
    "<|channel|>analysis<|message|>think<|end|>",
    # arguments
    _CALL + "{}<|call|>",
    _CALL + '{"location": 5}<|call|>',
    _CALL + '{"location": "x", "format": "kelvin"}<|call|>',
    _CALL + '{"location": "x", "days": 15}<|call|>',
    _CALL + '{"location": "x", "days": 0}<|call|>',
    _CALL + '{"location": "x", "days": 1.5}<|call|>',
    _CALL + '{"location": "x", "parts": ["a", "b", "c"]}<|call|>',
    _CALL + '{"location": "x", "place": "y"}<|call|>',
    _CALL + '{"location": "x", "location": "y"}<|call|>',
    _CALL + '{"location": "x"}{"location": "y"}<|call|>',
    _CALL + '{"location": "x"} ok<|call|>',
    _CALL + '{"location": "x",}<|call|>',
    _CALL + '{"location": "x"<|call|>',
    _CALL + '{"location": "x<|end|>y"}<|call|>',
    _CALL + '{"location": "a\nb"}<|call|>',
    _CALL + "{'location': 'x'}<|call|>",
    _CALL + "get_weather('x')<|call|>",
    _CALL + '"location"<|call|>',
    _CALL + "<|call|>",
]


# Engines.


@cache
def compiler() -> xgrammar.GrammarCompiler:
    pieces = real_vocabulary_gguf.pieces()
    info = xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=len(pieces), stop_token_ids=[RETURN, CALL, ENDOFTEXT])
    return xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)  # see structural_tag


def by_xgrammar(compiled: Any) -> Accepts:
    def accepts(ids: list[int]) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled)
        return all(matcher.accept_token(token) for token in ids) and matcher.is_terminated()

    return accepts


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    real_vocabulary_gguf.write(path)
    yield path
    path.unlink()


class Llama:
    """llama.cpp through its C API: one grammar sampler at a time over the model's logits."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model.model)

    def sampler(self, grammar: Grammar) -> Any:
        sampler = self.api.llama_sampler_init_grammar(self.vocabulary, grammar.text.encode(), b"root")
        assert sampler, "llama.cpp does not compile the grammar"
        return sampler

    def allowed(self, sampler: Any, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The logits, minus infinity where the grammar forbids the token."""
        kind = self.api.llama_token_data
        rows = np.zeros(len(tokens), dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        rows["id"], rows["logit"] = tokens, logits
        array = self.api.llama_token_data_array(rows.ctypes.data_as(ctypes.POINTER(kind)), len(rows), -1, False)
        self.api.llama_sampler_apply(sampler, ctypes.byref(array))
        return rows["logit"].copy()

    def accepts(self, grammar: Grammar) -> Accepts:
        def accepts(ids: list[int]) -> bool:
            sampler = self.sampler(grammar)
            try:
                for token in ids:
                    if np.isneginf(self.allowed(sampler, np.array([token]), np.zeros(1))[0]):
                        return False
                    if token in GENERATION_STOPS:
                        return token == ids[-1]
                    self.api.llama_sampler_accept(sampler, token)
                return False
            finally:
                self.api.llama_sampler_free(sampler)

        return accepts

    def decode(self, grammar: Grammar, prompt: list[int], rng: np.random.Generator, limit: int = 400) -> list[int]:
        """Samples at temperature 1 under the grammar, from 4096 random tokens and those of `always_offered` at each step.

        The cut only saves time: a grammar over 200 000 candidates costs 0.1 s per token.
        """
        sampler, out = self.sampler(grammar), []
        self.model.reset()
        self.model.eval(prompt)
        try:
            while len(out) < limit:
                logits = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.model.ctx, -1), shape=(self.model.n_vocab(),))
                tokens = np.union1d(rng.choice(len(logits), 4096, replace=False), always_offered())
                left = self.allowed(sampler, tokens, logits[tokens])
                weights = np.exp(left - left.max())
                out.append(int(rng.choice(tokens, p=weights / weights.sum())))
                if out[-1] in GENERATION_STOPS:
                    return out
                self.api.llama_sampler_accept(sampler, out[-1])
                self.model.eval(out[-1:])
        finally:
            self.api.llama_sampler_free(sampler)
        raise AssertionError(f"no end within {limit} tokens: {load_vocabulary().decode(out)!r}")


@cache
def always_offered() -> np.ndarray:
    """ASCII and control tokens, which spell everything that a grammar asks for, and what can end a UTF-8 sequence.

    Bytes that begin one are left to chance: llama.cpp's grammars count an overlong sequence as one character.
    """
    single = [i for i, piece in enumerate(real_vocabulary_gguf.pieces()) if len(piece) == 1 and piece < b"\xc0"]
    return np.array([*single, *(SPECIAL_TOKENS[f"<|{name}|>"] for name in ("start", "channel", "message", "end", "call", "return", "constrain"))])


@pytest.fixture(scope="module")
def llama(gguf_file: Path) -> Llama:
    return Llama(gguf_file)


# Headers and arguments.


@pytest.mark.parametrize("spelling", ["gbnf", "bounded gbnf", "structural tag", "bounded structural tag"])
def test_xgrammar_accepts_calls_and_rejects_malformed_ones(spelling: str) -> None:
    bound = 64 if "bounded" in spelling else None
    if "gbnf" in spelling:
        compiled = compiler().compile_grammar(xgrammar.Grammar.from_ebnf(gbnf(TURN, bound=bound, control="text").text))
    else:
        compiled = compiler().compile_structural_tag(structural_tag(TURN, bound=bound))
    check(by_xgrammar(compiled))


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize("bound", [None, 64])
def test_llama_cpp_accepts_calls_and_rejects_malformed_ones(llama: Llama, bound: int | None) -> None:
    check(llama.accepts(gbnf(TURN, bound=bound)))


def check(accepts: Accepts) -> None:
    assert len(BAD) >= 30
    assert [text for text in GOOD if not accepts(ids_of(text))] == []
    assert [text for text in BAD if accepts(ids_of(text))] == []


def test_what_the_grammar_accepts_parses_strictly() -> None:
    for text in GOOD:
        messages = parse(ids_of(text), strict=True)
        assert messages and all(message.channel for message in messages)


def test_a_required_call_and_no_reasoning() -> None:
    forced = by_xgrammar(compiler().compile_structural_tag(structural_tag(Turn((WEATHER,), (), None, reasoning=False))))
    as_gbnf = gbnf(Turn((WEATHER,), (), None, reasoning=False), control="text").text
    for accepts in (forced, by_xgrammar(compiler().compile_grammar(xgrammar.Grammar.from_ebnf(as_gbnf)))):
        assert accepts(ids_of(GOOD[1]))
        assert not accepts(ids_of(GOOD[0])) and not accepts(ids_of(GOOD[-1]))


# JSON schemas.


def accepts_json(schema: Any, value: str, bound: int | None = None) -> bool:
    return _is_grammar_accept_string(schema_grammar(json.dumps(schema), bound), value)


@cache
def schema_grammar(schema: str, bound: int | None) -> Any:
    converter = Converter(bound)
    root = converter.convert(json.loads(schema), "it")
    lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in converter.rules.items())]
    return xgrammar.Grammar.from_ebnf("\n".join(lines))


@pytest.mark.parametrize(("low", "high"), [(None, None), (0, None), (None, 0), (1, 9), (-5, 5), (7, 123), (-250, -13), (99, 100), (-1, 1000), (1000, 1000)])
def test_integers(low: int | None, high: int | None) -> None:
    grammar = xgrammar.Grammar.from_ebnf(f"root ::= {integer_rule(low, high)}")
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
    rule = number_rule(bounds)
    assert rule is not None
    grammar = xgrammar.Grammar.from_ebnf(f"root ::= {rule}")
    rng = random.Random(3)
    texts = [str(i) for i in range(-12, 12)] + [f"{rng.uniform(-12, 12):.{rng.randrange(1, 6)}f}" for _ in range(400)] + ["0.0", "-0.0", "2.00", "-3.0"]
    accepted = [text for text in texts if _is_grammar_accept_string(grammar, text)]
    assert accepted
    for text in accepted:
        jsonschema.validate(float(text), {"type": "number", **bounds})


def test_numbers_that_have_no_rule_are_reported() -> None:
    converter = Converter()
    converter.convert({"type": "number", "minimum": 0.1, "maximum": 0.9}, "it")
    assert len(converter.notes) == 1 and "maximum, minimum" in converter.notes[0]
    assert number_rule({"minimum": 0.1, "maximum": 0.9}) is None


SCHEMAS: list[tuple[Any, list[Any], list[Any]]] = [
    (True, [1, "a", None, [], {"a": [{}]}, 1.5e3], []),
    ({"type": "string"}, ["", "a\"b\\c\n", "é日本\U0001f600", "a<b|c<|"], [1, None]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語"], ["a", "abcd"]),
    ({"type": "string", "maxLength": 0}, [""], ["a"]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}]),
    ({"enum": [1, "a", None, "<|end|>"]}, [1, "a", None], [2, "b"]),
    ({"type": "integer", "enum": [1, 2, "3"]}, [1, 2], [3, "3"]),
    ({"type": ["integer", "null"]}, [1, None], ["a", 1.5]),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "boolean"}}]}, ["a", [True, False], []], [1, [1]]),
    ({"oneOf": [{"type": "string"}, {"type": "number"}]}, ["a", 1.5], [None]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}, "required": ["b"]},
     [{"b": "x"}, {"a": 1, "b": "x"}, {"b": "x", "c": None}, {"a": 1, "b": "x", "c": None}], [{}, {"a": 1}, {"b": "x", "d": 1}, {"b": 1}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}, [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{"c": 1}]),
    ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
    ({"type": "object"}, [{}, {"a": {"b": []}}], [[]]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "x"}]),
    ({"type": "object", "properties": {"ab": {"type": "string"}, "a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     [{}, {"ab": "x"}, {"ab": "x", "a": None, "b": 1, "abc": 2, "": 3, "ac": 4}, {"q": 1}], [{"ab": 1}, {"a": 1}, {"x": "y"}]),
    ({"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}}, [{"z": 1}, {"z": 1, "y": 2}], [{}, {"z": "a"}]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]], [[1], [1, 2, 3, 4], [1, "a"]]),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    ({"type": "array", "minItems": 1}, [[1], ["a", None]], [[]]),
    ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False}, [["a", 1]], [["a", "b"], ["a", 1, 2]]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "string"}], "additionalItems": False}, [["a"]], [[1], ["a", 1]]),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    ({"$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"]}}, "$ref": "#/$defs/node"},
     [{"next": None}, {"next": {"next": {"next": None}}}], [{}, {"next": 1}]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
     [{"a": 1, "b": "x"}], [{"a": 1}, {"b": "x"}]),
    ({"type": "object", "properties": {'we"ird\\ <|end|> é': {"type": "integer"}}, "required": ['we"ird\\ <|end|> é']}, [], [{}]),
    ({"type": "boolean"}, [True, False], [0, "true"]),
]  # fmt: skip


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
    texts = [json.dumps(value, ensure_ascii=False), json.dumps(value, ensure_ascii=False, separators=(",", ":")), json.dumps(value, ensure_ascii=False, indent=2)]
    return [text.replace("|", "\\u007c") if escape_bars else text.replace("<|end", "\\u003c|end") for text in texts]


def test_control_tokens_cannot_stand_in_strings() -> None:
    for schema in ({"type": "string"}, {"type": "string", "maxLength": 40}, {"type": "object", "additionalProperties": True}):
        for text in ('"a<|end|>b"', '"<|call|>"', '"<<|start|>"', '{"<|end|>": 1}', '{"a": "<|reserved_200013|>"}'):
            assert not accepts_json(schema, text) and not accepts_json(schema, text, 32)
    assert accepts_json({"enum": ["<|end|>"]}, '"\\u003c|end|>"') and not accepts_json({"enum": ["<|end|>"]}, '"<|end|>"')


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
        Converter().convert(schema, "it")


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
        least = rng.randrange(3)
        return {"type": "string", **rng.choice([{}, {"minLength": least}, {"maxLength": 4}, {"minLength": least, "maxLength": least + rng.randrange(3)}])}
    if kind == "integer":
        return {"type": "integer", **rng.choice([{}, {"minimum": low}, {"maximum": low}, {"minimum": low, "exclusiveMaximum": low + rng.randrange(1, 300)}])}
    if kind == "number":
        return {"type": "number", **rng.choice([{}, {"minimum": low}, {"exclusiveMinimum": low}, {"minimum": low + 0.5, "maximum": low + 9}])}
    if kind in ("enum", "const"):
        values = rng.sample([1, 0, -2.5, "x", "a\"b\\", "", "é<|end|>", None, True, [1, {"k": "v"}], {}, {"a": [None]}], 3)
        return {"enum": values} if kind == "enum" else {"const": values[0]}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "any":
        return rng.choice([True, {}, {"type": "object"}, {"type": ["string", "null"]}, {"type": "array"}])
    inner = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    if kind == "anyOf":
        return {"anyOf": inner}
    if kind == "tuple":
        return {"type": "array", "prefixItems": inner, "items": rng.choice([False, {"type": "null"}]), "minItems": len(inner), "maxItems": len(inner) + 1}
    if kind == "array":
        least = rng.randrange(3)
        return {"type": "array", "items": inner[0], **rng.choice([{}, {"minItems": least}, {"minItems": least, "maxItems": least + 2}])}
    names = rng.sample(["a", "ab", "b c", 'q"', "é", "", "x|y", "<|end|>", "a-b", "x]y[", "^", "\\"], len(inner))
    fields = {"type": "object", "properties": dict(zip(names, inner, strict=True)), "required": rng.sample(names, rng.randrange(len(names) + 1))}
    more = rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    return {"allOf": [fields, {"title": "t"}]} if kind == "allOf" else fields | more


@cache
def byte_compiler() -> xgrammar.GrammarCompiler:
    """A vocabulary of the 256 bytes and a stop token: masks are made in no time."""
    pieces = [bytes([i]) for i in range(256)] + [b"<stop>"]
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256]))


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
        converter = Converter(5)
        converter.convert(schema, "it")
        assert converter.notes == []
        for _ in range(2):
            text = generate(schema, 5, rng)
            jsonschema.validate(json.loads(text), schema)
            assert not any(name in text for name in ("<|end|>", "<|call|>", "<|start|>"))


# Decoding with random weights.

DECODED = Tool(
    "book",
    "",
    {
        "type": "object",
        "properties": {
            "who": {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0, "maximum": 130}}, "required": ["name"]},
            "kind": {"enum": ["a", "b", None, 3]},
            "price": {"type": "number", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["who", "price", "note"],
    },
)
PROMPT = [*load_vocabulary().encode("x"), SPECIAL_TOKENS["<|start|>"], *load_vocabulary().encode("assistant")]


CALLS = Turn((DECODED, WEATHER), (), None)


def check_decoded(outputs: Iterable[list[int]]) -> None:
    """Every output is a call that parses in strict mode and fits its tool's schema, and all tools come up."""
    schemas = {f"functions.{tool.name}": tool.parameters for tool in CALLS.functions}
    called = set()
    for ids in outputs:
        messages = parse([token for token in ids if token != ENDOFTEXT], strict=True)
        assert all(message.channel in ("analysis", "commentary") for message in messages)
        recipient = messages[-1].recipient
        assert recipient is not None
        jsonschema.validate(json.loads(messages[-1].text), schemas[recipient] or {})
        called.add(recipient)
    assert called == set(schemas)


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize("runs", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_random_weights_make_valid_calls(llama: Llama, runs: int) -> None:
    rng = np.random.default_rng(5)
    check_decoded(llama.decode(gbnf(CALLS, bound=12), PROMPT, rng) for _ in range(runs))


def any_tokens(compiled: Any, rng: np.random.Generator, limit: int = 2000) -> list[int]:
    """Tokens drawn evenly from those that xgrammar allows: a model that knows nothing."""
    matcher, out = xgrammar.GrammarMatcher(compiled), []
    mask = xgrammar.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)
    while len(out) < limit:
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: compiled.tokenizer_info.vocab_size]
        out.append(int(rng.choice(np.flatnonzero(bits))))
        assert matcher.accept_token(out[-1])
        if out[-1] in GENERATION_STOPS:
            return out
    raise AssertionError(f"no end within {limit} tokens: {load_vocabulary().decode(out)!r}")


@pytest.mark.parametrize("runs", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_even_choices_under_the_structural_tag_make_valid_calls(runs: int) -> None:
    compiled = compiler().compile_structural_tag(structural_tag(CALLS, bound=12))
    rng = np.random.default_rng(7)
    check_decoded(any_tokens(compiled, rng) for _ in range(runs))


@pytest.mark.backend("llama_cpp")
def test_response_format_end_to_end(llama: Llama) -> None:
    """Request -> prompt with the format's section -> constrained decoding -> parse -> message -> valid JSON."""
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}}, "required": ["answer", "sure"], "additionalProperties": False}
    request = {
        "messages": [{"role": "user", "content": "How many?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}},
    }
    prompt = render(to_conversation(request))
    assert "# Response Formats\n\n## count\n\n{" in load_vocabulary().decode(prompt)
    rng = np.random.default_rng(8)
    for _ in range(3):
        message = from_messages(parse(llama.decode(gbnf(turn(request), bound=12), prompt, rng)), finish_reason="stop")
        jsonschema.validate(json.loads(message["content"]), schema)


@pytest.mark.backend("llama_server")
def test_xllamacpp_decodes_under_the_grammar(gguf_file: Path) -> None:
    import xllamacpp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.port = str(gguf_file), 512, False, port
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    body = {"prompt": PROMPT, "grammar": gbnf(TURN, bound=8).text, "n_predict": 12, "return_tokens": True, "seed": 1, "top_k": 0}
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=240) as reply:
        ids = json.load(reply)["tokens"]
    matcher = xgrammar.GrammarMatcher(compiler().compile_grammar(xgrammar.Grammar.from_ebnf(gbnf(TURN, bound=8, control="text").text)))
    assert ids and all(matcher.accept_token(token) for token in ids)
