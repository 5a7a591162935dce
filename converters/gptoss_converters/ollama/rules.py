"""What Ollama refuses, ignores or misunderstands in a Modelfile that its grammar accepts: every trap as a rule with
a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptoss_adapters.errors import BadInput
from gptoss_converters.ollama.go_nodes import Include, Template, TemplateError
from gptoss_converters.ollama.go_parser import parse
from gptoss_converters.ollama.model_files import check_model_files
from gptoss_converters.ollama.modelfile import Command, Finding, scan

TYPES: dict[str, type] = {
    **dict.fromkeys(
        [
            "num_ctx",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
            "draft_num_predict",
            "num_keep",
            "seed",
            "num_predict",
            "top_k",
            "repeat_last_n",
        ],
        int,
    ),
    **dict.fromkeys(
        ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"], float
    ),
    "use_mmap": bool,
    "stop": str,
}
DEPRECATED = frozenset(
    {
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
    }
)
RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "num_ctx": (1, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
}
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
REQUIRES_SINCE = (0, 14, 0)
_BOOLS = frozenset({"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"})
_ONCE = ("template", "system", "renderer", "parser", "requires")


def check(path: Path) -> list[Finding]:
    """Everything that is wrong with a Modelfile and with the model files it names, by line. Raises BadInput when it
    cannot be read.
    """
    if not path.is_file():
        raise BadInput("no such file", file=path, expected="a Modelfile")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("is not UTF-8 text", file=path, got=f"byte {error.start}") from None
    return check_text(text, path.parent)


def check_text(text: str, folder: Path) -> list[Finding]:
    """The same for a text whose paths are relative to `folder`."""
    commands, found = scan(text)
    for rule in _RULES:
        found += rule(commands)
    if not any(f.rule == "no-from" for f in found):
        found += check_model_files(commands, folder)
    return sorted(set(found), key=lambda f: (f.line, f.rule, f.what))


def _check_characters(commands: Sequence[Command]) -> Iterator[Finding]:
    for command in commands:
        if command.dropped:
            line, character = command.dropped[0]
            yield Finding(
                line,
                "nonprintable",
                f"{command.name.upper()} holds U+{ord(character):04X}, which Ollama drops without a word",
            )


def _check_parameters(commands: Sequence[Command]) -> Iterator[Finding]:
    for c in commands:
        if c.name != "parameter":
            continue
        if c.key in DEPRECATED:
            yield Finding(c.line, "deprecated-parameter", f"{c.key} does nothing any more", warning=True)
        elif c.key not in TYPES:
            yield Finding(c.line, "unknown-parameter", f"unknown parameter {c.key!r} (expected {', '.join(TYPES)})")
        elif why := _explain_misfit(c.key, c.value):
            yield Finding(c.line, "parameter-value", f"{c.key} {why}, got {c.value!r}{_hint_at_comment(c)}")
        elif c.key == "stop" and not c.quote and " #" in c.value:
            yield Finding(c.line, "comment-in-value", "# begins no comment here: it is part of the value")


def _explain_misfit(key: str, value: str) -> str | None:
    kind = TYPES[key]
    if kind is bool:
        return None if value in _BOOLS else "takes true or false"
    if kind is str:
        return None
    try:
        number = kind(value)
    except ValueError:
        return f"takes {'a whole number' if kind is int else 'a number'}"
    low, high = RANGES.get(key, (float("-inf"), float("inf")))
    return None if low <= number <= high else f"must lie in {low:g}..{high:g}"


def _hint_at_comment(command: Command) -> str:
    return ": # begins no comment here" if "#" in command.value else ""


def _check_versions(commands: Sequence[Command]) -> Iterator[Finding]:
    for c in commands:
        if c.name == "requires":
            match = _VERSION.fullmatch(c.value.strip())
            if not match:
                yield Finding(c.line, "requires-version", f"REQUIRES takes a version such as 0.30.0, got {c.value!r}")
            elif tuple(map(int, match.groups())) < REQUIRES_SINCE:
                yield Finding(
                    c.line,
                    "requires-too-old",
                    f"Ollama before 0.14.0 knows no REQUIRES and refuses the file; for {c.value.strip()} leave "
                    "the line out",
                )


def _check_gone(commands: Sequence[Command]) -> Iterator[Finding]:
    for c in commands:
        if c.name == "adapter":
            yield Finding(c.line, "adapter", "Ollama since 0.34.1 refuses ADAPTER: merge the LoRA before the export")
        if c.name == "draft":
            yield Finding(
                c.line, "draft", "DRAFT needs Ollama 0.23.1, and there is no draft model for gpt-oss", warning=True
            )


def _check_repeats(commands: Sequence[Command]) -> Iterator[Finding]:
    for name in _ONCE:
        for c in [c for c in commands if c.name == name][1:]:
            yield Finding(c.line, "repeated", f"a second {name.upper()}: only the last one counts")
    seen: set[str] = set()
    for c in commands:
        if c.name == "parameter" and c.key != "stop":
            if c.key in seen:
                yield Finding(c.line, "repeated", f"a second PARAMETER {c.key}: only the last one counts")
            seen.add(c.key)


def _check_modes(commands: Sequence[Command]) -> Iterator[Finding]:
    """Which of Ollama's three modes the file asks for, and whether that one works for gpt-oss."""
    by_name = {c.name: c for c in commands}
    parser = by_name.get("parser")
    renderer = by_name.get("renderer")
    if renderer:
        rule, what = (
            ("renderer-harmony", "there is no renderer called harmony")
            if renderer.value.lower() == "harmony"
            else ("renderer", f"{renderer.value} renders another model's format")
        )
        yield Finding(renderer.line, rule, f"{what}: use TEMPLATE, or leave it to the template in the GGUF")
    if parser and parser.value != "harmony":
        yield Finding(parser.line, "parser", f"the parser of gpt-oss is harmony, got {parser.value!r}")
    elif parser and "template" not in by_name:
        yield Finding(
            parser.line,
            "parser-without-template",
            "PARSER harmony without TEMPLATE sends the bare prompt: remove the line, or add a Harmony TEMPLATE",
        )


