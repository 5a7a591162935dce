"""llama.cpp's own MXFP4 product in this process, through the ggml libraries of llama-cpp-python (no model, no
context).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PTR, SIZE, I64, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
TYPE_F32, TYPE_MXFP4 = 0, 39
REPACK = "_Z35ggml_backend_cpu_repack_buffer_typev"  # exported, but with its C++ name

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_new_tensor_2d": (PTR, [PTR, INT, I64, I64]),
    "ggml_mul_mat": (PTR, [PTR, PTR, PTR]),
    "ggml_new_graph": (PTR, [PTR]),
    "ggml_build_forward_expand": (None, [PTR, PTR]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (PTR, [PTR, PTR]),
    "ggml_backend_buffer_get_base": (PTR, [PTR]),
    "ggml_backend_buffer_get_size": (SIZE, [PTR]),
    "ggml_backend_tensor_set": (None, [PTR, PTR, SIZE, SIZE]),
    "ggml_backend_tensor_get": (None, [PTR, PTR, SIZE, SIZE]),
    "ggml_backend_graph_compute": (INT, [PTR, PTR]),
    "ggml_backend_cpu_init": (PTR, []),
    "ggml_backend_cpu_set_n_threads": (None, [PTR, INT]),
    "ggml_backend_cpu_buffer_type": (PTR, []),
    REPACK: (PTR, []),
}


def advise(address: int, size: int, huge: bool) -> None:
    """Asks for huge or for ordinary pages, in memory that nobody has touched yet; OSError when the kernel refuses."""
    start, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [PTR, SIZE, INT]
    if madvise(start, end - start, mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE):
        raise OSError(ctypes.get_errno(), "madvise")


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", SIZE), ("mem_buffer", PTR), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions above, from whichever of ggml's libraries has them."""

    def __init__(self) -> None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise SystemExit("this part needs llama-cpp-python: see scripts/install_llama_cpp.sh")
        folder = Path(spec.origin).parent / "lib"
        libraries = [
            ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu", "ggml")
        ]
        for name, (result, arguments) in {**FUNCTIONS, "ggml_init": (PTR, [_Init])}.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.backend = self.ggml_backend_cpu_init()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def context(self) -> Any:
        return self.ggml_init(_Init(64 << 20, None, True))


class GgmlExperts:
    """`experts` [E] of GGML rows [N, G * 17] as weight tensors, plain or repacked; `product(count, tokens)`
    multiplies `count` at once.
    """

    def __init__(self, ggml: Ggml, experts: list[np.ndarray], width: int, repack: bool, huge: bool) -> None:
        self.ggml, self.width, self.rows = ggml, width, len(experts[0])
        context = ggml.context()
        self.weights = [ggml.ggml_new_tensor_2d(context, TYPE_MXFP4, width, self.rows) for _ in experts]
        kind = getattr(ggml, REPACK)() if repack else ggml.ggml_backend_cpu_buffer_type()
        buffer = kind and ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        if not buffer:
            raise SystemExit("ggml: no buffer for the weights")
        advise(ggml.ggml_backend_buffer_get_base(buffer), ggml.ggml_backend_buffer_get_size(buffer), huge)
        for tensor, rows in zip(self.weights, experts, strict=True):
            ggml.ggml_backend_tensor_set(tensor, rows.ctypes.data, 0, rows.nbytes)

    def product(self, first: int, count: int, x: np.ndarray) -> tuple[Callable[[int], None], Callable[[], np.ndarray]]:
        """A function that computes weights[first : first + count] times x [T, K] on n threads, and one that gives
        [count, T, N].
        """
        g, context = self.ggml, self.ggml.context()
        graph = g.ggml_new_graph(context)
        inputs = g.ggml_new_tensor_2d(context, TYPE_F32, self.width, len(x))
        outputs = [g.ggml_mul_mat(context, w, inputs) for w in self.weights[first : first + count]]
        for out in outputs:
            g.ggml_build_forward_expand(graph, out)
        g.ggml_backend_alloc_ctx_tensors_from_buft(context, g.ggml_backend_cpu_buffer_type())
        g.ggml_backend_tensor_set(inputs, x.ctypes.data, 0, x.nbytes)

        def run(threads: int) -> None:
            g.ggml_backend_cpu_set_n_threads(g.backend, threads)
            if g.ggml_backend_graph_compute(g.backend, graph):
                raise RuntimeError("ggml: compute failed")

        def result() -> np.ndarray:
            y = np.empty((count, len(x), self.rows), np.float32)
            for i, out in enumerate(outputs):
                g.ggml_backend_tensor_get(out, y[i].ctypes.data, 0, y[i].nbytes)
            return y

        return run, result
