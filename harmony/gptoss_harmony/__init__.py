"""Harmony, the chat format of gpt-oss: render conversations to token ids, parse token ids to messages.

Public names load their module on first use, so that importing the package costs nothing. No public name is also the
name of a submodule: importing that submodule would replace the name by the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    name: module
    for module, names in {
        "errors": ("DecodeError", "HarmonyError", "LayoutError", "ParseError", "RenderError"),
        "messages": (
            "ChannelConfig", "Conversation", "DeveloperContent", "HeaderForm", "Message", "Part", "ReasoningEffort",
            "Role", "SystemContent", "Text", "Tool", "ToolNamespace",
        ),
    }.items()
    for name in names
}  # fmt: skip

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
