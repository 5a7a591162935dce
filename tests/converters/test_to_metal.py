"""OpenAI's Metal model.bin: byte-equal to what OpenAI's writer makes, back again, refusals. Not run on Apple
hardware.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_metal import plan_metal
from gptoss_harmony.vocabulary import load_vocabulary

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.formats import metal
from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import SeedMade
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GPT_OSS_20B, GPT_OSS_120B, GptOssConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from make_metal_references import ODD_METAL, make, sha256

REFERENCES = json.loads(Path(__file__).parents[1].joinpath("data/metal_references/references.json").read_text())[
    "files"
]


def convert(source: Path, out: Path, **options: bool) -> Path:
    write(plan_metal(open_checkpoint(source), out).plan, sync=False, **options)
    return out


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("metal")
    source = make("odd", root / "odd", Kind.HF_MXFP4)
    return source, convert(source, root / "odd.bin")


@pytest.mark.parametrize("name", ["odd", "pocket"])
def test_the_bytes_are_those_of_openais_writer(name: str, tmp_path: Path, odd: tuple[Path, Path]) -> None:
    out = odd[1] if name == "odd" else convert(make(name, tmp_path / name), tmp_path / "model.bin")
    assert {"bytes": out.stat().st_size, "sha256": sha256(out)} == REFERENCES[name]


@pytest.mark.slow
def test_the_bytes_of_two_layers_of_the_true_shape(tmp_path: Path) -> None:
    source = make("20b-2", tmp_path / "20b-2", Kind.HF_MXFP4)
    out = convert(source, tmp_path / "model.bin")
    assert {"bytes": out.stat().st_size, "sha256": sha256(out)} == REFERENCES["20b-2"]
    report = compare(open_checkpoint(source), open_checkpoint(out))
    assert report.ok and report.counts["BYTES EQUAL"] == len(report.results)


def test_the_published_size_is_planned_to_the_byte() -> None:
    cut = dataclasses.replace(GPT_OSS_20B, vocab_size=metal.VOCABULARY)
    head = metal.header(cut)
    assert len(head) == 110 * 16384
    last = metal.entries(cut, len(head))[-1]
    assert last.offset + last.nbytes == 13_750_886_400


def test_the_header_field_by_field() -> None:
    head = metal.header(GPT_OSS_120B)
    assert head[:16] == b"GPT-OSS v1.0\0\0\0\0" and head[16:32].hex() == "df52dc8617894ed0a29566f10508145b"
    assert struct.unpack_from("<6If4I", head, 32) == (131072, 36, 128, 4, 2880, 2880, 7.0, 64, 64, 8, 128)
    theta, inverse, offset, scale, multiplier, eps = struct.unpack_from("<6f", head, 76)
    assert (theta, inverse) == (150000, 1 / 32)
    assert [offset, scale, multiplier, eps] == pytest.approx([-0.869701, 0.107466, 1.346574, 1e-5], abs=1e-6)
    assert (
        head[100:116].hex() == "229177a857754268bfd8d588b351c56d"
        and head[116:132].hex() == "7401aded2a9540cbb7829ccebaafe72b"
    )
    special, text, regex, size = struct.unpack_from("<4I", head, 132)
    assert (special, text, size) == (16, 199_998, 1_797_666)
    at = 148 + 16 * special + regex
    assert head[at - 1] == 0 and head[148 + 16 * 6 : 148 + 16 * 7] == bytes(16)  # 200004 has no name
    assert head[148 + 16 * 10 : 148 + 16 * 11].hex() == "16e40431f47f4b22b59b8b278fc30a54"  # 200008, message
    texts = load_vocabulary().token_bytes
    for token in range(text):
        (n,) = struct.unpack_from("<H", head, at)
        assert head[at + 2 : at + 2 + n] == texts[token]
        at += 2 + n
    assert not any(head[at:])


def test_back_again_all_but_the_dropped_rows(odd: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = odd
    opened = open_checkpoint(out)
    assert opened.kind == "metal" and "drops the rows" in opened.oddities[0]
    a = open_checkpoint(source)
    assert dataclasses.replace(opened.config, vocab_size=a.config.vocab_size) == dataclasses.replace(
        a.config, bos_token_id=199998, pad_token_id=199999
    )
    report = compare(a, opened)
    assert report.ok and report.counts["BYTES EQUAL"] == len(report.results)
    assert [n for n in report.notes if "rows 200014 to 201087 are in" in n] == report.notes[:2]
    for kind in (Kind.HF_MXFP4, Kind.OPENAI, Kind.HF_BF16):
        folder = tmp_path / kind
        folder.mkdir()
        write(plan_hf(opened, folder, HfOptions(kind, tokenizer="none")).plan, sync=False)
        back = open_checkpoint(folder)
        again = compare(opened, back)
        assert again.ok and again.counts["DIFFERENT"] == 0
        for name, info in back.tensors.items():  # every byte that the source had
            if info.encoding != "mxfp4" and a.tensors[name].encoding != "mxfp4":
                want, got = a.array(name), back.array(name)
                assert want[: len(got)].tobytes() == got.tobytes(), name
    third = tmp_path / "again.bin"
    write(plan_metal(open_checkpoint(tmp_path / Kind.HF_MXFP4), third).plan, sync=False)
    assert sha256(third) == sha256(out)
    dense = tmp_path / "dense.bin"  # dequantised, and back by the scales in its side file
    from gptoss_converters.cli.options import rounding_for

    c = open_checkpoint(tmp_path / Kind.HF_BF16)
    write(plan_metal(c, dense, rounding_for(c, None, None)).plan, sync=False)
    assert sha256(dense) == sha256(out)


def test_logits_are_those_of_the_source(odd: tuple[Path, Path]) -> None:
    import torch

    from gptoss_adapters.reference.model import GptOss

    ids = torch.tensor(np.random.default_rng(0).integers(0, 200_000, (1, 40)))
    want, got = (GptOss.from_checkpoint(str(p))(ids) for p in odd)
    # The same weights; but a BLAS may sum in another order where the vocabulary's padding changes a product's shape.
    error = (want[..., : metal.VOCABULARY] - got).norm() / got.norm()
    assert error < 1e-7, error


def test_an_interrupted_run_goes_on_to_the_same_bytes(odd: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "model.bin"
    plan = plan_metal(open_checkpoint(odd[0]), out).plan

    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan, sync=False, commit_seconds=0, progress=stop)
    assert not out.exists()
    write(plan_metal(open_checkpoint(odd[0]), out).plan, sync=False, resume=True, threads=1)
    assert sha256(out) == REFERENCES["odd"]["sha256"]


def small(folder: Path, **changes: object) -> Path:
    config = dataclasses.replace(
        ODD_METAL,
        num_hidden_layers=1,
        num_experts=4,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=8,
        num_key_value_heads=1,
        layer_types=(),
        **changes,
    )
    folder.mkdir()
    write(plan_checkpoint(SeedMade(config, 0), Kind.HF_MXFP4, folder, {}, "small"), sync=False)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 32}, "head_dim: Metal's kernels know one value only"),
        ({"experts_per_token": 2}, "experts_per_token"),
        ({"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ({"yarn_truncate": True}, "yarn_truncate"),
        ({"vocab_size": 1000}, "200014 rows or more"),
    ],
)
def test_what_metal_cannot_express_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    source = small(tmp_path / "c", **change)
    with pytest.raises(BadInput, match=words):
        plan_metal(open_checkpoint(source), tmp_path / "model.bin")


def test_a_value_that_metal_would_change_is_refused(tmp_path: Path) -> None:
    source = small(tmp_path / "c")
    c = open_checkpoint(source)
    for name, at, value, words in (
        ("layers.0.experts.down.weight", 1, b"\xf0", "expected below 240, got 240"),
        ("layers.0.q_proj.weight", 0, b"\x01\x00", "too small to be halved"),
    ):
        place = c.tensors[name].sources[at]
        whole = bytearray(place.file.read_bytes())
        before = whole[place.offset : place.offset + len(value)]
        whole[place.offset : place.offset + len(value)] = value
        place.file.write_bytes(whole)
        with pytest.raises(BadInput, match=words):
            convert(source, tmp_path / "model.bin")
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
        whole[place.offset : place.offset + len(value)] = before
        place.file.write_bytes(whole)


def test_a_damaged_file_is_named(odd: tuple[Path, Path], tmp_path: Path) -> None:
    head, size = odd[1].open("rb").read(metal.PAGE), odd[1].stat().st_size
    bad = tmp_path / "model.bin"
    for change, length, words in (
        (head[:60], 60, "ends within its header"),
        (head, size - 1, "the size does not fit the header"),
        (head[:16] + bytes(16) + head[32:], size, "UUID of the model"),
        (head[:36] + struct.pack("<I", 900) + head[40:], size, "too small for its header|does not fit"),
        (head[:76] + bytes(4) + head[80:], size, "rope fields"),
    ):
        bad.write_bytes(change)
        os.truncate(bad, length)
        for path in (bad, tmp_path):
            with pytest.raises(BadInput, match=words):
                open_checkpoint(path)
    rng = np.random.default_rng(0)
    for _ in range(60):  # any single wrong byte of the fields: refused by name, or another config
        at = int(rng.integers(0, 132))
        bad.write_bytes(head[:at] + bytes([int(rng.integers(0, 256))]) + head[at + 1 :])
        os.truncate(bad, size)
        try:
            assert isinstance(open_checkpoint(bad).config, GptOssConfig)
        except BadInput as e:
            assert "model.bin" in str(e)


def test_plan_names_every_source(odd: tuple[Path, Path], tmp_path: Path) -> None:
    made = plan_metal(open_checkpoint(odd[0]), tmp_path / "m.bin")
    assert (
        isinstance(made.plan, Plan)
        and made.notices[0] == "embedding and head: rows 200014 to 201087 (reserved tokens) are dropped"
    )
    assert all(t.source for f in made.plan.files for t in f.tensors) and "Apple" in made.notices[-1]
