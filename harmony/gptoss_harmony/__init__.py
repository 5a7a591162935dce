"""Harmony, the chat format of gpt-oss: render conversations to token ids, parse token ids to messages.

Public names load their module on first use, so that importing the package costs nothing. No public name is also the
name of a submodule: importing that submodule would replace the name by the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names once more, for type checkers; a test compares the two
    from .builtin_tools import builtin_namespace as builtin_namespace
    from .errors import DecodeError as DecodeError
    from .errors import HarmonyError as HarmonyError
    from .errors import LayoutError as LayoutError
    from .errors import ParseError as ParseError
    from .errors import RenderError as RenderError
    from .events import Delta as Delta
    from .events import Header as Header
    from .events import MessageEnd as MessageEnd
    from .events import MessageStart as MessageStart
    from .events import TokenCounts as TokenCounts
    from .flags import first_json_value as first_json_value
    from .machine import State as State
    from .messages import ChannelConfig as ChannelConfig
    from .messages import Conversation as Conversation
    from .messages import DeveloperContent as DeveloperContent
    from .messages import HeaderForm as HeaderForm
    from .messages import Message as Message
    from .messages import ReasoningEffort as ReasoningEffort
    from .messages import Role as Role
    from .messages import SystemContent as SystemContent
    from .messages import Text as Text
    from .messages import Tool as Tool
    from .messages import ToolNamespace as ToolNamespace
    from .parser import Parser as Parser
    from .parser import parse as parse
    from .renderer import Renderer as Renderer
    from .renderer import Rendering as Rendering
    from .renderer import Span as Span
    from .renderer import render as render
    from .renderer import render_pieces as render_pieces
    from .renderer import render_spans as render_spans
    from .renderer import render_text as render_text
    from .repair import tool_names as tool_names
    from .schema import typescript as typescript
    from .vocabulary import Tokenizer as Tokenizer
    from .vocabulary import Vocabulary as Vocabulary
    from .vocabulary import load_vocabulary as load_vocabulary

_NAMES = {
    "builtin_tools": "builtin_namespace",
    "errors": "DecodeError HarmonyError LayoutError ParseError RenderError",
    "events": "Delta Header MessageEnd MessageStart TokenCounts",
    "flags": "first_json_value",
    "machine": "State",
    "messages": "ChannelConfig Conversation DeveloperContent HeaderForm Message ReasoningEffort Role SystemContent Text Tool"
    " ToolNamespace",
    "parser": "Parser parse",
    "renderer": "Renderer Rendering Span render render_pieces render_spans render_text",
    "repair": "tool_names",
    "schema": "typescript",
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