def _check_template(commands: Sequence[Command]) -> Iterator[Finding]:
    for c in commands:
        if c.name == "template":
            try:
                tree = parse(c.value)
            except TemplateError as error:
                yield Finding(c.line + error.line - 1, "template-syntax", error.reason)
                continue
            yield from _check_meaning(c, tree)


def _check_meaning(c: Command, tree: Template) -> Iterator[Finding]:
    for name, line in _find_includes(tree):
        if name not in tree.defined:
            yield Finding(c.line + line - 1, "template-undefined", f'{{{{template "{name}"}}}} is not defined')
    if not tree.fields & {"Messages", "Response", "Prompt"}:
        yield Finding(
            c.line,
            "template-prompt",
            "the template shows no messages: Ollama appends {{ .Response }} and the model sees nothing of the chat",
        )
    elif "Messages" not in tree.fields:
        yield Finding(
            c.line,
            "template-messages",
            "the template reads no .Messages: tool calls and earlier turns are lost",
            warning=True,
        )
    missing = [tag for tag in ("<|start|>", "<|end|>") if tag not in c.value]
    if missing:
        yield Finding(
            c.line,
            "template-not-harmony",
            f"the template has no {' and no '.join(missing)}: Ollama then parses neither reasoning nor tool calls",
        )


def _find_includes(tree: Template) -> Iterator[tuple[str, int]]:
    waiting = [*tree.body, *(node for body in tree.defined.values() for node in body)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Include):
            yield node.name, node.line
        waiting += [*getattr(node, "body", ()), *getattr(node, "otherwise", ())]


_RULES: tuple[Callable[[Sequence[Command]], Iterator[Finding]], ...] = (
    _check_characters,
    _check_parameters,
    _check_versions,
    _check_gone,
    _check_repeats,
    _check_modes,
    _check_template,
)
