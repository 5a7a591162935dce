"""Does the target turn text into the same ids? Its tokenizer, chat template, prompts, token counts and stop ids.

Each answer is a `schema.Check`: how many of how many cases agree with `gptoss_harmony`, and the first that do not.
"look" means
that every difference is explained: by llama.cpp's splitting rule, applied to the same strings; or by the template that
goes with the model, which an independent Jinja engine reads the same way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gptoss_harmony import RenderError, load_vocabulary, render
from gptoss_harmony.openai.chat_completions import to_conversation
from gptoss_harmony.rendering.pieces import Form
from gptoss_harmony.rendering.templates import apply_template, chat_template
from gptoss_harmony.tokens import END, GENERATION_STOPS, N_RANKS

from gptoss_adapters.backends import Backend
from gptoss_adapters.backends.prompt_texts import text_ids
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.formats.tokenizer_files import ADDED, CHAT_TEMPLATE, vocabulary_texts
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError
from gptoss_adapters.parity.report.schema import FAIL, LOOK, PASS, SKIPPED, Check, TextLayer
from gptoss_adapters.parity.text import llama_split
from gptoss_adapters.parity.text.corpus import Json, requests, strings

STRINGS = 10_500
FAILURES = 6  # shown of each check
_DATE = re.compile(r"Current date: (\d{4}-\d\d-\d\d)")
NAMELESS = max(ADDED)  # two names are in use: <|reserved_200018|> and <|endofprompt|>
_CONTROL = "control tokens as text"
Tokenize = Callable[[Sequence[str], bool], list[list[int]]]


class Tally:
    """Counts comparisons into a `Check`; `known` marks a difference whose cause is known."""

    def __init__(self, name: str, source: str) -> None:
        self.check = Check(name, SKIPPED, source=source)
        self._known = 0

    def add(self, family: str, what: str, expected: Any, got: Any, known: bool = False) -> None:
        check, right = self.check, expected == got
        check.count += 1
        check.same += right
        self._known += known and not right
        counts = check.families.setdefault(family, [0, 0])
        counts[0] += right
        counts[1] += 1
        if not right and len(check.failures) < FAILURES:
            check.failures.append(f"{what}: expected {_short(expected)}, got {_short(got)}")

    def decided(self, detail: str = "") -> Check:
        """The check with its verdict; `detail` explains differences."""
        check = self.check
        missed = check.count - check.same
        check.verdict = FAIL
        if missed == self._known:
            check.verdict = LOOK if missed else PASS
        check.detail = detail if missed and self._known else ""
        return check


def _short(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 240 else text[:237] + "...")


@dataclass(frozen=True)
class _Side:
    """The target: its backend, what it was opened on, where that is a local file or folder, and else what it is
    said to serve.
    """

    backend: Backend
    own: Checkpoint | None
    said: Checkpoint | None = None

    @property
    def splits_like_llama(self) -> bool:
        return self.backend.info.arithmetic == "ggml"


def check_text_layer(checkpoint: Checkpoint | None, backend: Backend, count: int = STRINGS, seed: int = 0) -> TextLayer:
    """Every check that this target allows. checkpoint: what it is compared with; a server known by its URL is said
    to serve this one.
    """
    if backend.info.vocab_size < N_RANKS:
        why = f"the model has no gpt-oss vocabulary (it has {backend.info.vocab_size} tokens)"
        return TextLayer([Check("text layer", SKIPPED, detail=why)], SKIPPED)
    side = _Side(backend, _own(backend, checkpoint), checkpoint)
    checks: dict[str, Callable[[], Check]] = {
        "vocabulary table": lambda: check_table(side),
        "tokenizer": lambda: check_tokenizer(side, count, seed),
        _CONTROL: lambda: check_control(side, seed),
        "chat template": lambda: check_template(side),
        "server prompts": lambda: check_prompts(side),
        "prompt token counts": lambda: check_counts(side),
        "stop ids": lambda: check_stops(side),
    }
    done = [_guarded(name, check) for name, check in checks.items()]
    found = {check.verdict for check in done}
    return TextLayer(done, next((v for v in (FAIL, LOOK, PASS) if v in found), SKIPPED))


def _own(backend: Backend, checkpoint: Checkpoint | None) -> Checkpoint | None:
    if backend.path is None or not backend.info.opens or not Path(backend.path).exists():
        return None
    if checkpoint and Path(backend.path).resolve() == checkpoint.path.resolve():
        return checkpoint
    try:
        return open_checkpoint(backend.path)
    except GptOssError:
        return None  # the engine took it: what needs no file of ours is still compared


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except GptOssError as error:
        return Check(name, SKIPPED, detail=str(error))


# Tokenizers -----------------------------------------------------------------------------------------------------------


def check_table(side: _Side) -> Check:
    """A GGUF's token list against the published vocabulary, id by id."""
    if side.own is None or "tokenizer.ggml.tokens" not in side.own.metadata:
        raise NotComparable("no GGUF with a vocabulary at hand")
    got = list(side.own.metadata["tokenizer.ggml.tokens"])
    tally = Tally("vocabulary table", "GGUF metadata")
    for ident, (a, b) in enumerate(zip_longest(vocabulary_texts(len(got)), got)):
        tally.add("ordinary" if ident < N_RANKS else "control", f"id {ident}", a, b)
    return tally.decided()


