"""An export whose upload has not ended: what the next run needs to go on there, without converting again.

.create.json in the export's folder: the key of the plan, which stands for sources, options and version, and the
digest of each model file that was written by it and read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_converters.ollama.store import Progress, hash_file
from gptoss_converters.ollama.to_ollama import OllamaModel, write_text


def note(model: OllamaModel, progress: Progress) -> dict[str, str]:
    """Hashes the model files and keeps that; returns sha256:... by file name."""
    digests = _hash_files(model, progress)
    write_text(_path(model), json.dumps({"key": model.plan.key, "digests": digests}))
    return digests


def is_noted(model: OllamaModel) -> bool:
    """Did an earlier run of the same plan write this model to the end?"""
    return _read(model).get("key") == model.plan.key


def find(model: OllamaModel, progress: Progress) -> Mapping[str, str] | None:
    """The digests, if the files still have them; None where the model must be written again."""
    if any(not file.path.is_file() or file.path.stat().st_size != file.size for file in model.plan.files):
        return None
    digests = _hash_files(model, progress)
    return digests if digests == _read(model).get("digests") else None


def forget(model: OllamaModel) -> None:
    """Once the server has the model."""
    _path(model).unlink(missing_ok=True)


def _path(model: OllamaModel) -> Path:
    return model.folder / ".create.json"


def _read(model: OllamaModel) -> dict[str, Any]:
    try:
        found = json.loads(_path(model).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash_files(model: OllamaModel, progress: Progress) -> dict[str, str]:
    return {file.name: f"sha256:{hash_file(file, progress)}" for file in model.files}
