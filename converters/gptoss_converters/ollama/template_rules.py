"""What is wrong with a TEMPLATE for gpt-oss: its syntax, what it leaves out, and what fails when it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gptoss_converters.ollama.go_execute import execute
from gptoss_converters.ollama.go_nodes import Include, NotKnownHere, Template, TemplateError
from gptoss_converters.ollama.go_parser import parse
from gptoss_converters.ollama.modelfile import Command, Finding
from gptoss_converters.ollama.prompt import make_functions, make_values

OLLAMA_DEFAULT = "{{ .Prompt }}"
_CALL = {"id": "1", "function": {"name": "find", "arguments": {"text": "x", "count": 1}}}
_SCHEMA = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "text": {"type": "string", "description": "what", "enum": ["x", "y"]},
        "count": {"type": ["integer", "null"]},
        "all": {"type": "array", "items": {"type": "string"}},
    },
}
_TOOL = {"type": "function", "function": {"name": "find", "description": "Finds it.", "parameters": _SCHEMA}}
_CHATS: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "hi"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "thinking": "It is x.", "tool_calls": [_CALL]},
            {"role": "tool", "content": "3", "tool_name": "find"},
        ],
        "tools": [_TOOL],
        "think": "high",
    },
)


def check_template(commands: Sequence[Command]) -> Iterator[Finding]:
    """What is wrong with each TEMPLATE, by the line within the Modelfile."""
    for c in commands:
        if c.name == "template":
            try:
                tree = parse(c.value)
            except TemplateError as error:
                yield Finding(c.line + error.line - 1, "template-syntax", error.reason)
                continue
            found = list(_check_meaning(c, tree))
            yield from found
            if not found:
                yield from _try_out(c, tree)


def _check_meaning(c: Command, tree: Template) -> Iterator[Finding]:
    if c.value.strip() == OLLAMA_DEFAULT:
        yield Finding(
            c.line,
            "template-default",
            "this is what Ollama shows where there is no TEMPLATE: the one in the GGUF serves; leave the line out",
            warning=True,
        )
        return
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


def _try_out(c: Command, tree: Template) -> Iterator[Finding]:
    """The template on small chats: what Go finds wrong only then, Ollama answers with an error 500."""
    for chat in _CHATS:
        try:
            execute(tree, make_values(chat), make_functions("2026-01-31"))
        except NotKnownHere:
            return
        except RecursionError:
            yield Finding(c.line, "template-execution", "a template calls itself without end")
            return
        except TemplateError as error:
            yield Finding(c.line + error.line - 1, "template-execution", f"{error.reason}: every such chat would fail")
            return
