"""Our safetensors reader: agrees with the library on good files, and refuses every malformed header, shard set and
index.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.counting import FEW_CALLS, CallCounter
from helpers.hostile import U64, Safetensors, write
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.errors import BadInput

GOLD = Path(__file__).parents[2] / "data" / "checkpoints" / "tiny"
MIXED = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.uint8),
    "c": np.array(3, np.int64),
    "d": np.zeros((0, 4), np.float16),
}


@pytest.fixture
def base(tmp_path: Path) -> Safetensors:
    save_file(MIXED, tmp_path / "base.safetensors", metadata={"format": "np"})
    return Safetensors.parse((tmp_path / "base.safetensors").read_bytes())


@pytest.mark.parametrize(
    "path", sorted(GOLD.parent.rglob("*.safetensors")), ids=lambda p: f"{p.parts[-3]}-{p.parts[-2]}-{p.stem}"
)
def test_agrees_with_the_library(path: Path) -> None:
    file, theirs = SafetensorsFile(path), load_file(path)
    assert set(file.tensors) == set(theirs)
    for name, source in file.tensors.items():
        assert source.shape == theirs[name].shape
        assert file.data[source.offset : source.offset + source.nbytes].tobytes() == theirs[name].tobytes()
    with safe_open(path, "numpy") as f:
        assert file.metadata == (f.metadata() or {})


def test_scalars_and_empty_tensors(base: Safetensors, tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "x.safetensors", base.bytes()))
    assert {n: s.shape for n, s in file.tensors.items()} == {n: a.shape for n, a in MIXED.items()}


def with_entry(name: str, **fields: Any) -> Callable[[Safetensors], bytes]:
    def build(s: Safetensors) -> bytes:
        s.header[name] = {**s.header.get(name, {}), **fields}
        return s.bytes()

    return build


def with_text(change: Callable[[bytes], bytes]) -> Callable[[Safetensors], bytes]:
    def build(s: Safetensors) -> bytes:
        s.text = change(json.dumps(s.header).encode())
        return s.bytes()

    return build


def renamed(name: str) -> Callable[[Safetensors], bytes]:
    def build(s: Safetensors) -> bytes:
        s.header[name] = s.header.pop("b")
        return s.bytes()

    return build


def shifted(s: Safetensors, name: str, begin: int, end: int) -> bytes:
    a, b = s.header[name]["data_offsets"]
    s.header[name]["data_offsets"] = [a + begin, b + end]
    return s.bytes()


CASES: dict[str, Callable[[Safetensors], bytes]] = {
    "empty file": lambda s: b"",
    "seven bytes": lambda s: b"\0" * 7,
    "header length zero": lambda s: U64.pack(0),
    "header length 2^63": lambda s: U64.pack(2**63) + s.bytes()[8:],
    "header length 2^64-1": lambda s: U64.pack(2**64 - 1) + s.bytes()[8:],
    "header longer than the file": lambda s: U64.pack(len(s.bytes())) + s.bytes()[8:],
    "header one byte short": lambda s: U64.pack(len(json.dumps(s.header)) - 1) + s.bytes()[8:],
    "header one byte long": lambda s: U64.pack(len(json.dumps(s.header)) + 1) + s.bytes()[8:],
    "header of 101 MB": lambda s: U64.pack(101_000_000) + b"{" + b" " * 101_000_000,
    "not UTF-8": with_text(lambda t: t.replace(b'"a"', b'"\xff"')),
    "UTF-8 with a byte order mark": with_text(lambda t: b"\xef\xbb\xbf" + t),
    "leading space": with_text(lambda t: b" " + t),
    "NaN": with_text(lambda t: t.replace(b"[2, 3]", b"[2, NaN]")),
    "Infinity": with_text(lambda t: t.replace(b"[2, 3]", b"[Infinity, 3]")),
    "nested 5,000 deep": with_text(lambda t: t[:-1] + b', "z": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "nested 500,000 deep": with_text(lambda t: b'{"z": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "a list": with_text(lambda t: b"[" + t + b"]"),
    "no JSON": with_text(lambda t: b"{" + b"x" * 30),
    "two JSON objects": with_text(lambda t: t + t),
    "trailing comma": with_text(lambda t: t[:-1] + b",}"),
    "single quotes": with_text(lambda t: t.replace(b'"', b"'")),
    "duplicate tensor": with_text(lambda t: t[:-1] + b', "a": ' + json.dumps(json.loads(t)["a"]).encode() + b"}"),
    "duplicate field": with_text(lambda t: t.replace(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "F32"')),
    "number of 5,000 digits": with_text(lambda t: t.replace(b"[2, 3]", b"[" + b"9" * 5000 + b", 3]")),
    "hole": lambda s: shifted(s, "b", 1, 1),
    "overlap": lambda s: shifted(s, "b", -1, -1),
    "trailing bytes": lambda s: s.bytes() + b"\0",
    "short by one": lambda s: s.bytes()[:-1],
    "no data": lambda s: s.bytes()[: -len(s.data)],
    "begin after end": lambda s: with_entry("b", data_offsets=[9, 4])(s),
    "negative dimension": with_entry("a", shape=[-2, -3]),
    "float dimension": with_entry("a", shape=[2.0, 3]),
    "string dimension": with_entry("a", shape=["2", 3]),
    "boolean dimension": with_entry("a", shape=[True, 6]),
    "dimension 2^53+1": with_entry("a", shape=[2**53 + 1, 3]),
    "dimension 2^64": with_entry("a", shape=[2**64, 0]),
    "product overflows to the right size": with_entry("a", shape=[2**62 + 6, 4]),
    "shape not a list": with_entry("a", shape=6),
    "shape null": with_entry("a", shape=None),
    "offsets not a list": with_entry("a", data_offsets="0,24"),
    "one offset": with_entry("a", data_offsets=[0]),
    "three offsets": with_entry("a", data_offsets=[0, 24, 24]),
    "negative offset": with_entry("a", data_offsets=[-24, 0]),
    "float offset": with_entry("a", data_offsets=[0, 24.0]),
    "offset 2^63": with_entry("a", data_offsets=[2**63, 2**63 + 24]),
    "unknown dtype": with_entry("a", dtype="F31"),
    "sub-byte dtype": with_entry("a", dtype="F4"),
    "dtype in lower case": with_entry("a", dtype="f32"),
    "dtype not a string": with_entry("a", dtype=["F32"]),
    "dtype of another size": with_entry("a", dtype="F16"),
    "unknown field": with_entry("a", strides=[3, 1]),
    "missing dtype": lambda s: (s.header["a"].pop("dtype"), s.bytes())[1],
    "missing offsets": lambda s: (s.header["a"].pop("data_offsets"), s.bytes())[1],
    "entry null": lambda s: (s.header.update(z=None), s.bytes())[1],
    "entry a list": lambda s: (s.header.update(z=[]), s.bytes())[1],
    "metadata a list": lambda s: (s.header.update(__metadata__=[]), s.bytes())[1],
    "metadata with a number": lambda s: (s.header.update(__metadata__={"format": 1}), s.bytes())[1],
    "empty name": renamed(""),
    "name ../x": renamed("../x"),
    "absolute name": renamed("/etc/passwd"),
    "name with a NUL": renamed("b\0.weight"),
    "name with an escape sequence": renamed("b\x1b[31m"),
    "name with a newline": renamed("b\nok: all fine"),
    "name that runs right to left": renamed("b\u202eweight"),
    "name of 10 kB": renamed("b" * 10_000),
}


@pytest.mark.parametrize("name", CASES)
def test_malformed_is_refused(base: Safetensors, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bad.safetensors", CASES[name](base))
    with pytest.raises(BadInput) as e, CallCounter() as work:
        SafetensorsFile(path)
    assert work.calls < FEW_CALLS
    assert str(e.value).startswith(f"{path}: ") and str(e.value).isprintable()


TENSORS = json.loads(
    (GOLD / "hf-mxfp4" / "model.safetensors").read_bytes()[8:][
        : U64.unpack((GOLD / "hf-mxfp4" / "model.safetensors").read_bytes()[:8])[0]
    ]
)


def test_a_hundred_thousand_tensors_cost_a_hundred_times_what_a_thousand_do(tmp_path: Path) -> None:
    def calls(number: int) -> int:
        header = {f"t.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(number)}
        path = write(tmp_path / "many.safetensors", Safetensors(header, b"\0" * number).bytes())
        with CallCounter() as work:
            assert len(SafetensorsFile(path).tensors) == number
        return work.calls

    assert calls(100_000) < 105 * calls(1000)
