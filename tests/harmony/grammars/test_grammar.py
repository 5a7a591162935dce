"""Grammars in the engines that use them: llama.cpp's sampler (llama_cpp, xllamacpp) and xgrammar's matcher."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import xgrammar
from gptoss_harmony import Tool, load_vocabulary, parse
from gptoss_harmony.grammars.grammar import Turn, gbnf, structural_tag
from gptoss_harmony.openai.chat_completions import from_messages, to_conversation, to_turn
from gptoss_harmony.rendering.renderer import render
from gptoss_harmony.tokens import ENDOFTEXT, GENERATION_STOPS, RETURN, SPECIAL_TOKENS
from helpers import real_vocabulary_gguf
from helpers.grammar_engines import Accepts, Llama, by_xgrammar, compiler
from helpers.outputs import ids_of

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
    "<|channel|>analysis<|message|>Need a < b and x <- y |> z.<|end|><|start|>assistant "
    'to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"location": "San '
    'Francisco"}<|call|>',
    "<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"location":"SF","format":"celsius","days":14}<|call|>',
    '<|channel|>commentary to=functions.get_weather json<|message|>{\n  "location": "\\u00e9\\n日本 < > \\"",\n  '
    '"parts": ["a", "b"]\n}<|call|>',
    '<|channel|>commentary to=functions.get_weather<|message|>{"location": "", "parts": []}<|call|>',
    "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.get_location<|message|>{}<|call|>",
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
    "<|channel|>commentary to=assistant<|channel|>commentary to=functions.get_weather "
    'json<|message|>{"location": "x"}<|call|>',
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
    _CALL
    + (
        '{"location": "x"}<|call|><|start|>functions.get_weather '
        "to=assistant<|channel|>commentary<|message|>sunny<|end|>"
    ),
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


# Decoding with random weights.

DECODED = Tool(
    "book",
    "",
    {
        "type": "object",
        "properties": {
            "who": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "age": {"type": "integer", "minimum": 0, "maximum": 130},
                },
                "required": ["name"],
            },
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
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }
    request = {
        "messages": [{"role": "user", "content": "How many?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}},
    }
    prompt = render(to_conversation(request))
    assert "# Response Formats\n\n## count\n\n{" in load_vocabulary().decode(prompt)
    rng = np.random.default_rng(8)
    for _ in range(3):
        message = from_messages(
            parse(llama.decode(gbnf(to_turn(request), bound=12), prompt, rng)), finish_reason="stop"
        )
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
    body = {
        "prompt": PROMPT,
        "grammar": gbnf(TURN, bound=8).text,
        "n_predict": 12,
        "return_tokens": True,
        "seed": 1,
        "top_k": 0,
    }
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=240) as reply:
        ids = json.load(reply)["tokens"]
    matcher = xgrammar.GrammarMatcher(
        compiler().compile_grammar(xgrammar.Grammar.from_ebnf(gbnf(TURN, bound=8, control="text").text))
    )
    assert ids and all(matcher.accept_token(token) for token in ids)


@pytest.mark.parametrize("size", [200_019, 200_064, 201_088])
def test_tags_compile_for_trimmed_and_padded_vocabularies(size: int) -> None:
    pieces = real_vocabulary_gguf.pieces()[:size]
    info = xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=size, stop_token_ids=[200_002, 200_012])
    engine = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    turn = Turn((Tool("f"),), ("python",), {"type": "object", "properties": {"a": {"type": "integer"}}})
    engine.compile_structural_tag(structural_tag(turn))


@pytest.mark.parametrize("kind", ["", " json", " <|constrain|>json"])
def test_answers_of_a_schema_may_name_their_type(kind: str) -> None:
    turn = Turn(final={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    text = f'<|channel|>final{kind}<|message|>{{"a": 1}}<|return|>'
    accepts = by_xgrammar(compiler().compile_structural_tag(structural_tag(turn)))
    assert accepts(ids_of(text))
    # <|end|> completes the answer; the engine then stops by an id of its own.
    assert accepts([*ids_of(text.replace("return", "end")), RETURN])
    grammar = xgrammar.Grammar.from_ebnf(gbnf(turn, control="text").text)
    assert by_xgrammar(compiler().compile_grammar(grammar))(ids_of(text))
