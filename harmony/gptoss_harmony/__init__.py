"""Harmony, the chat format of gpt-oss: render conversations to token ids, parse token ids to messages.

Public names load their module on first use, so that importing the package costs nothing. No public name is also the
name of a submodule: importing that submodule would replace the name by the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names once more, for type checkers; a test compares the two
    from gptoss_harmony.builtin_tools import builtin_namespace as builtin_namespace
    from gptoss_harmony.errors import DecodeError as DecodeError
    from gptoss_harmony.errors import HarmonyError as HarmonyError
    from gptoss_harmony.errors import LayoutError as LayoutError
    from gptoss_harmony.errors import ParseError as ParseError
    from gptoss_harmony.errors import RenderError as RenderError
    from gptoss_harmony.messages import ChannelConfig as ChannelConfig
    from gptoss_harmony.messages import Conversation as Conversation
    from gptoss_harmony.messages import DeveloperContent as DeveloperContent
    from gptoss_harmony.messages import HeaderForm as HeaderForm
    from gptoss_harmony.messages import Message as Message
    from gptoss_harmony.messages import ReasoningEffort as ReasoningEffort
    from gptoss_harmony.messages import Role as Role
    from gptoss_harmony.messages import SystemContent as SystemContent
    from gptoss_harmony.messages import Text as Text
    from gptoss_harmony.messages import Tool as Tool
    from gptoss_harmony.messages import ToolNamespace as ToolNamespace
    from gptoss_harmony.parsing.events import Delta as Delta
    from gptoss_harmony.parsing.events import Header as Header
    from gptoss_harmony.parsing.events import MessageEnd as MessageEnd
    from gptoss_harmony.parsing.events import MessageStart as MessageStart
    from gptoss_harmony.parsing.events import TokenCounts as TokenCounts
    from gptoss_harmony.parsing.flags import first_json_value as first_json_value
    from gptoss_harmony.parsing.machine import State as State
    from gptoss_harmony.parsing.parser import Parser as Parser
    from gptoss_harmony.parsing.parser import parse as parse
    from gptoss_harmony.parsing.tool_names import tool_names as tool_names
    from gptoss_harmony.rendering.renderer import Renderer as Renderer
    from gptoss_harmony.rendering.renderer import Rendering as Rendering
    from gptoss_harmony.rendering.renderer import Span as Span
    from gptoss_harmony.rendering.renderer import render as render
    from gptoss_harmony.rendering.renderer import render_pieces as render_pieces
    from gptoss_harmony.rendering.renderer import render_spans as render_spans
    from gptoss_harmony.rendering.renderer import render_text as render_text
    from gptoss_harmony.rendering.typescript import to_typescript as to_typescript
    from gptoss_harmony.vocabulary import Tokenizer as Tokenizer
    from gptoss_harmony.vocabulary import Vocabulary as Vocabulary
    from gptoss_harmony.vocabulary import load_vocabulary as load_vocabulary

_NAMES = {
    "builtin_tools": "builtin_namespace",
    "errors": "DecodeError HarmonyError LayoutError ParseError RenderError",
    "messages": "ChannelConfig Conversation DeveloperContent HeaderForm Message ReasoningEffort Role"
    " SystemContent Text Tool ToolNamespace",
    "parsing.events": "Delta Header MessageEnd MessageStart TokenCounts",
    "parsing.flags": "first_json_value",
    "parsing.machine": "State",
    "parsing.parser": "Parser parse",
    "parsing.tool_names": "tool_names",
    "rendering.renderer": "Renderer Rendering Span render render_pieces render_spans render_text",
    "rendering.typescript": "to_typescript",
    "vocabulary": "Tokenizer Vocabulary load_vocabulary",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
