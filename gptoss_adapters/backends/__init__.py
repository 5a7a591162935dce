"""Engines behind one protocol: `open_backend("llama_cpp=model.gguf")`, then `.logits(ids)` or `.generate(ids)`.

Each runs in a child process: it may abort, hang, or need another interpreter. Importing this costs nothing.
"""

from gptoss_adapters.backends.client import Backend, open_backend
from gptoss_adapters.backends.protocol import (
    ENGINES,
    Arithmetic,
    BackendFailed,
    Capabilities,
    Completion,
    Engine,
    Info,
    Request,
    Token,
)

__all__ = [
    "ENGINES",
    "Arithmetic",
    "Backend",
    "BackendFailed",
    "Capabilities",
    "Completion",
    "Engine",
    "Info",
    "Request",
    "Token",
    "open_backend",
]
