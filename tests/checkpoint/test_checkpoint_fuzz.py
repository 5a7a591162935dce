"""Structure-aware fuzz of both readers: 20,000 mutants, only the declared exception, never a hang, and nothing accepted
that the reference readers reject; and every truncation of a whole file.

The mutants are the same on every run. `GPTOSS_FUZZ=100` makes 100 times as many.
"""

import itertools
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.gguf.tokenizer import find_tokenizer, tokenizer_keys
from helpers.counting import FEW_CALLS, CallCounter
from helpers.hostile import STRING, U64, Gguf, string, write
from helpers.llama_cpp_reads import llama_cpp_says
from helpers.mutants import JUNK, TINY, flip, mutate_gguf, mutate_safetensors, tiny_gguf, tiny_safetensors
from safetensors import SafetensorError, safe_open

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.gguf import GgufFile, open_gguf
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.errors import BadInput

GOLD = Path(__file__).parents[1] / "data"
COUNT = 10_000 * int(os.environ.get("GPTOSS_FUZZ", "1"))


def run(
    count: int, seed: int, make: Callable[[random.Random], bytes], path: Path, read: Callable[[Path], Any]
) -> list[bytes]:
    """Reads `count` mutants; anything but BadInput fails. Gives those that were accepted."""
    r = random.Random(seed)
    accepted = []
    for n in range(count):
        raw = make(r)
        path.write_bytes(raw)
        with CallCounter() as work:
            try:
                read(path)
                accepted.append(raw)
            except BadInput as e:
                assert str(path.parent) in str(e) and str(e).isprintable(), (n, e)
        assert work.calls < FEW_CALLS
    return accepted


def read_gguf(path: Path) -> None:
    c = open_gguf(path)
    for name in c.tensors:
        c.read(name)


def test_fuzz_gguf(tmp_path: Path) -> None:
    base = tiny_gguf()
    assert 15_000 < len(base.bytes()) < 25_000
    read_gguf(write(tmp_path / "base.gguf", base.bytes()))
    accepted = run(COUNT, 1, lambda r: mutate_gguf(base, r), tmp_path / "m.gguf", read_gguf)
    assert 0 < len(accepted) < COUNT // 4
    for raw in accepted[:300]:
        theirs = gguf.GGUFReader(write(tmp_path / "a.gguf", raw))
        assert {t.name for t in theirs.tensors} == set(GgufFile(tmp_path / "a.gguf").tensors)


@pytest.mark.backend("llama_server")
def test_what_fuzz_accepts_llama_cpp_accepts(tmp_path: Path) -> None:
    """Mutants of a file that llama.cpp can run; its vocabulary, whose contents only llama.cpp looks at, stays as it
    is.
    """
    whole = Gguf.parse((GOLD / "gguf" / "gguf" / "tiny-mxfp4.gguf").read_bytes())
    vocabulary = [k for k in whole.keys if k[0].startswith(b"tokenizer.")]
    base = Gguf([k for k in whole.keys if k not in vocabulary], whole.infos, whole.data)
    r, files = random.Random(2), list[Path]()
    for n in range(400):
        path = write(tmp_path / f"{n}.gguf", mutate_gguf(base, r, vocabulary))
        try:
            open_gguf(path)
            files.append(path)
        except BadInput:
            path.unlink()
    assert len(files) >= 10
    files = files[:20]
    assert set(said := llama_cpp_says(files)) == {"accepts"}, said


def test_fuzz_safetensors(tmp_path: Path) -> None:
    base = tiny_safetensors()
    (tmp_path / "config.json").write_text(json.dumps(spellings.to_hf(TINY, mxfp4=True)))
    assert open_checkpoint(write(tmp_path / "model.safetensors", base.bytes()).parent).kind == "hf-mxfp4"
    accepted = run(COUNT, 3, lambda r: mutate_safetensors(base, r), tmp_path / "model.safetensors", SafetensorsFile)
    assert 0 < len(accepted) < COUNT // 2
    for raw in accepted[:1000]:
        path = write(tmp_path / "model.safetensors", raw)
        try:
            with safe_open(path, "numpy") as f:
                assert set(f.keys()) == set(SafetensorsFile(path).tensors)
        except SafetensorError as e:
            raise AssertionError(f"we accept what the library rejects: {e}: {raw[:3000]!r}") from None


