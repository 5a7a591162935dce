"""Does the target turn text into the same ids? Its tokenizer, chat template, prompts, token counts and stop ids.

Every answer is a `TextCheck`: how many of how many agree with `gptoss_harmony`, and the first that do not. A template's
deviation is *known* where an independent Jinja engine gives the same text: then it is the template's, not the engine's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gptoss_harmony import RenderError, load_vocabulary, render
from gptoss_harmony.chat_completions import to_conversation
from gptoss_harmony.templates import apply_template, chat_template
from gptoss_harmony.tokens import END, GENERATION_STOPS, N_RANKS

from gptoss_adapters.backends import Backend
from gptoss_adapters.backends.ollama import text_ids
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.tokenizer_files import CHAT_TEMPLATE, vocabulary_texts
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError
from gptoss_adapters.parity.corpus import Json, requests, strings

SAME, KNOWN, DIFFERENT, NOT_CHECKED = "same", "known deviation", "different", "not checked"
EXAMPLES = 5  # shown of each kind of difference
_DATE = re.compile(r"Current date: (\d{4}-\d\d-\d\d)")


@dataclass
class TextCheck:
    """One comparison. status: "same", "known deviation", "different" or "not checked" (`note` says why).

    families: {name: [same, count]}; examples: the first differences as {"input", "expected", "got"} texts.
    """

    name: str
    source: str
    status: str = NOT_CHECKED
    count: int = 0
    same: int = 0
    note: str = ""
    families: dict[str, list[int]] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, family: str, right: bool, what: str = "", expected: object = "", got: object = "") -> None:
        """Count one comparison."""
        self.count += 1
        self.same += right
        tally = self.families.setdefault(family, [0, 0])
        tally[0] += right
        tally[1] += 1
        if not right and len(self.examples) < EXAMPLES:
            self.examples.append({"input": what[:200], "expected": str(expected)[:400], "got": str(got)[:400]})

    def decided(self, note: str = "", known: bool = False) -> TextCheck:
        """The status that the counts give; `known` says that every difference has a known cause."""
        self.status = SAME if self.same == self.count else KNOWN if known else DIFFERENT
        self.note = note
        return self


def check_text(backend: Backend, checkpoint: Checkpoint | None, count: int = 10_500, seed: int = 0) -> list[TextCheck]:
    """Every check that this target allows. checkpoint: what the target was opened on, None for a server at a URL."""
    if backend.info.vocab_size < N_RANKS:
        return [TextCheck("text layer", backend.name, note=f"the model has no gpt-oss vocabulary ({backend.info.vocab_size} tokens)")]
    checks: list[tuple[str, Callable[[], TextCheck]]] = [
        ("vocabulary table", lambda: check_table(checkpoint)),
        ("tokenizer", lambda: check_tokenizer(backend, checkpoint, count, seed)),
        ("control tokens as text", lambda: check_control(backend, checkpoint, seed)),
        ("chat template", lambda: check_template(checkpoint)),
        ("server prompts", lambda: check_prompts(backend, checkpoint)),
        ("prompt token counts", lambda: check_counts(backend)),
        ("stop ids", lambda: check_stops(backend)),
    ]
    return [_guarded(name, backend.name, check) for name, check in checks]


def _guarded(name: str, source: str, check: Callable[[], TextCheck]) -> TextCheck:
    try:
        return check()
    except GptOssError as error:
        return TextCheck(name, source, note=str(error))


# Tokenizers -----------------------------------------------------------------------------------------------------------


def check_table(checkpoint: Checkpoint | None) -> TextCheck:
    """A GGUF's token list against the published vocabulary, id by id."""
    if checkpoint is None or "tokenizer.ggml.tokens" not in checkpoint.metadata:
        raise NotComparable("no GGUF with a vocabulary to read")
    got = list(checkpoint.metadata["tokenizer.ggml.tokens"])
    check = TextCheck("vocabulary table", "GGUF metadata")
    for ident, (a, b) in enumerate(zip_longest(vocabulary_texts(len(got)), got)):
        check.add("ordinary" if ident < N_RANKS else "control", a == b, f"id {ident}", a, b)
    return check.decided()


