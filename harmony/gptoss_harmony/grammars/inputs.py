"""The grammar of a custom tool's input: what the text must be that stands as ``input`` in the JSON of its call."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from gptoss_harmony.grammars.lark import convert_lark
from gptoss_harmony.grammars.regex import parse_regex
from gptoss_harmony.grammars.regular import Automaton, NotEnforced, write_rules

_MOST_CHARACTERS = 100_000


class InputGrammar(NamedTuple):
    """`syntax`: ``regex`` or ``lark``."""

    syntax: str
    definition: str


def explain_input(grammar: InputGrammar) -> str | None:
    """Why there are no rules for a grammar; None if there are."""
    found = _convert(grammar, "x")
    return found if isinstance(found, str) else None


def convert_input(grammar: InputGrammar, name: str) -> dict[str, str] | None:
    """GBNF rules of ``{"input": TEXT}`` for the texts of a grammar, the first under `name`; None where `explain_input`
    says why not.
    """
    rules = _convert(grammar, f"{name}-text")
    if isinstance(rules, str):
        return None
    return {name: f'"{{" ws "\\"input\\"" ":" ws "\\"" {name}-text "\\"" ws "}}"'} | rules


@lru_cache(64)
def _convert(grammar: InputGrammar, name: str) -> dict[str, str] | str:
    try:
        if len(grammar.definition) > _MOST_CHARACTERS:
            raise NotEnforced(f"it is too large (more than {_MOST_CHARACTERS} characters)")
        if grammar.syntax == "lark":
            return convert_lark(grammar.definition, name)
        if grammar.syntax == "regex":
            return write_rules(Automaton(parse_regex(grammar.definition)), name, after_open=False)
        raise NotEnforced(f"its syntax is not known (expected lark or regex / got {grammar.syntax[:40]!r})")
    except NotEnforced as reason:
        return str(reason)
    except RecursionError:
        return "it is nested too deeply"