def check_tokenizer(side: _Side, count: int, seed: int) -> Check:
    """Ids of `count` strings, in which names of control tokens are text."""
    pairs = strings(count, seed)
    source, tokenize = _tokenizer(side)
    tally, vocabulary = Tally("tokenizer", source), load_vocabulary()
    for (family, text), got in zip(pairs, tokenize([text for _, text in pairs], False), strict=True):
        expected = vocabulary.encode(text)
        known = got != expected and side.splits_like_llama and got == llama_split.encode(text, False)
        tally.add(family, repr(text), expected, got, known)
    return tally.decided(
        "llama.cpp's own splitting rule (combining marks, letters outside ASCII), and five control tokens that "
        "it reads in any text"
    )


def check_control(side: _Side, seed: int) -> Check:
    """Specials on, as servers read a rendered template: each name becomes its one id."""
    texts = [text for family, text in strings(2100, seed + 1) if family == _CONTROL]
    source, tokenize = _tokenizer(side)
    tally, vocabulary = Tally(_CONTROL, source), load_vocabulary()
    for text, got in zip(texts, tokenize(texts, True), strict=True):
        expected = text_ids(text, vocabulary)
        if NAMELESS not in expected and all(
            i < N_RANKS or i in ADDED for i in expected
        ):  # the published files name no others
            known = got != expected and side.splits_like_llama and got == llama_split.encode(text, True)
            tally.add("published names", repr(text), expected, got, known)
    return tally.decided("llama.cpp's own splitting rule, between the control tokens")


def _tokenizer(side: _Side) -> tuple[str, Tokenize]:
    """The engine's own, else the tokenizer.json that goes with its model."""
    try:
        side.backend.tokenize(["x"])
        return f"{side.backend.name}'s own", side.backend.tokenize
    except NotComparable:
        file = (side.own.tokenizer_files if side.own else {}).get("tokenizer.json")
        if file is None:
            raise
        return "tokenizer.json", _from_file(file)


def _from_file(file: Path) -> Tokenize:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise NotComparable("reading tokenizer.json needs tokenizers, which comes with transformers") from error
    tokenizer = Tokenizer.from_file(str(file))

    def tokenize(texts: Sequence[str], special: bool) -> list[list[int]]:
        tokenizer.encode_special_tokens = not special
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return tokenize


# Templates ------------------------------------------------------------------------------------------------------------


def check_template(side: _Side) -> Check:
    """The template that goes with the model, in our Jinja engine, against the renderer."""
    template = side.own.chat_template if side.own else None
    if template is None:
        raise NotComparable("no chat template goes with the model")
    published, ours = (
        template.strip() == CHAT_TEMPLATE.read_text("utf-8").strip(),
        template.strip() == chat_template().strip(),
    )
    name = f"a template with sha256 {_sha(template)}"
    if published:
        name = "the published template"
    elif ours:
        name = "this package's template"
    tally, vocabulary = Tally("chat template", name), load_vocabulary()
    for shape, request in requests():
        known = published or shape == _CONTROL  # a template's text is read with control tokens on
        try:
            got = text_ids(next(template_texts(template, request)), vocabulary)
            tally.add(shape, shape, *_parting(_closest_ids(request, got), got), known)
        except RenderError as error:
            tally.add(shape, shape, "a prompt", str(error), known)
    return tally.decided(
        "the published template's known deviations from the format" if published else "control tokens in a user's text"
    )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def expected_ids(request: Json, form: Form = "channel") -> list[int]:
    """The ids that the renderer makes of a Chat Completions request with a "date"."""
    body = {key: value for key, value in request.items() if key != "date"}
    return render(to_conversation(body, date=request["date"]), drop="none", form=form)