def test_fuzz_whole_checkpoints(tmp_path: Path) -> None:
    """The same mutants through `open_checkpoint`: names, shapes and dtypes against the config, then every tensor
    read.
    """
    base = tiny_safetensors()
    (tmp_path / "config.json").write_text(json.dumps(spellings.to_hf(TINY, mxfp4=True)))

    def read(path: Path) -> None:
        c = open_checkpoint(path.parent)
        for name in c.tensors:
            c.read(name)

    run(COUNT // 5, 4, lambda r: mutate_safetensors(base, r), tmp_path / "model.safetensors", read)


def test_fuzz_config(tmp_path: Path) -> None:
    shutil.copytree(GOLD / "checkpoints" / "tiny" / "hf-mxfp4", tmp_path / "x")
    raw = (tmp_path / "x" / "config.json").read_text()

    def make(r: random.Random) -> bytes:
        config = json.loads(raw)
        for _ in range(r.randint(1, 2)):
            target = (
                config["rope_scaling"] if r.random() < 0.3 and isinstance(config.get("rope_scaling"), dict) else config
            )
            if not target:
                continue
            key = r.choice(list(target))
            if r.random() < 0.2:
                del target[key]
            else:
                target[key] = r.choice(JUNK)
        return json.dumps(config).encode() if r.random() < 0.9 else flip(json.dumps(config).encode(), r, 2000)

    options = GgufOptions(tokenizer="none", allow_lossy=True)
    run(
        COUNT // 5,
        5,
        make,
        tmp_path / "x" / "config.json",
        lambda p: plan_gguf(open_checkpoint(p.parent), tmp_path / "out.gguf", options),
    )


def test_every_metadata_key_of_every_type(tmp_path: Path) -> None:
    """Each key with well-formed values of other types, and keys that are read only when they are there."""
    base = tiny_gguf()
    names = [key.decode() for key, _, _ in base.keys] + [f"split.{k}" for k in ("no", "count", "tensors.count")]
    names += [
        "gpt-oss.rope.dimension_count",
        "gpt-oss.rope.scaling.attn_factor",
        "gpt-oss.attention.sliding_window_pattern",
        "tokenizer.ggml.bos_token_id",
    ]
    floats = [struct.pack("<f", x) for x in (0.0, -1.0, 0.5, 1e-40, 1e-37, 3.4028234e38, math.inf, math.nan)]
    values = [
        (STRING, string(b"")),
        (STRING, string(b"yarn")),
        (7, b"\1"),
        (10, b"\xff" * 8),
        (5, b"\xff" * 4),
        *((6, f) for f in floats),
    ]
    for kind, raw in ((4, bytes(4)), (6, floats[2]), (7, b"\1"), (STRING, string(b"a"))):
        values += [(9, kind.to_bytes(4, "little") + U64.pack(n) + raw * n) for n in (0, 1, 2)]
    path = tmp_path / "part-00001-of-00002.gguf"
    for name, (kind, value) in itertools.product(names, values):
        g = base.copy()
        g.set("split.count", 4, (2 if name.startswith("split") else 1).to_bytes(4, "little"))
        g.set(name, kind, value)
        try:
            read_gguf(write(path, g.bytes()))
        except BadInput as e:
            assert str(tmp_path) in str(e) and str(e).isprintable(), (name, e)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_fuzz_tokenizer(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLD / "gguf" / "src" / "tiny-mxfp4", tmp_path / "x", copy_function=shutil.copyfile)
    raw, checkpoint = (tmp_path / "x" / name).read_text(), open_checkpoint(tmp_path / "x")

    def make(r: random.Random) -> bytes:
        whole = json.loads(raw)
        every = places(whole)
        coarse = [p for p in every if len(p[0]) < 50]  # most places are tokens and merges
        container, key = r.choice(coarse if r.random() < 0.7 else every)
        container[key] = r.choice(JUNK)
        return json.dumps(whole).encode()

    run(
        COUNT // 20,
        6,
        make,
        tmp_path / "x" / name,
        lambda p: [k.pack() for k in tokenizer_keys(find_tokenizer(checkpoint, str(p.parent)), checkpoint)],
    )


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    whole = tiny_gguf().bytes().rstrip(b"\0") if kind == "gguf" else tiny_safetensors().bytes()
    path = write(tmp_path / f"x.{kind}", whole)
    reader: Callable[[Path], Any] = GgufFile if kind == "gguf" else SafetensorsFile
    reader(path)
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(BadInput):
            reader(path)


def test_peak_memory_of_hostile_counts(tmp_path: Path) -> None:
    """No number of a file is allocated before it is checked: the whole list of malformed GGUFs in 200 MB."""
    script = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.hostile import Gguf, gguf_cases
from gptoss_adapters.checkpoint.formats.gguf import open_gguf
from gptoss_adapters.errors import BadInput
base = Path(sys.argv[1]).read_bytes()
path = Path(sys.argv[3])
for build in gguf_cases().values():
    path.write_bytes(build(Gguf.parse(base)))
    try:
        open_gguf(path)
        raise SystemExit("accepted")
    except BadInput:
        pass
# ru_maxrss would include the parent's
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    base = GOLD / "gguf" / "gguf" / "tiny-mxfp4.gguf"
    done = subprocess.run(
        [sys.executable, "-c", script, str(base), str(Path(__file__).parents[1]), str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 200, done.stderr
