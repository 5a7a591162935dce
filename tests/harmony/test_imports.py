"""Importing gptoss_harmony: lazy, quick, and no public name is shadowed by a submodule."""

import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import gptoss_harmony
import pytest

PACKAGE = Path(gptoss_harmony.__file__).parent
SUBMODULES = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE)]))
HEAVY = {
    "tiktoken",
    "toktok",
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "regex",
    "typer",
    "rich",
    "jinja2",
    "requests",
}


def python(code: str) -> str:
    env = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }  # compiled, as installed
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_public_name_is_a_submodule() -> None:
    assert not set(gptoss_harmony.__all__) & set(SUBMODULES)


@pytest.mark.parametrize("name", gptoss_harmony.__all__)
def test_public_name_resolves_to_its_own_module(name: str) -> None:
    value = getattr(gptoss_harmony, name)
    assert not isinstance(value, type(gptoss_harmony))
    assert value.__module__.startswith("gptoss_harmony.")


def test_names_survive_every_import_order() -> None:
    """Each submodule imported before and after each public name; one process per order of two submodules would say
    no more.
    """
    orders = [SUBMODULES, SUBMODULES[::-1]]
    lines = ["import importlib, sys, types, gptoss_harmony as h"]
    for order, names_first in itertools.product(orders, (True, False)):
        lines += [
            "for key in [k for k in sys.modules if k.startswith('gptoss_harmony')]: del sys.modules[key]",
            "import gptoss_harmony as h",
        ]
        resolve = "assert not [n for n in h.__all__ if isinstance(getattr(h, n), types.ModuleType)]"
        lines += [resolve] if names_first else []
        lines += [f"for m in {order!r}: importlib.import_module('gptoss_harmony.' + m); {resolve}"]
    python("\n".join(lines))


@pytest.mark.parametrize("module", SUBMODULES)
def test_each_submodule_imported_first(module: str) -> None:
    python(
        f"import gptoss_harmony.{module}, types, gptoss_harmony as h\n"
        "assert not [n for n in h.__all__ if isinstance(getattr(h, n), types.ModuleType)]"
    )


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, gptoss_harmony; from gptoss_harmony import Message, render, load_vocabulary; load_vocabulary()\n"
    )
    loaded = set(python(code + "print(*{name.split('.')[0] for name in sys.modules})").split())
    assert not loaded & HEAVY


def test_import_is_quick() -> None:
    """50 ms are promised; what they are spent on is counted, as seconds would tell of the machine."""
    code = "import sys; before = set(sys.modules); import gptoss_harmony; from gptoss_harmony import Message, render\n"
    loaded = python(code + "print(*(set(sys.modules) - before))").split()
    theirs = {name.split(".")[0] for name in loaded} - {"gptoss_harmony"}
    assert theirs <= sys.stdlib_module_names
    assert len(loaded) <= 70, sorted(loaded)


def test_type_checkers_see_the_same_names() -> None:
    declared = re.findall(
        r"^    from gptoss_harmony\.([\w.]+) import (\w+) as \2$", (PACKAGE / "__init__.py").read_text(), re.MULTILINE
    )
    assert {name: module for module, name in declared} == gptoss_harmony._MODULE_OF


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gptoss_harmony.no_such_name
