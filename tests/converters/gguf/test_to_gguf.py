"""`to-gguf` against the upstream converter's files: same names, shapes, types, bytes and metadata, except what is
listed here.
"""

import hashlib
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput

GOLD = Path(__file__).parents[2] / "data" / "gguf"
CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"

# Upstream's file, the checkpoint, and our options for the same thing.
VARIANTS = {
    "tiny-mxfp4": ("tiny-mxfp4", GgufOptions()),
    "tiny-bf16": ("tiny-bf16", GgufOptions()),
    "tiny-bf16-deq": ("tiny-bf16-deq", GgufOptions()),
    "tiny-deq-f32": ("tiny-bf16-deq", GgufOptions(dense="f32", experts="f32")),
    "tiny-deq-f16": ("tiny-bf16-deq", GgufOptions(dense="f16", experts="f16")),
    "tiny-deq-q8_0": ("tiny-bf16-deq", GgufOptions(dense="q8_0", experts="q8_0")),
    "tiny-bf16-MXFP4_MOE": ("tiny-bf16", GgufOptions(dense="q8_0", experts="mxfp4")),
    "tiny-bf16-deq-MXFP4_MOE": ("tiny-bf16-deq", GgufOptions(dense="q8_0", experts="mxfp4")),
}
# Names that upstream guesses from the folder's: we write none, a wrong guess is worse. What only we write says where a
# file is from.
ONLY_UPSTREAM = {"general.basename", "general.finetune"}
ONLY_OURS = {"gptoss_adapters.version", "gptoss_adapters.source_kind", "gptoss_adapters.yarn_truncate"}


def convert(source: Path, output: Path, options: GgufOptions = GgufOptions()) -> Path:  # noqa: B008
    write(plan_gguf(open_checkpoint(source), output, options).plan, threads=2, sync=False)
    return output


def tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    return {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, tuple[list[int], object]]:
    fields = gguf.GGUFReader(path).fields
    return {k: ([int(t) for t in f.types], f.contents()) for k, f in fields.items() if not k.startswith("GGUF.")}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_upstream(name: str, tmp_path: Path) -> None:
    source, options = VARIANTS[name]
    ours, theirs = convert(GOLD / "src" / source, tmp_path / "out.gguf", options), GOLD / "gguf" / f"{name}.gguf"
    assert tensors(ours) == tensors(theirs)
    left, right = metadata(ours), metadata(theirs)
    assert right.keys() - left.keys() <= ONLY_UPSTREAM
    assert left.keys() - right.keys() == ONLY_OURS
    assert {k: v for k, v in left.items() if k in right} == {k: v for k, v in right.items() if k in left}


def test_the_config_spelling_of_transformers_5(tmp_path: Path) -> None:
    """The ninth of upstream's files: the weights of tiny-bf16-deq with `rope_parameters`; all but the model's name
    is the same.
    """
    shutil.copytree(GOLD / "src" / "tiny-bf16-deq-tf5", tmp_path / "c", copy_function=shutil.copyfile)
    shutil.copyfile(GOLD / "src" / "tiny-bf16-deq" / "model.safetensors", tmp_path / "c" / "model.safetensors")
    ours, theirs = (
        convert(tmp_path / "c", tmp_path / "out.gguf", GgufOptions(name="Tiny Bf16 Deq")),
        GOLD / "gguf" / "tiny-bf16-deq.gguf",
    )
    assert tensors(ours) == tensors(theirs)
    assert {k: v for k, v in metadata(ours).items() if k not in ONLY_OURS} == {
        k: v for k, v in metadata(theirs).items() if k not in ONLY_UPSTREAM
    }


@pytest.mark.parametrize("name", ["tiny-mxfp4", "tiny-bf16", "tiny-bf16-deq"])
def test_order_of_keys_and_tensors_is_upstream_s(name: str, tmp_path: Path) -> None:
    ours, theirs = convert(GOLD / "src" / name, tmp_path / "out.gguf"), GOLD / "gguf" / f"{name}.gguf"
    assert list(tensors(ours)) == list(tensors(theirs))
    left, right = metadata(ours), metadata(theirs)
    assert [k for k in left if k in right] == [k for k in right if k in left]


@pytest.mark.parametrize("experts", ["f32", "f16", "q8_0", "bf16"])
def test_decoded_experts_equal_those_from_dequantised_weights(experts: str, tmp_path: Path) -> None:
    options = GgufOptions(dense=experts, experts=experts)
    a = convert(GOLD / "src" / "tiny-mxfp4", tmp_path / "a.gguf", options)
    b = convert(GOLD / "src" / "tiny-bf16-deq", tmp_path / "b.gguf", options)
    assert tensors(a) == tensors(b)


@pytest.mark.parametrize("kind", ["original", "hf-mxfp4", "hf-bf16"])
@pytest.mark.parametrize("model", ["tiny", "tiny-margin"])
def test_every_kind_gives_the_same_values(model: str, kind: str, tmp_path: Path) -> None:
    """Gold checkpoints with -0 codes, zero blocks and varied scales; from the original and HF MXFP4 they come back
    as bytes.
    """
    source = open_checkpoint(CHECKPOINTS / model / kind)
    out = convert(CHECKPOINTS / model / kind, tmp_path / "out.gguf", GgufOptions(tokenizer="none"))
    report = compare(source, open_checkpoint(out))
    assert report.ok and report.counts["BYTES EQUAL"] == len(source.tensors)


