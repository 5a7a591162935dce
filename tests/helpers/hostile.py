"""Builders of damaged files for the tests: GGUF and safetensors taken apart, changed, and put together again."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
_DOWN, _NORM = "blk.0.ffn_down_exps.weight", "output_norm.weight"


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return U64.pack(len(data)) + data


@dataclass
class Info:
    name: bytes
    ne: list[int]  # fastest first
    kind: int
    offset: int


@dataclass
class Gguf:
    """A GGUF file in parts; `bytes()` puts it together, with `n_tensors` and `n_keys` as they are unless overridden."""

    keys: list[tuple[bytes, int, bytes]]
    infos: list[Info]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes) -> Gguf:
        at = 24
        n_tensors, n_keys = U64.unpack_from(raw, 8)[0], U64.unpack_from(raw, 16)[0]

        def text() -> bytes:
            nonlocal at
            n = U64.unpack_from(raw, at)[0]
            at += 8 + n
            return raw[at - n : at]

        def skip(kind: int) -> None:
            nonlocal at
            if kind == STRING:
                text()
            elif kind == ARRAY:
                inner, n = U32.unpack_from(raw, at)[0], U64.unpack_from(raw, at + 4)[0]
                at += 12
                for _ in range(n):
                    skip(inner)
            else:
                at += SIZES[kind]

        keys, infos = [], []
        for _ in range(n_keys):
            key, kind = text(), U32.unpack_from(raw, at)[0]
            at += 4
            begin = at
            skip(kind)
            keys.append((key, kind, raw[begin:at]))
        for _ in range(n_tensors):
            name, dims = text(), U32.unpack_from(raw, at)[0]
            ne = [U64.unpack_from(raw, at + 4 + 8 * i)[0] for i in range(dims)]
            at += 4 + 8 * dims
            infos.append(Info(name, ne, U32.unpack_from(raw, at)[0], U64.unpack_from(raw, at + 4)[0]))
            at += 12
        return cls(keys, infos, raw[-(-at // 32) * 32 :])

    def bytes(self) -> bytes:
        out = self.magic + U32.pack(self.version) + U64.pack(self.counts.get("n_tensors", len(self.infos)))
        out += U64.pack(self.counts.get("n_keys", len(self.keys)))
        for key, kind, value in self.keys:
            out += string(key) + U32.pack(kind) + value
        for t in self.infos:
            out += (
                string(t.name)
                + U32.pack(len(t.ne))
                + b"".join(U64.pack(n) for n in t.ne)
                + U32.pack(t.kind)
                + U64.pack(t.offset)
            )
        return out + b"\0" * (-len(out) % self.alignment) + self.data

    def copy(self) -> Gguf:
        return deepcopy(self)

    def set(self, key: str, kind: int, value: bytes) -> None:
        """Replaces a key's value, or adds the key."""
        at = next((i for i, (k, _, _) in enumerate(self.keys) if k == key.encode()), len(self.keys))
        self.keys[at : at + 1] = [(key.encode(), kind, value)]

    def info(self, name: str) -> Info:
        return next(t for t in self.infos if t.name == name.encode())


Case = Callable[[Gguf], bytes]


def gguf_cases() -> dict[str, Case]:
    """Every malformed kind by name: the 27 of the strictness table, and the causes of the published GGUF
    vulnerabilities.
    """
    return {**_header_cases(), **_key_cases(), **_info_cases(), **_data_cases()}


def _parts(change: Callable[[Gguf], Any]) -> Case:
    def build(g: Gguf) -> bytes:
        change(g)
        return g.bytes()

    return build


def _put(key: str, kind: int, value: bytes) -> Case:
    return _parts(lambda g: g.set(key, kind, value))


def _tensor(name: str, **new: Any) -> Case:
    return _parts(lambda g: g.info(name).__dict__.update(new))


def _header_cases() -> dict[str, Case]:
    """The magic number, the version and the counts."""
    return {
        "wrong magic": _parts(lambda g: setattr(g, "magic", b"GGUX")),
        "version 0": _parts(lambda g: setattr(g, "version", 0)),
        "version 1": _parts(lambda g: setattr(g, "version", 1)),
        "version 99": _parts(lambda g: setattr(g, "version", 99)),
        "big-endian version": _parts(lambda g: setattr(g, "version", 3 << 24)),
        "n_tensors 2^64-1": _parts(lambda g: g.counts.update(n_tensors=2**64 - 1)),
        "n_keys 2^64-1": _parts(lambda g: g.counts.update(n_keys=2**64 - 1)),
        "n_keys 2^31": _parts(lambda g: g.counts.update(n_keys=2**31)),
        "n_tensors one more": _parts(lambda g: g.counts.update(n_tensors=len(g.infos) + 1)),
        "n_tensors whose size overflows (CVE-2024-21836)": _parts(lambda g: g.counts.update(n_tensors=2**61)),
        "n_keys whose size overflows (CVE-2024-23605)": _parts(lambda g: g.counts.update(n_keys=2**60)),
        "empty file": lambda g: b"",
        "magic only": lambda g: b"GGUF",
        "header cut at 40 bytes": lambda g: g.bytes()[:40],
    }


