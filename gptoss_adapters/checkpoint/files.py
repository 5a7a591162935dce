"""The files of a checkpoint: opened without following links out of the named folder, regular files only, read-only
mappings.

A name that an index gives is a plain file name. Links are refused unless they stay inside the folder or follow the
layout of the Hugging Face cache (`models--X/snapshots/REV/name -> models--X/blobs/HASH`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss_adapters.errors import BadInput, OutputError

U8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Stamp = tuple[int, int, int]  # size, time of the last change in ns, inode number
MAX_JSON_BYTES = 100_000_000
MAX_JSON_DEPTH = 64
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, slots=True)
class Source:
    """Where one stored tensor's bytes lie: `nbytes` at `offset` from the start of `file`; `shape` is row-major."""

    file: Path
    name: str
    dtype: str  # as the format spells it: BF16, F32, U8, ... and for GGUF also MXFP4, Q8_0
    shape: tuple[int, ...]
    offset: int
    nbytes: int


_follows_links: ContextVar[bool] = ContextVar("follows_links", default=False)


@contextmanager
def following_links(follow: bool) -> Iterator[None]:
    """Inside it, `locate` takes links that leave their folder, if `follow`: weights that lie on another disk."""
    before = _follows_links.set(follow)
    try:
        yield
    finally:
        _follows_links.reset(before)


_mapped: weakref.WeakSet[MappedFile] = weakref.WeakSet()


class MappedFile:
    """A file as a read-only mapping `buffer`, seen as the byte array `data`. Raises BadInput or OutputError naming the
    file.

    `real`, from `locate`, is what is opened when `path`, which messages show, is a permitted link.
    """

    def __init__(self, path: Path, real: Path | None = None) -> None:
        self.path = path
        self.real = real or path
        descriptor = _open_regular(self.real)
        try:
            self.stamp = stamp_of(os.fstat(descriptor))
            size = self.stamp[0]
            self.buffer: mmap.mmap | bytes = mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b""
            self.data: U8 = np.frombuffer(self.buffer, np.uint8)
        finally:
            os.close(descriptor)
        _mapped.add(self)

    def release(self, offset: int, nbytes: int) -> None:
        """These bytes will not be read for a while: their pages need not stay in this process (the page cache may
        keep them).
        """
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        if isinstance(self.buffer, mmap.mmap) and offset + nbytes > first:
            self.buffer.madvise(mmap.MADV_DONTNEED, first, offset + nbytes - first)

    def check_unchanged(self) -> None:
        """Raises BadInput when the file was replaced, resized or rewritten since it was opened."""
        check_stamp(self.path, self.stamp)


def end_when_a_mapped_file_shrinks() -> None:
    """For programs: touching a mapped page that a file lost ends the process with one line and the exit code of bad
    input.

    The kernel reports it by SIGBUS, from whatever code read the page, so there is nowhere to go on from. What was
    written so far
    stays under its temporary name, as after a kill: the next run removes it.
    """
    ctypes.CDLL(None).signal(signal.SIGBUS, _bus_error_handler)


_ending = threading.Lock()


def _at_bus_error(_: int) -> None:
    _ending.acquire()  # never released: the other threads that read the file wait here for the end
    error = BadInput("a mapped file can no longer be read", hint="run again when nothing writes to the inputs")
    for file in _mapped:
        try:
            check_stamp(file.real, file.stamp)
        except BadInput as e:
            error = e
    os.write(2, f"error: {error}\n".encode())
    os._exit(error.exit_code)


_bus_error_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_at_bus_error)  # kept: C does not


def stamp_of(s: os.stat_result) -> Stamp:
    return s.st_size, s.st_mtime_ns, s.st_ino


def check_stamp(path: Path, before: Stamp) -> None:
    """Raises BadInput when the file is not the one, or not as it was, when `before` was taken."""
    try:
        now = stamp_of(path.stat())
    except OSError:
        now = None
    if now != before:
        raise BadInput(
            "the file changed while it was being read", file=path, hint="run again when nothing writes to it"
        )


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadInput("no such file", file=path) from None
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK):
            raise BadInput("is a symbolic link", file=path) from None
        raise OutputError(f"cannot be opened ({e.strerror})", file=path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput("is not a regular file", file=path)
    return descriptor


def locate(root: Path, name: str) -> Path:
    """The real path of the file `name` of the resolved folder `root`. Raises BadInput when it is missing or lies
    elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise BadInput(
            "a file name that an index gives must be a plain name inside the folder", file=root, got=repr(name)
        )
    path = root / name
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise BadInput("no such file", file=path) from None
    except (OSError, RuntimeError):
        raise BadInput("is a link that leads nowhere", file=path) from None
    if real.parent == root or real.is_relative_to(root) or _in_hub_cache(root, real):
        return real
    if _follows_links.get():
        return real
    raise BadInput(
        "is a link that leaves its folder",
        file=path,
        got=real,
        hint="name the folder that holds the file, or let gptoss-convert --follow-links",
    )


def _in_hub_cache(root: Path, real: Path) -> bool:
    """Whether `root` is (inside) a snapshot of the Hugging Face cache and `real` one of that repository's blobs."""
    return any(p.parent.name == "snapshots" and real.parent == p.parent.parent / "blobs" for p in (root, *root.parents))


def refuse_pickle(path: Path, real: Path | None = None) -> None:
    """Raises BadInput for a pickle checkpoint, known by its name or by its first bytes. Nothing is ever unpickled."""
    hint = "convert it to safetensors with the tool that made it"
    if path.suffix in PICKLE_SUFFIXES:
        raise BadInput("is a pickle checkpoint, which can run code when loaded", file=path, hint=hint)
    if MappedFile(path, real).data[:4].tobytes().startswith(_PICKLE_MAGICS):
        raise BadInput("holds a pickle, whatever its name says", file=path, hint=hint)


def read_json(path: Path, real: Path | None = None) -> dict[str, Any]:
    """One JSON object, strictly: UTF-8, no duplicate key, no NaN or Infinity, at most 64 levels. Raises BadInput."""
    data = MappedFile(path, real).data
    if data.size > MAX_JSON_BYTES:
        raise BadInput(
            "the JSON file is too large", file=path, expected=f"at most {MAX_JSON_BYTES} bytes", got=data.size
        )
    return parse_json(data.tobytes(), path)


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """`data` as one strict JSON object; see read_json."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise BadInput(
            "the JSON is nested too deeply", file=file, expected=f"at most {MAX_JSON_DEPTH} levels"
        ) from None
    except UnicodeDecodeError:
        raise BadInput("the JSON is not UTF-8", file=file) from None
    except ValueError as e:
        raise BadInput(f"the JSON is malformed: {e}", file=file) from None
    if not isinstance(value, dict):
        raise BadInput("the JSON must be an object", file=file, got=type(value).__name__)
    _check_depth(value, file)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        name = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {name!r}")
    return out


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check_depth(value: Any, file: Path) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            x
            for v in level
            if isinstance(v, dict | list)
            for x in (v.values() if isinstance(v, dict) else v)
            if isinstance(x, dict | list)
        ]
        if not level:
            return
    raise BadInput("the JSON is nested too deeply", file=file, expected=f"at most {MAX_JSON_DEPTH} levels")