def test_original_and_hf_layout_give_the_same_file(tmp_path: Path) -> None:
    files = [
        convert(CHECKPOINTS / "tiny" / kind, tmp_path / f"{kind}.gguf", GgufOptions(tokenizer="none"))
        for kind in ("original", "hf-mxfp4")
    ]
    assert tensors(files[0]) == tensors(files[1])


def test_gguf_to_gguf_is_the_same_file(tmp_path: Path) -> None:
    """A GGUF is a checkpoint too: upstream's file through our plan gives upstream's tensors."""
    source = GOLD / "gguf" / "tiny-mxfp4.gguf"
    out = convert(source, tmp_path / "out.gguf", GgufOptions(tokenizer=str(GOLD / "src" / "tiny-mxfp4")))
    assert tensors(out) == tensors(source)
    wide = convert(source, tmp_path / "wide.gguf", GgufOptions(dense="f32", experts="f32", tokenizer="none"))
    assert tensors(wide) == tensors(GOLD / "gguf" / "tiny-deq-f32.gguf")
    assert tensors(
        convert(GOLD / "gguf" / "tiny-deq-q8_0.gguf", tmp_path / "q8.gguf", GgufOptions(tokenizer="none"))
    ) == tensors(GOLD / "gguf" / "tiny-deq-q8_0.gguf")


def test_gguf_to_gguf_keeps_its_name_and_vocabulary(tmp_path: Path) -> None:
    out = convert(GOLD / "gguf" / "tiny-mxfp4.gguf", tmp_path / "out.gguf")
    left, right = metadata(out), metadata(GOLD / "gguf" / "tiny-mxfp4.gguf")
    names = ["general.name", *(k for k in right if k.startswith("tokenizer."))]
    assert len(names) > 9 and [k for k in left if k == "general.name" or k.startswith("tokenizer.")] == names
    assert {k: left[k] for k in names} == {k: right[k] for k in names}
    bare = convert(out, tmp_path / "bare.gguf", GgufOptions(tokenizer="none"))
    with pytest.raises(BadInput, match=r"no tokenizer\.json beside the weights: add --tokenizer"):
        convert(bare, tmp_path / "no.gguf")


BAD_VALUES = {
    "MXFP4": ("tiny-mxfp4", "blk.3.ffn_down_exps.weight", 17 * 700, b"\xff", "MXFP4 scale bytes"),
    "Q8_0": ("tiny-deq-q8_0", "blk.3.ffn_down_exps.weight", 34 * 700, b"\x00\x7e", "NaN or Inf"),
    "F32": ("tiny-mxfp4", "output_norm.weight", 4 * 95, b"\x00\x00\xc0\x7f", "NaN or Inf"),
    "F16": ("tiny-deq-f16", "token_embd.weight", 2 * 48001, b"\x00\xfc", "NaN or Inf"),
    "BF16": ("tiny-bf16", "token_embd.weight", 2 * 48001, b"\x80\xff", "NaN or Inf"),
}