def check_tokenizer(backend: Backend, checkpoint: Checkpoint | None, count: int, seed: int) -> TextCheck:
    """Ids of `count` strings."""
    pairs = [(family, text) for family, text in strings(count, seed)]
    source, tokenize = _tokenizer(backend, checkpoint)
    check, vocabulary = TextCheck("tokenizer", source), load_vocabulary()
    for (family, text), got in zip(pairs, tokenize([text for _, text in pairs], False), strict=True):
        expected = vocabulary.encode(text)
        check.add(family, got == expected, repr(text), expected, got)
    return check.decided("names of control tokens in a text stay text")


def check_control(backend: Backend, checkpoint: Checkpoint | None, seed: int) -> TextCheck:
    """With control tokens on, as servers read a rendered template: each name becomes its one id."""
    pairs = [text for family, text in strings(2100, seed + 1) if family == "control tokens as text"]
    source, tokenize = _tokenizer(backend, checkpoint)
    check, vocabulary = TextCheck("control tokens as text", source), load_vocabulary()
    stored = _stored_control(checkpoint)
    for text, got in zip(pairs, tokenize(pairs, True), strict=True):
        expected = text_ids(text, vocabulary)
        if stored is None or stored.issuperset(i for i in [*expected, *got] if i >= N_RANKS):
            check.add("published names", got == expected, repr(text), expected, got)
    return check.decided("read as control tokens in a rendered prompt: text-only engines cannot tell a user's from the template's")


def _stored_control(checkpoint: Checkpoint | None) -> set[int] | None:
    """The ids that the published tokenizer files name: later reserved ones are fillers there."""
    from gptoss_adapters.checkpoint.tokenizer_files import ADDED

    return {ident for ident, name in ADDED.items() if name != "<|endofprompt|>"}


def _tokenizer(backend: Backend, checkpoint: Checkpoint | None) -> tuple[str, Callable[[Sequence[str], bool], list[list[int]]]]:
    """The engine's own, else the tokenizer.json that goes with its model."""
    try:
        backend.tokenize(["x"])
        return f"{backend.name}'s own", backend.tokenize
    except NotComparable:
        file = (checkpoint.tokenizer_files if checkpoint else {}).get("tokenizer.json")
        if file is None:
            raise
        return "tokenizer.json", _from_file(file)