def _key_cases() -> dict[str, Case]:
    """Keys and their values."""
    return {
        "key length 2^64-1 (CVE-2024-23496)": lambda g: g.bytes()[:24] + b"\xff" * 8 + g.bytes()[32:],
        "empty key": _parts(lambda g: g.keys.append((b"", 4, U32.pack(1)))),
        "key not UTF-8": _parts(lambda g: g.keys.append((b"\xff\xfe", 4, U32.pack(1)))),
        "key with a newline": _parts(lambda g: g.keys.append((b"a\nb", 4, U32.pack(1)))),
        "duplicate key": _parts(lambda g: g.keys.append(g.keys[0])),
        "string value length 2^63": _put("x.y", STRING, U64.pack(2**63) + b"abc"),
        "unknown value type 13": _put("x.y", 13, U32.pack(1)),
        "value type 2^32-1": _put("x.y", 2**32 - 1, U32.pack(1)),
        "boolean 2": _put("x.y", 7, b"\x02"),
        "array length 2^60": _put("x.y", ARRAY, U32.pack(4) + U64.pack(2**60)),
        "array length whose size overflows (CVE-2024-21825)": _put("x.y", ARRAY, U32.pack(10) + U64.pack(2**61 + 1)),
        "string array length 2^60": _put("x.y", ARRAY, U32.pack(STRING) + U64.pack(2**60)),
        "string array with a length past the end": _put("x.y", ARRAY, U32.pack(STRING) + U64.pack(1) + U64.pack(2**62)),
        "array of arrays": _put("x.y", ARRAY, U32.pack(ARRAY) + U64.pack(1) + U32.pack(4) + U64.pack(1) + U32.pack(1)),
        "array of an unknown type": _put("x.y", ARRAY, U32.pack(77) + U64.pack(1) + U32.pack(1)),
        "general.alignment 0": _put("general.alignment", 4, U32.pack(0)),
        "general.alignment 13": _put("general.alignment", 4, U32.pack(13)),
        "general.alignment as a string": _put("general.alignment", STRING, string("32")),
        "general.alignment 2^20, data at 32": _put("general.alignment", 4, U32.pack(1 << 20)),
    }


def _info_cases() -> dict[str, Case]:
    """The list of tensors: names, shapes and types."""
    return {
        "duplicate tensor name": _parts(lambda g: setattr(g.infos[1], "name", g.infos[0].name)),
        "tensor name of 64 bytes": _parts(lambda g: setattr(g.infos[0], "name", b"x" * 64)),
        "empty tensor name": _parts(lambda g: setattr(g.infos[0], "name", b"")),
        "tensor name not UTF-8": _parts(lambda g: setattr(g.infos[0], "name", b"\xc3\x28")),
        "five dimensions": _parts(lambda g: setattr(g.info(_NORM), "ne", [*g.info(_NORM).ne, 1, 1, 1, 1])),
        "no dimension": _tensor(_NORM, ne=[]),
        "2^32-1 dimensions (CVE-2024-21802)": lambda g: g.bytes().replace(
            string(_NORM) + U32.pack(1), string(_NORM) + b"\xff" * 4, 1
        ),
        "dimension product overflows (CVE-2025-53630)": _tensor(_DOWN, ne=[2**32, 2**32, 2**32]),
        "2^63 x 2^63": _tensor(_NORM, ne=[2**63, 2**63]),
        "negative dimension": _tensor(_NORM, ne=[2**64 - 96]),
        "sizes that add up to a wrap (CVE-2026-27940)": _tensor(_NORM, ne=[2**62]),
        "zero dimension": _tensor(_NORM, ne=[0]),
        "shape larger than the file (CVE-2026-7482)": _tensor("output.weight", ne=[96, 1 << 30]),
        "unknown type 999": _tensor(_NORM, kind=999),
        "removed type 4": _tensor(_NORM, kind=4),
        "type 2^31": _tensor(_NORM, kind=2**31),
        "MXFP4 row of 31": _parts(lambda g: g.info(_DOWN).ne.__setitem__(0, 31)),
    }


def _data_cases() -> dict[str, Case]:
    """Where the tensors lie, and what is there."""
    return {
        "offset past the end": _tensor(_NORM, offset=2**40),
        "offset 2^64-32": _tensor(_NORM, offset=2**64 - 32),
        "offset not aligned": _parts(lambda g: setattr(g.infos[1], "offset", g.infos[1].offset + 7)),
        "two tensors overlap": _parts(lambda g: setattr(g.infos[2], "offset", g.infos[1].offset)),
        "a hole between tensors": _parts(lambda g: [setattr(t, "offset", t.offset + 32) for t in g.infos[5:]]),
        "data truncated by 64 bytes": lambda g: g.bytes()[:-64],
        "no data at all": _parts(lambda g: setattr(g, "data", b"")),
        "1000 trailing bytes": lambda g: g.bytes() + b"\0" * 1000,
    }


@dataclass
class Safetensors:
    """A safetensors file in parts. `text`, when set, replaces the header."""

    header: dict[str, Any]
    data: bytes
    text: bytes | None = None
    size: int | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Safetensors:
        n = U64.unpack_from(raw)[0]
        return cls(json.loads(raw[8 : 8 + n]), raw[8 + n :])

    def bytes(self) -> bytes:
        text = self.text if self.text is not None else json.dumps(self.header).encode()
        return U64.pack(len(text) if self.size is None else self.size) + text + self.data

    def copy(self) -> Safetensors:
        return deepcopy(self)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
