"""The distribution: one wheel with three packages, with and without a compiler; extras that resolve; imports that
cost nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = (
    "torch",
    "transformers",
    "tiktoken",
    "gguf",
    "huggingface_hub",
    "rich",
    "typer",
    "llama_cpp",
    "xllamacpp",
    "triton",
    "vllm",
)
EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - {"all", "test", "vllm"})  # vllm alone wants CUDA packages


@pytest.mark.parametrize(
    "package",
    [
        "gptoss_harmony",
        "gptoss_adapters",
        "gptoss_converters",
        "gptoss_adapters.checkpoint",
        "gptoss_adapters.backends",
    ],
)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_console_scripts_point_at_something() -> None:
    import importlib

    for target in PROJECT["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_the_wheel_with_and_without_a_compiler(tmp_path: Path, compiler: bool) -> None:
    env = dict(os.environ) if compiler else os.environ | {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT, f"-Cbuild-dir={tmp_path}/b"], env=env, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith("py3-none-any.whl") is not compiler
    assert ("gptoss_adapters/kernels/_kernels.so" in names) is compiler
    for package in ("gptoss_harmony", "gptoss_adapters", "gptoss_converters"):
        assert f"{package}/py.typed" in names
    target = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", target, wheel], check=True)
    # without the hook of an editable installation
    only_paths = "import sys; sys.meta_path = [f for f in sys.meta_path if isinstance(f, type)]; "
    code = only_paths + "from gptoss_adapters import mxfp4; print(mxfp4.backend(), mxfp4.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    backend, file = ran.stdout.split()
    assert Path(file).is_relative_to(target)
    assert (backend == "numpy") is not compiler


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_on_its_own(extra: str) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--dry-run",
            "--ignore-installed",
            f"{ROOT}[{extra}]",
            "torch==2.13.0",
        ],
        check=True,
    )
