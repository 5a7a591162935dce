"""Grammars of custom tools' inputs in the engines: what they hold a call to, and why some are not enforced."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import xgrammar
from gptoss_harmony import load_vocabulary
from gptoss_harmony.grammars.grammar import Turn, gbnf, structural_tag
from gptoss_harmony.grammars.inputs import InputGrammar, explain_input
from gptoss_harmony.openai.tool_calls import read_input
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import SPECIAL_TOKENS
from helpers.grammar_engines import Llama, by_xgrammar, compiler
from helpers.outputs import ids_of

# In the words of an editing tool: whole files, or lines of a context with what is added and taken away.
PATCH = """
start: "*** Begin" LF part+ "*** End" LF?
part: added | changed            // one file
added: "*** Add: " path LF ("+" /(.*)/ LF -> line)+
changed: "*** Change: " path LF change+
change: ("@@" | "@@ " /(.+)/) LF line*
line: ("+" | "-" | " ") /(.*)/ LF
path: /(.+)/
%import common.LF
"""
SUMS = """
?start: sum
?sum: product
    | sum "+" product   -> add
    | sum "-" product   -> sub
?product: atom
    | product ("*"|"/") atom
?atom: NUMBER | "-" atom | "(" sum ")" | NAME [":=" sum]
NAME.2: ("_"|LETTER) ("_"|LETTER|"0".."9")*
%import common (NUMBER, LETTER)
%ignore " "
%ignore /\\t/
"""
QUERY = 'start: "select"i " " (NAME | "*") " from " NAME~1..2 ";"?\nNAME: /[a-z]{2,4}/ " "?'
CASES: list[tuple[str, str, list[str], list[str]]] = [
    ("regex", r"^\d{4}-\d\d-\d\d$", ["2024-01-31"], ["2024-1-31", "x2024-01-31", "2024-01-31\n", ""]),
    ("regex", r"(?i)(get|put) /[\w/]*", ["GET /a/b", "put /"], ["post /", "get a"]),
    ("regex", r"[^\n]*", ["", "a < b || c", "<|end|>", '"\\"', "日本\t🙂", "<<|x"], ["a\nb"]),
    ("regex", r"(?s).+", ["a\nb", "\x00\x1f\x7f"], [""]),
    ("regex", r"\p{Lu}\p{L}{0,3}\u00e9?[[:digit:]-]+", ["Ärz-1", "Aé9"], ["ä1", "A"]),
    ("regex", r"a{,2}|b{2}|(?:c{2,}|d+?)e*", ["", "aa", "bb", "ccce", "dd"], ["aaa", "b", "ce"]),
    ("lark", PATCH, [
        "*** Begin\n*** Add: a.md\n+| a | b |\n+<|\n*** End",
        "*** Begin\n*** Change: x<\n@@ def f():\n-\tx = 'a'\n+x = \"b\" if c < d else \\n\n *** End\n*** End\n",
    ], ["*** Begin\n*** End\n", "*** Begin\n*** Add: a\nx\n*** End", "*** Begin\n*** Add: \n+\n*** End"]),
    ("lark", SUMS, ["1 + 2*(x_1 - -3)", " a := 4 / 2.5e3", "1"], ["1 +", "(1", "1x", ""]),
    ("lark", QUERY, ["SELECT * from ab;", "select xyz  from ab cd"], ["select * from a;", "select ab from abcdef;gh"]),
    ("lark", 'start: "<" A "|"\nA: /x*/', ["<|"], ["<", "x|"]),
]  # fmt: skip


def make_turn(syntax: str, definition: str) -> Turn:
    form = {"type": "grammar", "syntax": syntax, "definition": definition}
    table = ToolTable([{"type": "custom", "name": "f", "format": form}])
    return Turn(tuple(table.functions), inputs=table.inputs)


def make_call(text: str) -> list[int]:
    spelled = json.dumps(text, ensure_ascii=False).replace("<|", "<\\u007c")
    return ids_of(f'<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"input": {spelled}}}<|call|>')


@pytest.mark.parametrize("engine", ["llama.cpp", "xgrammar"])
@pytest.mark.parametrize("case", CASES, ids=[case[1][:20] for case in CASES])
def test_engines_hold_an_input_to_its_grammar(
    llama: Llama, engine: str, case: tuple[str, str, list[str], list[str]]
) -> None:
    turn = make_turn(*case[:2])
    assert explain_input(InputGrammar(*case[:2])) is None
    if engine == "llama.cpp":
        accepts = llama.accepts(gbnf(turn))
    else:
        accepts = by_xgrammar(compiler().compile_structural_tag(json.dumps(structural_tag(turn))))
    assert {text: accepts(make_call(text)) for text in case[2]} == dict.fromkeys(case[2], True)
    assert {text: accepts(make_call(text)) for text in case[3]} == dict.fromkeys(case[3], False)


def test_no_text_spells_a_control_token() -> None:
    """A token whose name the text would be stands for the text in engines that compare texts."""
    for syntax, definition in (("regex", "(?s).*"), ("lark", 'start: ("<" | "|" | /end/ | ">")+')):
        grammar = xgrammar.Grammar.from_ebnf(gbnf(make_turn(syntax, definition), control="text").text)
        info = xgrammar.TokenizerInfo(["<", "|", "end", ">", "x"], xgrammar.VocabType.RAW, stop_token_ids=[4])
        compiled = xgrammar.GrammarCompiler(info, cache_enabled=False).compile_grammar(grammar)
        matcher = xgrammar.GrammarMatcher(compiled)
        assert matcher.accept_string('<|channel|>commentary to=functions.f<|message|>{"input":"<')
        assert not matcher.accept_string("|")


@pytest.mark.parametrize(
    "pattern", [r"(ab|c[^x]|\d{2,3})*[\w.-]?", r"<\|?[a-c|<]+>", r"(?i:yes|no)(, (?:maybe)?){0,2}"]
)
def test_what_a_random_model_writes_keeps_to_it(llama: Llama, pattern: str) -> None:
    turn = Turn(
        (*make_turn("regex", pattern).functions,),
        final=None,
        reasoning=False,
        inputs=make_turn("regex", pattern).inputs,
    )
    prompt = [SPECIAL_TOKENS["<|start|>"], *ids_of("assistant")]
    for seed in range(3):
        out = llama.decode(gbnf(turn, bound=20), prompt, np.random.default_rng(seed), limit=3000)
        body = load_vocabulary().decode(out[:-1]).rpartition("<|message|>")[2]
        assert re.fullmatch(pattern, read_input(body), re.ASCII), body


@pytest.mark.parametrize(
    ("syntax", "definition", "says"),
    [
        ("regex", "a(?=b)", "look around"),
        ("regex", r"(a)\1", "'\\1' is not read here"),
        ("regex", r"\ba", "is not read here"),
        ("regex", "a^b", "inside the text"),
        ("regex", "(a", "not closed"),
        ("regex", "a)", "never opened"),
        ("regex", "[a", "not closed"),
        ("regex", "*a", "nothing to repeat"),
        ("regex", r"[^\s\S]", "no text keeps to it"),
        ("regex", "(((a{99}){99}){99})", "too large"),
        ("regex", "(a|b)*a(a|b){20}", "too large"),
        ("regex", "(.*a.{40}){40}", "too large"),
        ("regex", "(" * 5000, "nested too deeply"),
        ("lark", "begin: A", "no rule called start"),
        ("lark", "start: A", "line 1: nothing is called A"),
        ("lark", 'start: a\na: b "x"\nb: a | "y"', "can begin with itself"),
        ("lark", 'start: start "x"', "never ends"),
        ("lark", 'start: (A?)*\nA: "a"', "may be empty"),
        ("lark", 'start: "a', "line 1"),
        ("lark", "start: A\nA: B\nB: A", "made of itself"),
        ("lark", 'start: "a"\nstart: "b"', "line 2: start is defined twice"),
        ("lark", "start: %json {}", "is not read here"),
        ("lark", "%import python.NAME", "python.NAME is not known"),
        ("lark", "start: " + "(" * 5000, "nested too deeply"),
        ("lark", 'start: "a"\n' + "\n".join(f'r{i}: "a"' for i in range(20_000)), "too large"),
        ("ebnf", "start", "expected lark or regex"),
    ],
)  # fmt: skip
def test_what_is_not_enforced_has_a_reason(syntax: str, definition: str, says: str) -> None:
    assert says in (explain_input(InputGrammar(syntax, definition)) or "")
    turn = make_turn(syntax, definition)
    assert '"\\"input\\""' in gbnf(turn).text and structural_tag(turn)  # held to a text, then


def test_arguments_may_be_free_beside_an_input(llama: Llama) -> None:
    tools: list[dict[str, Any]] = [
        {"type": "custom", "name": "f", "format": {"type": "grammar", "syntax": "regex", "definition": "x+"}},
        {"type": "function", "name": "g", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    ]
    table = ToolTable(tools)
    turn = Turn(tuple(table.functions), inputs=table.inputs, free_arguments=True)
    accepts = llama.accepts(gbnf(turn))
    head = "<|channel|>commentary to=functions."
    assert accepts(ids_of(f'{head}g<|message|>{{"b": 1, "a": "any"}}<|call|>'))
    assert accepts(make_call("xx")) and not accepts(make_call("y"))
    assert not accepts(ids_of(f"{head}h<|message|>{{}}<|call|>"))
