"""Finding and choosing the native kernels: `_kernels.so` beside this file, loaded by ctypes (which releases the GIL).

`GPTOSS_MXFP4=portable|avx2|avx512vnni|avx512vbmi|amx|neon` forces an instruction set, `GPTOSS_MXFP4=numpy` the oracles,
which are numpy. Without a compiled library the oracles serve, so an installation without a compiler works, only slower.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptoss_adapters.errors import UsageError

NAMES = ("portable", "avx2", "avx512vnni", "avx512vbmi", "amx", "neon", "numpy")
_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "select": (ctypes.c_char_p, [ctypes.c_char_p]),
    "layouts": (_PTR, []),
    "hf_to_ggml": (None, [_PTR, _PTR, _I64, _I64, _I64, _PTR]),
    "ggml_to_hf": (None, [_PTR, _I64, _I64, _I64, _PTR, _PTR]),
    "compare_ggml": (_I64, [_PTR, _PTR, _I64, _I64, _I64, _PTR]),
    "decode": (None, [_PTR, _PTR, _I64, _I64, _I64, _PTR, _I32]),
    "encode": (_I64, [_PTR, _I32, _I64, _PTR, _PTR, _PTR, _PTR]),
    "measure": (None, [_PTR, _I32, _I64, _PTR, _PTR, _PTR, _PTR, _PTR]),
    "to_f32": (None, [_PTR, _I64, _PTR]),
    "to_f16": (None, [_PTR, _I32, _I64, _PTR]),
    "to_q8_0": (None, [_PTR, _I32, _I64, _PTR]),
    "stream": (_I32, [_PTR]),
    "use_openmp": (None, [_PTR]),
    "moe": (_I32, [_PTR]),
    "matmul": (None, [_PTR, _PTR, _PTR, _I64, _I64, _I64, _PTR, _I32, _I32, _PTR]),
    "linear_bf16": (None, [_PTR, _PTR, _I64, _I64, _I64, _PTR, _I32, _PTR]),
    "pack_count": (None, [_PTR, _I64, _PTR]),
    "pack_rows": (None, [_PTR, _PTR]),
    "pack_listed": (None, [_PTR, _PTR]),
    "unpack_rows": (None, [_PTR, _I64, _I64, _PTR]),
    "linear_packed": (None, [_PTR, _PTR, _I64, _PTR, _PTR]),
    "attend": (None, [_PTR]),
    "rms_norm": (None, [_PTR, _PTR, _I64, _I64, ctypes.c_float, _PTR]),
    "rotate": (None, [_PTR, _PTR, _PTR, _I64, _I64, _I64, _PTR]),
}


class Library:
    """The exported functions as attributes, without their `gptoss_` prefix; `name` is the instruction set in use."""

    def __init__(self, path: Path) -> None:
        dll = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(dll, f"gptoss_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.name = ""

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)


@cache
def _load() -> Library | None:
    import gptoss_adapters.kernels as package  # an editable install has two folders: the sources, and what was built

    built = next((p for folder in package.__path__ if (p := Path(folder, "_kernels.so")).exists()), None)
    try:
        return Library(built) if built else None
    except OSError:
        return None


@cache
def library() -> Library | None:
    """The native functions, or None when the oracles serve. Raises UsageError when GPTOSS_MXFP4 cannot be obeyed."""
    wanted = os.environ.get("GPTOSS_MXFP4", "")
    if wanted not in ("", *NAMES):
        raise UsageError("unknown GPTOSS_MXFP4", expected="|".join(NAMES), got=wanted)
    native = None if wanted == "numpy" else _load()
    if native is None:
        if wanted not in ("", "numpy"):
            raise UsageError(
                f"GPTOSS_MXFP4={wanted}: the native kernels are not built",
                hint="run `make native` or reinstall with a compiler",
            )
        return None
    name = native.select(wanted.encode())
    if name is None:
        raise UsageError(f"GPTOSS_MXFP4={wanted}: this machine cannot run it")
    native.name = name.decode()
    return native


def loaded() -> Library:
    """The native functions, for callers that have made sure that they are there."""
    native = library()
    assert native is not None
    return native


def backend() -> str:
    """What serves: "amx", "avx512vbmi", "avx512vnni", "avx2", "neon" or "portable" (native), or "numpy" (oracles)."""
    native = library()
    return native.name if native else "numpy"


def use_openmp() -> bool:
    """Runs the kernels on torch's OpenMP threads instead of their own; False where this process has none.

    For a process where other work on those threads comes between the products (vLLM's): see `pool.h`.
    """
    native, parallel = library(), _gomp_parallel()
    if native is None or parallel is None:
        return False
    native.use_openmp(parallel)
    return True


def _gomp_parallel() -> int | None:
    """Its address in the runtime that torch is linked to: a process may hold several, which share no threads."""
    with suppress(OSError, AttributeError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        torch = next((line.split(maxsplit=5)[5] for line in lines if line.endswith("/libtorch_cpu.so")), None)
        if torch is not None:
            return ctypes.cast(
                ctypes.CDLL(torch, mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel, ctypes.c_void_p
            ).value
    return None


def address(array: npt.NDArray[np.generic]) -> int:
    """Where a C-contiguous array begins."""
    assert array.flags.c_contiguous, "native kernels read dense arrays"
    return array.ctypes.data
