"""Dense experts as MXFP4 (GPTOSS_ADAPTERS_QUANTIZE), encoded once on a machine and kept in vLLM's cache.

    $VLLM_CACHE_ROOT/gptoss_adapters/<sha256>.safetensors    named by the experts' own bytes and the rounding
    $VLLM_CACHE_ROOT/gptoss_adapters/<sha256>.source         the first name, for files that were not touched since

Ranks and restarts find the file there, and all of a machine's ranks share its pages. The first to come encodes, the
others wait for it. Where the folder cannot be written every rank encodes for itself, in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import numpy as np

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK
from gptoss_adapters.vllm_plugin import log

RULE = "mse"  # the smallest squared error, see `mxfp4.encode`
VERSION = 1  # of what stands in the file


class _Entry(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


ReadPacked = Callable[[str], tuple[U8, U8]]  # a weight's canonical name -> blocks [E, O, G, 16], scales [E, O, G]


def open_quantised(checkpoint: Checkpoint) -> ReadPacked:
    """The dense experts' weights of a checkpoint in MXFP4. Raises BadInput for a NaN or Inf among them."""
    if checkpoint.deltas:  # an adapter's weights have no stored bytes by which to know them again
        return lambda name: quantise_weight(checkpoint, name)
    try:
        with hold(_folder() / f"{_digest_stamps(checkpoint)}.source") as memory:
            key = memory.read_text()
            if len(key) != 64:
                key = digest_experts(checkpoint)
                memory.write_text(key)
        path = _folder() / f"{key}.safetensors"
        with hold(path.with_suffix(".lock")):
            if not _is_complete(path, checkpoint):
                _encode_into(path, checkpoint)
        file = SafetensorsFile(path, path.resolve())
    except OSError as error:
        log.warning("gptoss-adapters: the experts are quantised without a cache: %s", error)
        return lambda name: quantise_weight(checkpoint, name)
    log.info("gptoss-adapters: experts in MXFP4 from %s", path)

    def read(name: str) -> tuple[U8, U8]:
        blocks, scales = (file.tensors[f"{name}.{part}"] for part in ("blocks", "scales"))
        return tuple(  # type: ignore[return-value]
            file.data[s.offset : s.offset + s.nbytes].reshape(s.shape) for s in (blocks, scales)
        )

    return read


def quantise_weight(checkpoint: Checkpoint, name: str) -> tuple[U8, U8]:
    """blocks [E, O, I / 32, 16], scales [E, O, I / 32] of a dense expert weight; one expert is in memory at a time."""
    e, o, i = checkpoint.tensors[name].shape
    blocks = np.empty((e, o, i // MXFP4_BLOCK, MXFP4_BLOCK // 2), np.uint8)
    scales = np.empty((e, o, i // MXFP4_BLOCK), np.uint8)
    for n, (one, its_scales) in enumerate(_encode_each(checkpoint, name)):
        blocks[n], scales[n] = one, its_scales
    return blocks, scales


def list_dense_experts(checkpoint: Checkpoint) -> list[str]:
    """Canonical names of the expert weights that are to be quantised, in forward order."""
    return [
        name
        for name, info in checkpoint.tensors.items()
        if name.endswith(("experts.gate_up.weight", "experts.down.weight")) and info.encoding != "mxfp4"
    ]


def digest_experts(checkpoint: Checkpoint) -> str:
    """sha256 of what the file is made of: the experts' stored bytes, how they lie, and the rounding."""
    found = hashlib.sha256(f"{VERSION} {RULE} {checkpoint.kind}".encode())
    for name in list_dense_experts(checkpoint):
        info = checkpoint.tensors[name]
        found.update(f"\n{name} {info.shape} {info.encoding}\n".encode())
        for source in info.sources:
            found.update(checkpoint.raw(source).data)
        checkpoint.release(name)
    return found.hexdigest()


@contextmanager
def hold(path: Path) -> Iterator[Path]:
    """Keeps every other process of this machine out of what `path` stands for; waits for one that is in it. The file is
    there, empty at first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("gptoss-adapters: waiting for the process that quantises the experts")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def _folder() -> Path:
    import vllm.envs

    return Path(vllm.envs.VLLM_CACHE_ROOT) / "gptoss_adapters"


def _digest_stamps(checkpoint: Checkpoint) -> str:
    """Of the files' identities: a file that is written to, replaced or moved to another disk has another one."""
    found = hashlib.sha256(f"{VERSION} {RULE} {checkpoint.kind}".encode())
    for file in sorted(checkpoint.stored.values(), key=lambda file: str(file.real)):
        s = file.real.stat()
        found.update(f"\n{file.real} {s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}".encode())
    return found.hexdigest()


def _encode_each(checkpoint: Checkpoint, name: str) -> Iterator[tuple[U8, U8]]:
    for expert in range(checkpoint.tensors[name].shape[0]):
        yield mxfp4.encode(np.ascontiguousarray(checkpoint.array(name, expert=expert)), rule=RULE)


def _is_complete(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether an earlier process's file is there and what this one would write."""
    try:
        found = SafetensorsFile(path, path.resolve()).tensors
    except (FileNotFoundError, BadInput):
        return False
    header, _ = _plan(checkpoint)
    return {name: list(s.shape) for name, s in found.items()} == {name: e["shape"] for name, e in header.items()}


def _encode_into(path: Path, checkpoint: Checkpoint) -> None:
    """The whole file, one expert in memory at a time; nothing has its name before it is complete."""
    start = time.monotonic()
    header, size = _plan(checkpoint)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    part = path.with_suffix(".part")
    log.info("gptoss-adapters: quantising the experts, %.1f GB into %s", size / 1e9, path)
    try:
        with part.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, begin + size)  # a full disk is known now, not after minutes
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            for name in list_dense_experts(checkpoint):
                places = [begin + header[f"{name}.{what}"]["data_offsets"][0] for what in ("blocks", "scales")]
                for pieces in _encode_each(checkpoint, name):
                    for n, piece in enumerate(pieces):
                        os.pwrite(file.fileno(), piece.tobytes(), places[n])
                        places[n] += piece.nbytes
                checkpoint.release(name)
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    log.info("gptoss-adapters: quantised the experts in %.0f s", time.monotonic() - start)


def _plan(checkpoint: Checkpoint) -> tuple[dict[str, _Entry], int]:
    """The safetensors header, and the bytes behind it."""
    header: dict[str, _Entry] = {}
    end = 0
    for name in list_dense_experts(checkpoint):
        e, o, i = checkpoint.tensors[name].shape
        scales = [e, o, i // MXFP4_BLOCK]
        for what, shape in (("blocks", [*scales, MXFP4_BLOCK // 2]), ("scales", scales)):
            nbytes = math.prod(shape)
            header[f"{name}.{what}"] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + nbytes]}
            end += nbytes
    return header, end