@pytest.mark.parametrize("dense", [None, "f32"])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_of_a_gguf_are_refused(
    case: str, native: bool, dense: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied and decoded: neither brings a NaN of any stored type into a new file."""
    file, tensor, at, value, said = BAD_VALUES[case]
    raw = bytearray((GOLD / "gguf" / f"{file}.gguf").read_bytes())
    source = open_checkpoint(GOLD / "gguf" / f"{file}.gguf")
    place = next(s for t in source.tensors.values() for s in t.sources if s.name == tensor)
    assert place.dtype == case
    raw[place.offset + at : place.offset + at + len(value)] = value
    (tmp_path / "in.gguf").write_bytes(raw)
    if not native:
        monkeypatch.setattr("gptoss_adapters.checkpoint.writing.native_stream.available", lambda: False)
    with pytest.raises(BadInput, match=f"^{tmp_path}/in.gguf: {tensor}: .*{said}"):
        convert(tmp_path / "in.gguf", tmp_path / "out.gguf", GgufOptions(dense=dense, experts=dense, tokenizer="none"))
    with pytest.raises(BadInput, match=f"{tensor}: .*{said}"):
        for name in (broken := open_checkpoint(tmp_path / "in.gguf")).tensors:
            broken.check(name)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_thread_count_does_not_change_a_byte(threads: int, tmp_path: Path) -> None:
    plan = plan_gguf(open_checkpoint(GOLD / "src" / "tiny-mxfp4"), tmp_path / "out.gguf", GgufOptions()).plan
    write(plan, threads=threads)
    assert (tmp_path / "out.gguf").read_bytes() == convert(
        GOLD / "src" / "tiny-mxfp4", tmp_path / "b.gguf"
    ).read_bytes()


def test_without_native_code_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.mxfp4 import codec

    native = [
        convert(GOLD / "src" / name, tmp_path / f"{name}.gguf").read_bytes() for name in ("tiny-mxfp4", "tiny-bf16")
    ]
    monkeypatch.setattr("gptoss_adapters.checkpoint.writing.native_stream.available", lambda: False)
    monkeypatch.setattr(codec, "library", lambda: None)
    slow = [
        convert(GOLD / "src" / name, tmp_path / f"{name}-slow.gguf").read_bytes()
        for name in ("tiny-mxfp4", "tiny-bf16")
    ]
    assert native == slow


def test_split_files_carry_everything_once(tmp_path: Path) -> None:
    options = GgufOptions(split_max_size=300_000)
    convert(GOLD / "src" / "tiny-mxfp4", tmp_path / "out.gguf", options)
    files = sorted(tmp_path.glob("*.gguf"))
    assert [f.name for f in files] == [f"out-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    parts = [tensors(f) for f in files]
    assert {k: v for p in parts for k, v in p.items()} == tensors(GOLD / "gguf" / "tiny-mxfp4.gguf")
    assert sum(map(len, parts)) == 79
    for n, file in enumerate(files):
        keys = metadata(file)
        assert (keys["split.no"][1], keys["split.count"][1], keys["split.tensors.count"][1]) == (n, 3, 79)
        assert ("gpt-oss.block_count" in keys) == (n == 0)
    assert compare(open_checkpoint(GOLD / "src" / "tiny-mxfp4"), open_checkpoint(files[0])).ok


def test_hashes_are_of_the_sources_and_of_the_data(tmp_path: Path) -> None:
    source = GOLD / "src" / "tiny-mxfp4"
    out = convert(source, tmp_path / "out.gguf", GgufOptions(sha256=True))
    reader = gguf.GGUFReader(out)
    said = {
        k: reader.fields[f"gptoss_adapters.{k}"].contents() for k in ("source.files", "source.sha256", "data.sha256")
    }
    assert said["source.files"] == ["model.safetensors"]
    assert said["source.sha256"] == [hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()]
    assert said["data.sha256"] == [hashlib.sha256(out.read_bytes()[reader.data_offset :]).hexdigest()]
    assert tensors(out) == tensors(GOLD / "gguf" / "tiny-mxfp4.gguf")


def test_the_real_vocabulary(tmp_path: Path) -> None:
    """Numbers of facts about real uploads: 201 088 tokens, 446 189 merges, and the hashes of both lists."""
    from gptoss_converters.gguf.tokenizer import find_tokenizer, tokenizer_keys

    from gptoss_adapters.checkpoint.formats.tokenizer_files import write_tokenizer_files
    from gptoss_adapters.spec import GPT_OSS_20B

    write_tokenizer_files(tmp_path)
    checkpoint = open_checkpoint(CHECKPOINTS / "tiny" / "hf-mxfp4")
    checkpoint = checkpoint.with_config(GPT_OSS_20B)
    keys = {k.name: k for k in tokenizer_keys(find_tokenizer(checkpoint, str(tmp_path)), checkpoint)}
    assert keys["tokenizer.ggml.tokens"].count == 201088 and keys["tokenizer.ggml.merges"].count == 446189
    for name, digest in (
        ("tokens", "5ce1c946f3fc8c596d0a0e6d7fc415a80cdce7c8b204eb9d331eefbddfd6b8bf"),
        ("merges", "fbb4bf8ec1a0dec603d12b4f4f7ff2939ff6ae1a8d94e6df0380b74b1c90f66f"),
    ):
        assert hashlib.sha256(b"\n".join(unpack(keys[f"tokenizer.ggml.{name}"].value))).hexdigest() == digest
    types = np.frombuffer(keys["tokenizer.ggml.token_type"].value, np.int32)
    assert {int(t): int(n) for t, n in zip(*np.unique(types, return_counts=True), strict=True)} == {
        1: 199998,
        3: 21,
        5: 1069,
    }
    ids = {k: keys[f"tokenizer.ggml.{k}_token_id"].value for k in ("bos", "eos", "padding")}
    assert ids == {"bos": 199998, "eos": 200002, "padding": 199999}


def unpack(data: bytes) -> list[bytes]:
    out, at = [], 0
    while at < len(data):
        n = int.from_bytes(data[at : at + 8], "little")
        out.append(data[at + 8 : at + 8 + n])
        at += 8 + n
    return out


@pytest.mark.parametrize("written", ["pairs", "strings"])
def test_merges_in_both_spellings(written: str, tmp_path: Path) -> None:
    shutil.copytree(GOLD / "src" / "tiny-mxfp4", tmp_path / "c", copy_function=shutil.copyfile)
    file = tmp_path / "c" / "tokenizer.json"
    raw = json.loads(file.read_text())
    if written == "strings":
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
    file.write_text(json.dumps(raw, ensure_ascii=True))
    out = convert(tmp_path / "c", tmp_path / "out.gguf")
    assert (
        metadata(out)["tokenizer.ggml.merges"] == metadata(GOLD / "gguf" / "tiny-mxfp4.gguf")["tokenizer.ggml.merges"]
    )
