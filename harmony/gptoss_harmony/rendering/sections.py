"""Texts of the system and the developer message: fixed sections, a blank line between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gptoss_harmony.messages import ChannelConfig, DeveloperContent, Part, SystemContent, Text, Tool, ToolNamespace
from gptoss_harmony.rendering.typescript import to_typescript


def part_text(part: Part, functions: bool) -> str:
    """The text of one content part; `functions`: the conversation declares function tools (`has_functions`)."""
    if isinstance(part, Text):
        return part.text
    if isinstance(part, DeveloperContent):
        return developer_text(part)
    return system_text(part, functions)


def has_functions(parts: Iterable[Part]) -> bool:
    """True if developer content among `parts` has tools under the key ``functions``."""
    spaces = [part.tools.get("functions") for part in parts if isinstance(part, DeveloperContent) and part.tools]
    return any(space is not None and space.tools for space in spaces)


def system_text(content: SystemContent, functions: bool) -> str:
    identity = [content.model_identity]
    if content.knowledge_cutoff is not None:
        identity.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.conversation_start_date is not None:
        identity.append(f"Current date: {content.conversation_start_date}")
    lines = [line for line in identity if line is not None]
    sections = ["\n".join(lines)] if lines else []
    if content.reasoning_effort is not None:
        sections.append(f"Reasoning: {content.reasoning_effort.value.lower()}")
    if content.tools:
        sections.append(tools_text(content.tools))
    if content.channel_config is not None and content.channel_config.valid_channels:
        sections.append(_channels_text(content.channel_config, functions))
    return "\n\n".join(sections)


def developer_text(content: DeveloperContent) -> str:
    sections = [] if content.instructions is None else ["# Instructions", content.instructions]
    if content.tools:
        sections.append(tools_text(content.tools))
    return "\n\n".join(sections)


def tools_text(spaces: Mapping[str, ToolNamespace]) -> str:
    """The section ``# Tools``: namespaces in the order of their keys (by code point, so by UTF-8 byte too)."""
    return "\n\n".join(["# Tools", *("\n".join(_namespace_lines(spaces[key])) for key in sorted(spaces))])


def _channels_text(config: ChannelConfig, functions: bool) -> str:
    text = f"# Valid channels: {', '.join(config.valid_channels)}."
    if config.channel_required:
        text += " Channel must be included for every message."
    if functions:
        text += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return text


def _namespace_lines(space: ToolNamespace) -> Iterator[str]:
    yield f"## {space.name}\n"
    yield from _lines(space.description or "", "// " if space.tools else "")
    if space.tools:
        yield f"namespace {space.name} {{\n"
        for tool in space.tools:
            yield from _lines(tool.description, "// ")
            yield f"type {tool.name} = {_signature(tool)} => any;\n"
        yield f"}} // namespace {space.name}"


def _signature(tool: Tool) -> str:
    return "()" if tool.parameters is None else f"(_: {to_typescript(tool.parameters)})"


def _lines(text: str, prefix: str) -> list[str]:
    """Lines of a description, each with `prefix`. A line ends at LF or CR LF; an empty rest is no line."""
    *lines, rest = text.split("\n")
    return [prefix + line.removesuffix("\r") for line in lines] + ([prefix + rest] if rest else [])
