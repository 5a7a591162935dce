"""Importing gptoss_adapters: lazy and quick; its public names come from their own modules, in no circle."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gptoss_adapters

HEAVY = ("torch", "numpy", "transformers", "triton", "typer", "safetensors", "gguf", "huggingface_hub", "tiktoken")
MODULES = ("cache", "checks", "decode_graph", "experts", "generate", "linear", "loading", "model", "ops", "packed")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, gptoss_adapters; print(*(set({HEAVY!r}) & set(sys.modules)))"
    assert run_python(code).split() == []


@pytest.mark.parametrize("name", gptoss_adapters.__all__)
def test_public_name_resolves_to_its_own_module(name: str) -> None:
    value = getattr(gptoss_adapters, name)
    assert value.__name__ == name and value.__module__.startswith("gptoss_adapters.")


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gptoss_adapters.nothing  # noqa: B018


def test_each_module_of_the_reference_can_be_imported_first() -> None:
    """Forgetting our own modules in between: torch is loaded once."""
    lines = ["import importlib, sys, torch"]
    for module in MODULES:  # not "tracing": it registers operators, which torch takes once
        lines += [
            f"importlib.import_module('gptoss_adapters.reference.{module}')",
            "for key in [k for k in sys.modules if k.startswith('gptoss_adapters')]: del sys.modules[key]",
        ]
    run_python("\n".join(lines))
