"""What a server starts from what its user named: which engine, and how long a context, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptoss_adapters.backends.context import SIZED, fit_context
from gptoss_adapters.backends.protocol import read_spec
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import GptOssError, UsageError, missing_extra

_LLAMA = {"llama_server": "xllamacpp", "llama_cpp": "llama_cpp"}
"""Engines for a GGUF file, the first choice first, and the package that each needs."""


@dataclass(slots=True)
class Start:
    """spec and options: of `open_backend`. said: (event, facts) lines for the log."""

    spec: str
    options: dict[str, Any]
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def plan_start(
    path: str | None, backend: str | None, options: dict[str, Any], context: int | None, slots: int
) -> Start:
    """Raises UsageError where nothing is named, or two things are; BadInput for a file that is no model, or an engine
    that is not installed.
    """
    start = Start(_choose_spec(path, backend), dict(options))
    name, _, model = read_spec(start.spec)
    if backend is None:
        why = f"{path} is a {'GGUF file' if name in _LLAMA else 'checkpoint'}"
        start.said.append(("engine", {"backend": name, "why": why, "change": "--backend"}))
    if context is not None:
        if "n_ctx" in options:
            raise UsageError("the context is given twice", got=f"--context {context}, --set n_ctx={options['n_ctx']}")
        start.options["n_ctx"] = context
    elif "n_ctx" not in options:
        _fit(start, name, model, slots)
    return start


def _choose_spec(path: str | None, backend: str | None) -> str:
    if path is None and backend is None:
        raise UsageError("no model is named", expected="a file or folder, or --backend NAME=PATH")
    if backend is None:
        assert path is not None
        checkpoint = open_checkpoint(path)
        if checkpoint.kind is not Kind.GGUF:
            if find_spec("torch") is None:
                raise missing_extra("torch", "torch")
            return f"torch={path}"
        name = next((name for name, package in _LLAMA.items() if find_spec(package)), None)
        if name is None:
            raise missing_extra("llama.cpp", "llama-server")
        return f"{name}={_file_of(checkpoint, path)}"
    if path is None:
        return backend
    if read_spec(backend)[2] is not None:
        raise UsageError("two models are named", got=f"{path}, --backend {backend}")
    return f"{backend}={path}"


def _file_of(checkpoint: Checkpoint, path: str) -> str:
    """llama.cpp opens files: the one in a folder, in Ollama's store or from the Hub."""
    return path if Path(path).is_file() else str(min(checkpoint.stored))


def _fit(start: Start, name: str, model: str | None, slots: int) -> None:
    """Choose the context, where the engine is one whose memory is known. What is wrong with the model the engine says
    itself.
    """
    if name == "ollama":
        start.options["n_ctx"] = None
        words = "the model's own maximum; Ollama manages the memory"
        start.said.append(("context", {"why": words, "change": "--context TOKENS"}))
        return
    if name not in SIZED or model is None or "://" in model:
        return
    try:
        fit = fit_context(name, open_checkpoint(model), start.options, slots)
    except (GptOssError, OSError):
        return
    start.options["n_ctx"] = fit.tokens
    start.said.append(("context", {"tokens": fit.tokens, "why": fit.reason, "change": "--context TOKENS"}))
