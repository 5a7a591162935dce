"""gpt-oss checkpoints, MXFP4, the reference model and its backends. Importing this package imports nothing heavy.

>>> from gptoss_adapters import GptOss, generate, open_checkpoint
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.reference.generate import generate
    from gptoss_adapters.reference.model import GptOss
    from gptoss_adapters.reference.taps import Taps

__all__ = ["GptOss", "Taps", "generate", "open_checkpoint"]

_MODULES = {
    "GptOss": "reference.model",
    "Taps": "reference.taps",
    "generate": "reference.generate",
    "open_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