def _from_file(file: Path) -> Callable[[Sequence[str], bool], list[list[int]]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise NotComparable("reading tokenizer.json needs tokenizers, which comes with transformers") from error
    plain, special = Tokenizer.from_file(str(file)), Tokenizer.from_file(str(file))
    plain.encode_special_tokens = True
    return lambda texts, on: [e.ids for e in (special if on else plain).encode_batch(list(texts), add_special_tokens=False)]


# Templates ------------------------------------------------------------------------------------------------------------


def check_template(checkpoint: Checkpoint | None) -> TextCheck:
    """The template that goes with the model, in a Jinja engine of its own, against the renderer."""
    template = checkpoint.chat_template if checkpoint else None
    if template is None:
        raise NotComparable("no chat template goes with the model")
    known = _known_template(template)
    check, vocabulary = TextCheck("chat template", known or f"sha256 {_sha(template)}"), load_vocabulary()
    for shape, request in requests():
        expected = expected_ids(request)
        try:
            got = text_ids(template_text(template, request), vocabulary)
        except RenderError as error:
            check.add(shape, False, shape, vocabulary.decode(expected), error)
            continue
        check.add(shape, got == expected, shape, *_first_difference(expected, got))
    ours = known == "ours" and all(same == count or shape == "control tokens as text" for shape, (same, count) in check.families.items())
    published = known == "published"
    note = "its deviations from the format are the published template's own" if published else ""
    return check.decided(note, known=published or ours)


def _known_template(text: str) -> str | None:
    for name, known in (("published", CHAT_TEMPLATE.read_text("utf-8")), ("ours", chat_template())):
        if text.strip() == known.strip():
            return name
    return None


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def expected_ids(request: Json) -> list[int]:
    """The ids that the renderer makes of a Chat Completions request with a "date"."""
    body = {key: value for key, value in request.items() if key != "date"}
    return render(to_conversation(body, date=request["date"]), drop="none")


def template_text(template: str, request: Json) -> str:
    """What a template makes of it; both ways of giving the date are tried by setting both."""
    return apply_template(
        _with_thinking(request["messages"]), request.get("tools"), template=template, reasoning_effort=request["reasoning_effort"],
        conversation_start_date=request["date"], strftime_now=lambda form: request["date"],
    )  # fmt: skip


def _with_thinking(messages: Iterable[Json]) -> list[Json]:
    """Reasoning under both names: templates read `thinking`, servers `reasoning_content`."""
    return [m | {"thinking": m["reasoning_content"]} if m.get("reasoning_content") else m for m in messages]


def _first_difference(expected: list[int], got: list[int]) -> tuple[str, str]:
    """The two texts from just before where they part."""
    if expected == got:
        return "", ""
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    decode = load_vocabulary().decode
    return decode(expected[max(at - 8, 0) : at + 24]), decode(got[max(at - 8, 0) : at + 24])


def check_prompts(backend: Backend, checkpoint: Checkpoint | None) -> TextCheck:
    """The prompts that a server makes for its own chats. The date that it shows is taken from the prompt."""
    chosen = [(shape, r) for shape, r in requests() if r["date"] == date(2025, 8, 5).isoformat()]
    check, vocabulary = TextCheck("server prompts", f"{backend.name}'s chat endpoint"), load_vocabulary()
    template, explained = checkpoint.chat_template if checkpoint else None, 0
    for shape, request in chosen:
        try:
            text = backend.chat_prompt(_wire(request))
        except UsageError as error:
            check.add(shape, False, shape, "a prompt", error)
            continue
        request = request | {"date": shown[1] if (shown := _DATE.search(text)) else request["date"]}
        expected, got = expected_ids(request), text_ids(text, vocabulary)
        check.add(shape, got == expected, shape, *_first_difference(expected, got))
        explained += got != expected and template is not None and _same_text(template, request, text)
    missed = check.count - check.same
    note = f"{explained} of the {missed} deviations are what the model's template says" if missed else ""
    return check.decided(note, known=explained == missed)


def _same_text(template: str, request: Json, text: str) -> bool:
    try:
        return template_text(template, request) == text
    except RenderError:
        return False


def _wire(request: Json) -> Json:
    """As a client sends it; the date for templates that take one."""
    body = {key: value for key, value in request.items() if key != "date"}
    return body | {"messages": _with_thinking(body["messages"]), "chat_template_kwargs": {"conversation_start_date": request["date"]}}


def check_counts(backend: Backend) -> TextCheck:
    """usage.prompt_tokens of real requests against the ids of the prompt that the server says it makes."""
    check, vocabulary = TextCheck("prompt token counts", f"{backend.name}'s usage"), load_vocabulary()
    for shape, request in requests(["a question", "other scripts"])[::12]:
        usage = backend.chat({**_wire(request), "max_tokens": 1})["usage"]
        try:
            expected = len(text_ids(backend.chat_prompt(_wire(request)), vocabulary))
        except NotComparable:
            expected = len(expected_ids(request))
        check.add(shape, usage["prompt_tokens"] == expected, shape, expected, usage["prompt_tokens"])
    return check.decided()


def check_stops(backend: Backend) -> TextCheck:
    """The ids at which the engine ends a generation."""
    check, found = TextCheck("stop ids", f"{backend.name}'s own"), set(backend.info.stop_ids)
    for ident in sorted(GENERATION_STOPS):
        check.add("must stop", ident in found, load_vocabulary().decode([ident]), "stops", "goes on")
    check.add("must go on", END not in found, load_vocabulary().decode([END]), "goes on", "stops: only the first message of an answer is seen")
    extra = sorted(found - GENERATION_STOPS - {END})
    return check.decided(f"it also stops at {', '.join(map(str, extra))}" if extra else "")


def summary(checks: Sequence[TextCheck]) -> str:
    """The worst status of all: different, known deviation, same, or not checked."""
    found: list[Any] = [check.status for check in checks]
    return next((status for status in (DIFFERENT, KNOWN, SAME) if status in found), NOT_CHECKED)