def _closest_ids(request: Json, got: list[int]) -> list[int]:
    """The same in the form of headers that a template has: either is right."""
    role = expected_ids(request, "role")
    return role if got == role else expected_ids(request)


def template_texts(template: str, request: Json) -> Iterator[str]:
    """What a template makes of it: of the request as it is, then with arguments as objects, which llama.cpp's
    server makes of them.
    """
    for messages in (request["messages"], list(_with_objects(request["messages"]))):
        yield apply_template(
            _with_thinking(messages),
            request.get("tools"),
            template=template,
            reasoning_effort=request["reasoning_effort"],
            conversation_start_date=request["date"],
            strftime_now=lambda form: request["date"],
        )


def _with_thinking(messages: Iterable[Json]) -> list[Json]:
    """Reasoning under both names: the published template reads `thinking`, servers and others `reasoning_content`."""
    return [m | {"thinking": m["reasoning_content"]} if m.get("reasoning_content") else m for m in messages]


def _with_objects(messages: Iterable[Json]) -> Iterator[Json]:
    for message in messages:
        calls = [
            c | {"function": c["function"] | {"arguments": json.loads(c["function"]["arguments"])}}
            for c in message.get("tool_calls", ())
        ]
        yield message | ({"tool_calls": calls} if calls else {})


def _parting(expected: list[int], got: list[int]) -> tuple[Any, Any]:
    """The two texts around where the ids part, or twice the ids' number where they do not."""
    if expected == got:
        return len(expected), len(got)
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    near = slice(max(at - 6, 0), at + 16)
    decode = load_vocabulary().decode
    a, b = decode(expected[near]), decode(got[near])
    return (a, b) if a != b else (expected[near], got[near])


def check_prompts(side: _Side) -> Check:
    """The prompts that a server makes for its own chats. The date that it shows is taken from the prompt."""
    model = side.own or side.said
    template = model.chat_template if model else None
    tally, vocabulary = Tally("server prompts", f"{side.backend.name}'s chat endpoint"), load_vocabulary()
    chosen = requests()
    for shape, request in chosen[:: max(len(chosen) // 120, 1)]:
        try:
            text = side.backend.chat_prompt(_wire(request))
        except UsageError as error:
            tally.add(shape, shape, "a prompt", str(error))
            continue
        request = request | {"date": shown[1] if (shown := _DATE.search(text)) else request["date"]}
        got = text_ids(text, vocabulary)
        expected = _closest_ids(request, got)
        known = got != expected and template is not None and _says(template, request, text)
        tally.add(shape, shape, *_parting(expected, got), known)
    return tally.decided("the prompts are what the template in the model says, whose deviations these are")


def _says(template: str, request: Json, text: str) -> bool:
    try:
        return text in template_texts(template, request)
    except RenderError:
        return False


def _wire(request: Json) -> Json:
    """As a client sends it; the date for templates that take one."""
    body = {key: value for key, value in request.items() if key != "date"}
    return body | {
        "messages": _with_thinking(body["messages"]),
        "chat_template_kwargs": {"conversation_start_date": request["date"]},
    }


def check_counts(side: _Side) -> Check:
    """usage.prompt_tokens of real requests against the ids of the prompt that the server says it makes."""
    tally, vocabulary = Tally("prompt token counts", f"{side.backend.name}'s usage"), load_vocabulary()
    for shape, request in requests(["a question", "other scripts"])[::12]:
        usage = side.backend.chat({**_wire(request), "max_tokens": 1})["usage"]
        try:
            prompt = side.backend.chat_prompt(_wire(request))
            expected, mine = len(text_ids(prompt, vocabulary)), len(llama_split.encode(prompt, True))
        except NotComparable:
            expected = mine = len(expected_ids(request))
        known = side.splits_like_llama and usage["prompt_tokens"] == mine
        tally.add(shape, shape, expected, usage["prompt_tokens"], known)
    return tally.decided("llama.cpp's own splitting rule")


def check_stops(side: _Side) -> Check:
    """The ids at which the engine ends a generation."""
    found, decode = set(side.backend.info.stop_ids), load_vocabulary().decode
    tally = Tally("stop ids", f"{side.backend.name}'s own")
    for ident in sorted(GENERATION_STOPS):
        tally.add("must stop", decode([ident]), "stops", "stops" if ident in found else "goes on")
    tally.add("must go on", decode([END]), "goes on", "stops" if END in found else "goes on")
    return tally.decided()
