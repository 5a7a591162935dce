"""The built-in tool namespaces that gpt-oss was trained with: ``browser`` (search, open, find) and ``python``.

Their texts are constants of the format (openai/harmony, Apache-2.0), kept in ``data/builtin_tools.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_harmony.messages import ToolNamespace


def builtin_namespace(name: str) -> ToolNamespace:
    """A new copy of the namespace ``browser`` or ``python``; raises ValueError for any other name."""
    spaces = json.loads((Path(__file__).parent / "data" / "builtin_tools.json").read_text("utf-8"))
    if name not in spaces:
        raise ValueError(f"unknown built-in tool namespace (expected {' or '.join(spaces)} / got {name!r})")
    return ToolNamespace.from_dict(spaces[name])
