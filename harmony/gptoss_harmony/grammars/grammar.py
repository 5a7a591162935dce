"""Grammars for constrained decoding: what the model may write after ``<|start|>assistant``.

`Turn` says it once; `gbnf` spells it for llama.cpp (and, with ``control="text"``, for engines whose grammars know
text only), `structural_tag` for xgrammar, which vLLM uses. Both allow analysis and preambles first, then one call of
a declared tool or the final answer. The closing ``<|call|>`` or ``<|return|>`` ends generation: engines take it as
end-of-generation outside the grammar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from gptoss_harmony.builtin_tools import builtin_namespace
from gptoss_harmony.grammars.gbnf_rules import clean_name, quote
from gptoss_harmony.grammars.inputs import InputGrammar, convert_input
from gptoss_harmony.grammars.json_schema_gbnf import SchemaConverter
from gptoss_harmony.messages import Json, Tool, ToolNamespace
from gptoss_harmony.tokens import FIRST_SPECIAL, LAST_NAMED, SPECIAL_TOKENS

Control: TypeAlias = Literal["token", "text"]
Final: TypeAlias = Literal["text"] | Json | None
"""Free text, an answer of this JSON schema, or no answer: a tool must be called."""

_TEXT_RULES = {
    # Any text in which "<|" is never followed by a small letter, which would spell a control token.
    "text": '[^<] text | "<" text-1 | ""',
    "text-1": '[^<|] text | "<" text-1 | "|" text-2 | ""',
    "text-2": '[^<a-z] text | "<" text-1 | ""',
}
_PASSAGES = 8
"""Most analysis and preamble messages in a bounded turn."""


@dataclass(frozen=True)
class Turn:
    """What the model may answer.

    `functions` can be called as ``functions.NAME``, those of `namespaces` by their namespace's name, `builtins` names
    built-in namespaces (``browser``, ``python``). `inputs`: grammars of custom tools' inputs, by recipient; one that
    `inputs.explain_input` has a word against is not enforced. `free_arguments`: only headers and inputs are held to,
    arguments are any text.
    """

    functions: tuple[Tool, ...] = ()
    builtins: tuple[str, ...] = ()
    final: Final = "text"
    reasoning: bool = True
    namespaces: tuple[ToolNamespace, ...] = ()
    inputs: Mapping[str, InputGrammar] = field(default_factory=dict)
    free_arguments: bool = False


@dataclass(frozen=True)
class Grammar:
    """`text` is GBNF with the start rule ``root``; `notes` names each part of a schema that it does not enforce."""

    text: str
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Call:
    recipient: str
    channels: tuple[str, ...]
    types: tuple[str, ...]  # content types after a space
    schema: Any  # None: raw text
    input: InputGrammar | None = None  # of a custom tool


def list_calls(turn: Turn) -> Iterator[_Call]:
    """The calls that a turn allows."""
    for call in _list_all_calls(turn):
        yield replace(call, schema=None if turn.free_arguments else call.schema, input=turn.inputs.get(call.recipient))


def _list_all_calls(turn: Turn) -> Iterator[_Call]:
    for own in (ToolNamespace.functions(turn.functions), *turn.namespaces):
        for tool in own.tools:
            schema = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
            yield _Call(f"{own.name}.{tool.name}", ("commentary",), ("<|constrain|>json", "json"), schema)
    for name in turn.builtins:
        space = builtin_namespace(name)
        for tool in space.tools:
            yield _Call(
                f"{name}.{tool.name}",
                ("analysis", "commentary"),
                ("code", "<|constrain|>json", "json"),
                tool.parameters,
            )
        if not space.tools:
            yield _Call(name, ("analysis", "commentary"), ("code",), None)


def gbnf(turn: Turn, *, bound: int | None = None, control: Control = "token") -> Grammar:
    """GBNF of a turn.

    `bound` limits everything that is open: characters of a passage and of a string, elements of a list; what `inputs`
    leave open it does not. `control`:
    ``token`` matches control tokens as tokens (llama.cpp of December 2025 and later), ``text`` matches their text,
    which a model can also spell out of ordinary tokens.
    """
    return _Gbnf(bound, control).build(turn)


class _Gbnf:
    def __init__(self, bound: int | None, control: Control) -> None:
        self.schemas = SchemaConverter(bound)
        self.rules = self.schemas.rules.bodies
        self.control = control

    def build(self, turn: Turn) -> Grammar:
        bound = self.schemas.bound
        passages = list_passages(turn)
        for channel in passages:
            self.rules[channel] = self._spell(
                f"<|channel|>{channel}<|message|>", self._add_text(), "<|end|><|start|>assistant"
            )
        endings = [self._add_call(call) for call in list_calls(turn)]
        if turn.final is not None:
            endings.append(self._add_final(turn.final))
        times = "*" if bound is None else f"{{0,{_PASSAGES}}}"
        first = f"({' | '.join(passages)}){times} " if passages else ""
        root = f"{first}({' | '.join(endings)})"
        return Grammar(_write_rules({"root": root} | self.rules), tuple(self.schemas.notes))

    def _add_text(self) -> str:
        bound = self.schemas.bound
        if bound is not None:
            self.rules["text-unit"] = '[^<] | "<"+ [^<|]'
            return f"text-unit{{0,{bound}}}"
        self.rules |= _TEXT_RULES
        return "text"

    def _add_call(self, call: _Call) -> str:
        name = f"call-{clean_name(call.recipient)}"
        while name in self.rules:
            name += "-x"
        body = self._add_body(call, f"{name}-arguments")
        types = " | ".join(self._spell(f" {kind}") for kind in call.types)
        heads = [self._spell(f" to={call.recipient}<|channel|>{channel}") for channel in call.channels]
        heads += [self._spell(f"<|channel|>{channel} to={call.recipient}") for channel in call.channels]
        self.rules[name] = f"({' | '.join(heads)}) ({types})? {self._spell('<|message|>')} {body}"
        return name

    def _add_body(self, call: _Call, name: str) -> str:
        rules = call.input and convert_input(call.input, name)
        if rules:
            self.rules |= rules
            return name
        return self._add_text() if call.schema is None else self.schemas.convert(call.schema, name)

    def _add_final(self, final: str | Json) -> str:
        if final == "text":
            self.rules["final"] = self._spell("<|channel|>final<|message|>", self._add_text())
        else:
            body = self.schemas.convert(final, "answer")
            kind = f"{self._spell(' <|constrain|>json')} | {self._spell(' json')}"
            self.rules["final"] = f"{self._spell('<|channel|>final')} ({kind})? {self._spell('<|message|>')} {body}"
        return "final"

    def _spell(self, head: str, middle: str = "", tail: str = "") -> str:
        parts = [*self._quote_pieces(head), middle, *self._quote_pieces(tail)]
        return " ".join(part for part in parts if part)

    def _quote_pieces(self, text: str) -> Iterator[str]:
        for piece, special in split_specials(text):
            yield piece if special and self.control == "token" else quote(piece)


def _write_rules(rules: dict[str, str]) -> str:
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def split_specials(text: str) -> Iterator[tuple[str, bool]]:
    """(text, is a control token) pieces of header text of our own."""
    while text:
        start = text.find("<|")
        if start == 0:
            end = text.index("|>") + 2
            yield text[:end], True
            text = text[end:]
        else:
            cut = len(text) if start < 0 else start
            yield text[:cut], False
            text = text[cut:]


def structural_tag(turn: Turn, *, bound: int | None = None) -> Json:
    """The same turn as an xgrammar structural tag (0.2 and later), for vLLM's ``structural_tag``: ids of o200k_harmony.

    `bound` limits what is open: tokens of a passage or a free answer, characters of a string, elements of a list.
    Schemas without lengths go to xgrammar as they are; what `gbnf` notes for the others is not enforced here either.
    Compile it with ``GrammarCompiler(..., cache_enabled=False)``: up to 0.2.8 the cache of one compiler mixes up rules
    of one token, and of two tags the second one then gets masks of the first.
    """
    passages = [
        _tag(f"<|channel|>{channel}<|message|>", _tag_any_text(bound), "<|end|><|start|>assistant")
        for channel in list_passages(turn)
    ]
    endings = [_tag_call(call, bound) for call in list_calls(turn)]
    if turn.final is not None:
        endings.append(_tag_final(turn.final, bound))
    first = [{"type": "star", "content": _one_of(passages)}] if passages else []
    return {"type": "structural_tag", "format": _sequence(*first, _one_of(endings))}


def list_passages(turn: Turn) -> list[str]:
    """Channels that may come first. No preamble where the answer has a schema: the APIs show both as one content."""
    analysis = ["analysis"] if turn.reasoning else []
    return analysis if isinstance(turn.final, dict) else [*analysis, "commentary"]


def _tag_call(call: _Call, bound: int | None) -> Json:
    heads = [_tag(f" to={call.recipient}<|channel|>{channel}") for channel in call.channels]
    heads += [_tag(f"<|channel|>{channel} to={call.recipient}") for channel in call.channels]
    return _sequence(
        _one_of(heads),
        _maybe(_one_of([_tag(f" {kind}") for kind in call.types])),
        _tag("<|message|>", _tag_body(call, bound)),
        _maybe(_tag("<|call|>")),
    )


def _tag_body(call: _Call, bound: int | None) -> Json:
    rules = call.input and convert_input(call.input, "input")
    if rules:
        base = SchemaConverter(bound).rules.bodies
        return {"type": "grammar", "grammar": _write_rules({"root": "input"} | base | rules)}
    return _tag_any_text(bound) if call.schema is None else _tag_json(call.schema, bound)


def _tag_final(final: str | Json, bound: int | None) -> Json:
    if final == "text":
        return _sequence(_tag("<|channel|>final<|message|>", _tag_any_text(bound)), _maybe(_tag("<|return|>")))
    return _sequence(
        _tag("<|channel|>final"),
        _maybe(_one_of([_tag(" <|constrain|>json"), _tag(" json")])),
        _tag("<|message|>", _tag_json(final, bound)),
        _maybe(_one_of([_tag("<|return|>"), _tag("<|end|>")])),  # an answer in a history ends with <|end|>
    )


def _tag(head: str, content: Json | None = None, tail: str = "") -> Json:
    return _sequence(*_split_tag(head), *([] if content is None else [content]), *_split_tag(tail))


def _split_tag(text: str) -> Iterator[Json]:
    for piece, special in split_specials(text):
        yield {"type": "token", "token": SPECIAL_TOKENS[piece]} if special else {"type": "const_string", "value": piece}


def _tag_any_text(bound: int | None) -> Json:
    # xgrammar compiles no tag with an id that the vocabulary lacks. Trimmed ones end after the named tokens; what
    # follows those is reserved, and no model was trained to write it.
    return {
        "type": "any_tokens",
        "exclude_tokens": list(range(FIRST_SPECIAL, LAST_NAMED + 1)),
        **({} if bound is None else {"max_tokens": bound}),
    }


def _tag_json(schema: Any, bound: int | None) -> Json:
    """JSON of a schema, without control tokens in its strings: xgrammar's own rules, or ours where it has none.

    It can keep text out of strings or count their characters, not both.
    """
    counted = bound is not None or _has_key(schema, {"minLength", "maxLength"})
    if not counted:
        return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 24, "excludes": ["<|"]}
    converter = SchemaConverter(bound)
    root = converter.convert(schema, "value")
    return {"type": "grammar", "grammar": _write_rules({"root": root} | converter.rules.bodies)}


def _has_key(value: Any, keys: set[str]) -> bool:
    if isinstance(value, dict):
        return bool(keys & value.keys()) or any(_has_key(inner, keys) for inner in value.values())
    return isinstance(value, list) and any(_has_key(inner, keys) for inner in value)


def _sequence(*elements: Json) -> Json:
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": list(elements)}


def _one_of(elements: list[Json]) -> Json:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}


def _maybe(content: Json) -> Json:
    return {"type": "optional", "content": content}
