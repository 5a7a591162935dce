"""A path or a Hub repository id -> a local path."""

from __future__ import annotations

from pathlib import Path

from gptoss_adapters.errors import BadInput


def resolve_path(path: str | Path, *, revision: str | None = None) -> Path:
    """The local file or folder that `path` names."""
    local = Path(path)
    if not local.exists():
        raise BadInput("no such file or folder", file=local)
    return local
