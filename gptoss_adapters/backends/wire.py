"""What parent and child say to each other: JSON messages over a socket pair, arrays as shared memory beside them.

A message is a little-endian u32 length, then that many bytes of JSON. An array travels as the file descriptor of an
anonymous memory file (SCM_RIGHTS), so the bytes are written once, by the engine, and nothing is left behind when a
process dies. The engine's own stdout and stderr never touch this socket.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEADER = struct.Struct("<I")
_MAX_FDS = 8  # arrays in one message


class SharedArray:
    """A writable array in anonymous shared memory: `.array` is the view, `.fd` what another process maps."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        kind = np.dtype(dtype)
        size = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
        self.fd = _memory_file()
        try:
            os.ftruncate(self.fd, size)
            self.array = map_array(self.fd, shape, kind)
        except BaseException:
            os.close(self.fd)
            raise

    @classmethod
    def of(cls, array: np.ndarray) -> SharedArray:
        shared = cls(array.shape, array.dtype)
        shared.array[...] = array
        return shared

    def close(self) -> None:
        os.close(self.fd)


def map_array(fd: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """The array of `shape` in the memory file `fd`; it keeps the memory alive by itself, `fd` may be closed."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(mmap.mmap(fd, max(count * kind.itemsize, 1)), kind, count).reshape(shape)


def _memory_file() -> int:
    if sys.platform == "linux":  # not bounded by the size of /dev/shm, which containers keep at 64 MB
        return os.memfd_create("gptoss-array")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end of the conversation. Sending is thread-safe; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock = sock, threading.Lock()
        self._bytes = bytearray()
        self._fds: list[int] = []

    def send(self, message: Mapping[str, Any], arrays: Mapping[str, SharedArray] | None = None) -> None:
        """Send a message and, by name, arrays. Raises Closed."""
        arrays = arrays or {}
        about = [[name, list(a.array.shape), a.array.dtype.str] for name, a in arrays.items()]
        payload = json.dumps({**message, "arrays": about} if about else message).encode()
        data = memoryview(_HEADER.pack(len(payload)) + payload)
        try:
            with self._lock:
                sent = socket.send_fds(self._sock, [data], [a.fd for a in arrays.values()]) if about else 0
                self._sock.sendall(data[sent:])
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self, seconds: float | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The next message and its arrays. Raises TimeoutError after `seconds` of silence, Closed when the peer is
        gone.
        """
        self._sock.settimeout(seconds)
        size = _HEADER.unpack(self._take(_HEADER.size))[0]
        message = json.loads(self._take(size))
        arrays: dict[str, np.ndarray] = {}
        for name, shape, dtype in message.pop("arrays", ()):
            fd = self._fds.pop(0)
            try:
                arrays[name] = map_array(fd, shape, dtype)
            finally:
                os.close(fd)
        return message, arrays

    def close(self) -> None:
        self._sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def _take(self, size: int) -> bytes:
        while len(self._bytes) < size:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, _MAX_FDS)
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed(str(error)) from error
            self._fds += fds
            if not data:
                raise Closed("the other side closed the connection")
            self._bytes += data
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken
