"""What Ollama refuses, ignores or misunderstands in a Modelfile that its grammar accepts: every trap as a rule with
a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptoss_adapters.errors import BadInput
from gptoss_converters.ollama.model_files import check_model_files
from gptoss_converters.ollama.modelfile import Command, Finding, decode, scan
from gptoss_converters.ollama.parameters import DEPRECATED, TYPES, explain_misfit
from gptoss_converters.ollama.template_rules import check_template

_NUMBER = "(?:0|[1-9][0-9]*)"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD = r"[0-9A-Za-z-]+"
_VERSION = re.compile(
    rf"v?({_NUMBER})(?:\.({_NUMBER})(?:\.({_NUMBER})"
    rf"(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?(?:\+{_BUILD}(?:\.{_BUILD})*)?)?)?"
)  # as golang.org/x/mod/semver has it: minor and patch may be missing, no leading zeros
REQUIRES_SINCE = (0, 14, 0)
_ONCE = ("template", "system", "renderer", "parser", "requires")


def check(path: Path) -> list[Finding]:
    """Everything that is wrong with a Modelfile and with the model files it names, by line. Raises BadInput when it
    cannot be read.
    """
    if not path.is_file():
        raise BadInput("no such file", file=path, expected="a Modelfile")
    text, odd = decode(path.read_bytes())
    found = check_text(text, path.parent)
    if odd:
        found.append(Finding(odd, "encoding", "a byte that is no UTF-8: Ollama reads U+FFFD for it", warning=True))
    return sorted(found, key=_sort_key)


def check_text(text: str, folder: Path) -> list[Finding]:
    """The same for a text whose paths are relative to `folder`."""
    commands, found = scan(text)
    for rule in _RULES:
        found += rule(commands)
    if not any(f.rule == "no-from" for f in found):
        found += check_model_files(commands, folder)
    return sorted(set(found), key=_sort_key)


def _sort_key(finding: Finding) -> tuple[int, str, str]:
    return finding.line, finding.rule, finding.what


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
        elif why := explain_misfit(c.key, c.value):
            yield Finding(c.line, "parameter-value", f"{c.key} {why}, got {c.value!r}{_hint_at_comment(c)}")
        elif c.key == "stop" and not c.quote and " #" in c.value:
            yield Finding(c.line, "comment-in-value", "# begins no comment here: it is part of the value")


def _hint_at_comment(command: Command) -> str:
    return ": # begins no comment here" if "#" in command.value else ""


def _check_versions(commands: Sequence[Command]) -> Iterator[Finding]:
    for c in commands:
        if c.name == "requires":
            match = _VERSION.fullmatch(c.value.strip())
            if not match:
                yield Finding(c.line, "requires-version", f"REQUIRES takes a version such as 0.30.0, got {c.value!r}")
            elif tuple(int(n or 0) for n in match.groups()) < REQUIRES_SINCE:
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


_RULES: tuple[Callable[[Sequence[Command]], Iterator[Finding]], ...] = (
    _check_characters,
    _check_parameters,
    _check_versions,
    _check_gone,
    _check_repeats,
    _check_modes,
    check_template,
)
