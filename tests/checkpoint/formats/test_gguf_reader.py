"""Our GGUF reader: agrees with gguf-py on good files, refuses every malformed kind, and whatever llama.cpp refuses."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.counting import FEW_CALLS, CallCounter
from helpers.hostile import STRING, U32, U64, Gguf, gguf_cases, string, write
from helpers.llama_cpp_reads import llama_cpp_says

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.formats.gguf import TYPES, GgufFile
from gptoss_adapters.checkpoint.formats.gguf_values import StringArray
from gptoss_adapters.errors import BadInput

TESTS = Path(__file__).parents[2]
GOLD = TESTS / "data" / "gguf"
BASE = GOLD / "gguf" / "tiny-mxfp4.gguf"
CASES = gguf_cases()


@pytest.mark.parametrize("path", sorted((GOLD / "gguf").glob("*.gguf")), ids=lambda p: p.stem)
def test_agrees_with_gguf_py(path: Path) -> None:
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        s = ours.tensors[t.name]
        assert (s.dtype, s.shape[::-1], s.offset, s.nbytes) == (
            t.tensor_type.name,
            tuple(int(n) for n in t.shape),
            t.data_offset,
            t.n_bytes,
        )
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, f in fields.items():
        value = ours.metadata[key]
        assert (list(value) if not isinstance(value, str | int | float) else value) == f.contents(), key


def test_type_sizes_are_those_of_gguf_py() -> None:
    for number, (name, block, nbytes) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, block, nbytes)


@pytest.mark.parametrize("name", CASES)
def test_malformed_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bad.gguf", CASES[name](Gguf.parse(BASE.read_bytes())))
    with pytest.raises(BadInput) as e, CallCounter() as work:
        open_checkpoint(path)
    assert work.calls < FEW_CALLS
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    if (
        any(
            word in name
            for word in (
                "dimension",
                "offset",
                "overlap",
                "hole",
                "type 999",
                "row of 31",
                "2^63 x",
                "shape",
                "truncated",
            )
        )
        and "UTF-8" not in name
    ):
        assert e.value.tensor


@pytest.mark.backend("llama_server")
def test_what_llama_cpp_rejects_we_reject(tmp_path: Path) -> None:
    """Also the reverse of the test above: the control is accepted, and llama.cpp rejects most of the cases."""
    base = BASE.read_bytes()
    paths = [write(tmp_path / f"{i}.gguf", build(Gguf.parse(base))) for i, build in enumerate(CASES.values())]
    assert Gguf.parse(base).bytes() == base
    control, *said = llama_cpp_says([BASE, *paths])
    assert control == "accepts" and open_checkpoint(BASE).kind == "gguf"
    assert sum(s != "accepts" for s in said) >= 40, dict(zip(CASES, said, strict=True))


REQUIRED = [
    "context_length",
    "attention.sliding_window",
    "expert_feed_forward_length",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "expert_used_count",
    "block_count",
]


@pytest.mark.backend("llama_server")
def test_keys_that_llama_cpp_needs_we_need(tmp_path: Path) -> None:
    files = []
    for key in REQUIRED:
        g = Gguf.parse(BASE.read_bytes())
        g.keys = [k for k in g.keys if k[0] != f"gpt-oss.{key}".encode()]
        files.append(write(tmp_path / f"{key}.gguf", g.bytes()))
    for tensor in ("output.weight", "blk.2.attn_sinks.weight", "blk.1.ffn_up_exps.bias"):
        g = Gguf.parse(BASE.read_bytes())
        g.info(tensor).name = b"something.else"
        files.append(write(tmp_path / f"{tensor}.gguf", g.bytes()))
    assert "accepts" not in llama_cpp_says(files)
    for file in files:
        with pytest.raises(BadInput):
            open_checkpoint(file)


def test_versions_2_and_3_are_read(tmp_path: Path) -> None:
    g = Gguf.parse(BASE.read_bytes())
    g.version = 2
    assert len(open_checkpoint(write(tmp_path / "v2.gguf", g.bytes())).tensors) == 71


def test_another_alignment_is_obeyed(tmp_path: Path) -> None:
    g = Gguf.parse(BASE.read_bytes())
    g.set("general.alignment", 4, U32.pack(64))
    data = b""
    for t in g.infos:
        s = GgufFile(BASE).tensors[t.name.decode()]
        t.offset = len(data)
        data += BASE.read_bytes()[s.offset : s.offset + s.nbytes]
        data += b"\0" * (-len(data) % 64)
    g.alignment, g.data = 64, data
    assert (
        compare(open_checkpoint(write(tmp_path / "a.gguf", g.bytes())), open_checkpoint(BASE)).counts["BYTES EQUAL"]
        == 71
    )


def split(tmp_path: Path, parts: int, **change: int) -> Path:
    """BASE in several files, as llama.cpp's splitter writes them."""
    g, raw = Gguf.parse(BASE.read_bytes()), BASE.read_bytes()
    infos, step = g.infos, -(-len(g.infos) // parts)
    for i in range(parts):
        part = Gguf(g.keys if i == 0 else [], [], b"")
        part.keys = [k for k in part.keys if not k[0].startswith(b"split.")]
        for key, kind, value in (("no", 2, i), ("count", 2, parts), ("tensors.count", 5, len(infos))):
            value = change.get(f"{key.replace('.', '_')}_{i}", value)
            part.keys.append((f"split.{key}".encode(), kind, value.to_bytes(2 if kind == 2 else 4, "little")))
        for t in infos[i * step : (i + 1) * step]:
            s = GgufFile(BASE).tensors[t.name.decode()]
            part.infos.append(type(t)(t.name, t.ne, t.kind, len(part.data)))
            part.data += raw[s.offset : s.offset + s.nbytes]
            part.data += b"\0" * (-len(part.data) % 32)
        write(tmp_path / f"m-{i + 1:05d}-of-{parts:05d}.gguf", part.bytes())
    return tmp_path / f"m-00001-of-{parts:05d}.gguf"


def test_split_files_are_one_checkpoint(tmp_path: Path) -> None:
    c = open_checkpoint(split(tmp_path, 3))
    assert len(c.stored) == 3 and compare(c, open_checkpoint(BASE)).counts["BYTES EQUAL"] == 71
    assert compare(open_checkpoint(tmp_path), c).ok  # by folder


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first = split(tmp_path, 3)
    with pytest.raises(BadInput, match="part of a split"):
        open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(BadInput, match=r"m-00003-of-00003\.gguf: no such file"):
        open_checkpoint(first)
    with pytest.raises(BadInput, match="not the part"):
        open_checkpoint(split(tmp_path, 3, no_1=2))
    with pytest.raises(BadInput, match=r"split\.tensors\.count"):
        open_checkpoint(split(tmp_path, 3, tensors_count_0=70))
    (tmp_path / "m-00001-of-00003.gguf").rename(tmp_path / "renamed.gguf")
    with pytest.raises(BadInput, match="part of a split"):
        open_checkpoint(tmp_path / "renamed.gguf")


def real_vocabulary_file(path: Path) -> Path:
    """A file with as many strings as the real vocabulary: 201,088 tokens and 446,189 merges of the real mean
    lengths.
    """
    tokens, merges = (
        b"".join(string(b"%010d" % i) for i in range(201088)),
        b"".join(string(b"%05d %05d" % (i % 99999, i % 77777)) for i in range(446189)),
    )
    g = Gguf.parse(BASE.read_bytes())
    g.set("tokenizer.ggml.tokens", 9, U32.pack(STRING) + U64.pack(201088) + tokens)
    g.set("tokenizer.ggml.merges", 9, U32.pack(STRING) + U64.pack(446189) + merges)
    return write(path, g.bytes())


MEASURE = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.counting import CallCounter
from gptoss_adapters.checkpoint.formats.gguf import GgufFile
with CallCounter() as work:
    file = GgufFile(Path(sys.argv[1]))
    names = list(file.tensors), list(file.metadata)
# ru_maxrss would include the parent's
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([work.calls, peak / 1024, len(file.metadata["tokenizer.ggml.merges"])]))
"""


def test_a_real_vocabulary_opens_quickly(tmp_path: Path) -> None:
    """One call for each of 647 277 strings, which are cut out of the file when they are asked for."""
    path = real_vocabulary_file(tmp_path / "v.gguf")
    command = [sys.executable, "-c", MEASURE, str(path), str(TESTS)]
    calls, megabytes, merges = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert merges == 446189 and calls < 660_000 and megabytes <= 150


def test_string_arrays_are_lazy_sequences(tmp_path: Path) -> None:
    tokens = GgufFile(BASE).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray) and len(tokens) == 512
    assert tokens[480] == "<|startoftext|>" and tokens[-1] == "[PAD511]" and tokens[2:4] == list(tokens)[2:4]
    assert [r.decode() for r in tokens.raw()] == list(tokens)
    g = Gguf.parse(BASE.read_bytes())
    g.set("x.y", 9, U32.pack(STRING) + U64.pack(2) + string(b"ok") + string(b"\xff"))
    odd = GgufFile(write(tmp_path / "odd.gguf", g.bytes())).metadata["x.y"]
    assert odd[0] == "ok"
    with pytest.raises(BadInput, match="not UTF-8"):
        list(odd)


def test_gate_and_up_come_back_interleaved() -> None:
    c, source = open_checkpoint(BASE), open_checkpoint(GOLD / "src" / "tiny-mxfp4")
    for name in ("layers.2.experts.gate_up.weight", "layers.2.experts.down.weight"):
        for ours, theirs in zip(c.mxfp4(name), source.mxfp4(name), strict=True):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(c.mxfp4(name, 6)[0], source.mxfp4(name)[0][6])
    assert np.array_equal(c.array("layers.2.experts.gate_up.bias"), source.read("layers.2.experts.gate_up.bias"))


def test_q8_0_is_decoded_as_gguf_py_does() -> None:
    path = GOLD / "gguf" / "tiny-deq-q8_0.gguf"
    c = open_checkpoint(path)
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    assert np.array_equal(c.read("layers.1.q_proj.weight"), stored["blk.1.attn_q.weight"])
    assert np.array_equal(c.read("layers.1.experts.gate_up.weight")[:, 1::2], stored["blk.1.ffn_up_exps.weight"])
    assert np.array_equal(
        c.read("layers.1.experts.gate_up.weight", expert=3), c.read("layers.1.experts.gate_up.weight")[3]
    )
