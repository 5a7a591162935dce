"""The chunk loop of `fills.py` in native code: no interpreter, no allocation and no extra copy between source and
output.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Sequence

import numpy as np

from gptoss_adapters.checkpoint.writing.plan import Target
from gptoss_adapters.kernels.library import address, library
from gptoss_adapters.kernels.structs import StreamArguments
from gptoss_adapters.mxfp4.oracle import GGML_BLOCK, HF_BLOCK

DONE, SOURCE_ENDS, READ_FAILED, WRITE_FAILED, BAD_VALUE, DIFFERS = range(6)  # StreamResult in native/stream.h
ITEMS = {"BF16": 1, "F16": 2, "F32": 3, "MXFP4": 4, "Q8_0": 5}  # StreamItems


_own = threading.local()  # each thread's scratch


def available() -> bool:
    return library() is not None


def stream(
    sources: Sequence[Target],
    targets: Sequence[Target],
    rows: int,
    groups: int,
    chunk: int,
    *,
    compare: bool,
    dtype: str = "",
) -> tuple[int, StreamArguments]:
    """Runs the loop and returns its result code and arguments; raises OSError when writing or reading back failed.

    sources: (blocks, scales), or one (plain bytes); groups 0 means plain bytes, of which `rows` is the number and
    `dtype` the type.
    """
    native = library()
    assert native is not None
    pairs = [*sources, *sources][:2], [*targets, *targets][:2]
    a = StreamArguments(
        rows=rows, groups=groups, outputs=len(targets), compare=compare, items=ITEMS.get(dtype, 0), chunk=chunk
    )
    for k in range(2):
        (a.in_fd[k], a.in_at[k]), (a.out_fd[k], a.out_at[k]) = pairs[0][k], pairs[1][k]
    a.scratch = _scratch(scratch_bytes(chunk, groups, len(targets)))
    result = native.stream(ctypes.addressof(a))
    if result == WRITE_FAILED:
        error = a.error or errno.EIO
        raise OSError(error, os.strerror(error))
    return result, a


def scratch_bytes(chunk: int, groups: int, outputs: int) -> int:
    """Plain: a round of one chunk and two held back. Repacked: blocks, scales and, per output, a round and two
    chunks held back.
    """
    rows = max(chunk // (groups * GGML_BLOCK), 1) if groups else 0
    return rows * outputs * groups * (HF_BLOCK + 1 + GGML_BLOCK) + (2 * outputs + 1) * chunk


def _scratch(nbytes: int) -> int:
    if getattr(_own, "buffer", None) is None or _own.buffer.size < nbytes:
        _own.buffer = np.empty(nbytes, np.uint8)
    return address(_own.buffer)
