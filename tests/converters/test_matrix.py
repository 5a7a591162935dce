"""Every input kind times every output kind: bytes or values by the comparer, files where they must be identical, logits
by the reference.

The weights are MXFP4 values throughout (odd shapes, and the gold checkpoint), so that every output has a right answer:
MXFP4 in and MXFP4 out are the same bytes; dense kinds hold the same values, and get the bytes back when the original
scales are known.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gptoss_converters.cli.options import open_input, rounding_for
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.rows.quantised import Quantised, Rounding
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_metal import plan_metal
from gptoss_converters.to_mlx import plan_mlx
from helpers.crafted import GOLD, with_config
from helpers.kinds import save, write_blob, write_kind
from safetensors.numpy import load_file

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput
from gptoss_adapters.reference.model import GptOss

PROMPT = torch.tensor([[3, 17, 99, 200, 5, 42, 42, 7, 250, 31, 8, 120, 64, 77, 90, 2]])
GGUF_TYPES = {
    "gguf-mxfp4": {},
    "gguf-bf16": {"experts": "bf16"},
    "gguf-f32": {"experts": "f32", "dense": "f32"},
    "gguf-f16": {"experts": "f16"},
    "gguf-q8_0": {"experts": "q8_0", "dense": "q8_0"},
}
BLOBS = {"ollama": {}, "ollama-fused-old": {"fused": True, "old_type": True}}
SAFETENSORS = ("hf-mxfp4", "openai", "hf-quark", "hf-compressed-tensors", "hf-bf16", "hf-bf16-out-in", "hf-defused")
INPUTS = (*SAFETENSORS, *(f"{k}, 3 shards" for k in SAFETENSORS), *GGUF_TYPES, *BLOBS, Kind.MLX)
OUTPUTS = ("gguf", "gguf-mxfp4", "hf-mxfp4", "hf-bf16", "openai", Kind.MLX)
LOSSY = ("gguf-q8_0",)  # the one input whose values are not the original's


def to_gguf(source: Path, out: Path, **options: str) -> Path:
    c = open_input(str(source), None)
    write(plan_gguf(c, out, GgufOptions(tokenizer="none", **options), rounding_for(c, None, None)).plan, sync=False)
    return out


def to_hf(
    source: Path,
    out: Path,
    kind: str,
    scales_from: Path | None = None,
    lora: list[str] | None = None,
    exact_yarn: bool = False,
    **options: int,
) -> Path:
    c = open_input(str(source), None, lora, exact_yarn=exact_yarn)
    out.mkdir()
    write(
        plan_hf(c, out, HfOptions(kind, **options), rounding_for(c, None, scales_from and str(scales_from))).plan,
        sync=False,
    )
    return out


def to_mlx(source: Path, out: Path) -> Path:
    c = open_input(str(source), None)
    out.mkdir()
    write(plan_mlx(c, out, HfOptions(Kind.MLX, tokenizer="none"), rounding_for(c, None, None)).plan, sync=False)
    return out


def make(output: str, source: Path, folder: Path, exact_yarn: bool = False) -> Path:
    if output == "gguf":
        return to_gguf(source, folder / "o.gguf")
    if output == "gguf-mxfp4":
        return to_gguf(source, folder / "o.gguf", experts="mxfp4")
    if output == Kind.MLX:
        return to_mlx(source, folder / "o")
    return to_hf(source, folder / "o", output, exact_yarn=exact_yarn)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    write(plan_new("odd-shape", root / "odd"), sync=False, read_back=False)
    shutil.copytree(GOLD / "src" / "tiny-mxfp4", root / "tiny")
    return {"odd": root / "odd", "tiny": root / "tiny"}


@pytest.fixture(scope="module")
def inputs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root, made = tmp_path_factory.mktemp("inputs"), dict[tuple[str, str], Path]()

    def get(base: str, kind: str) -> Path:
        if (base, kind) not in made:
            at, name = root / f"{base} {kind}", kind.partition(",")[0]
            if kind in GGUF_TYPES:
                made[base, kind] = to_gguf(bases[base], Path(f"{at}.gguf"), **GGUF_TYPES[kind])
            elif kind in BLOBS:
                made[base, kind] = write_blob(bases[base], Path(f"{at}.gguf"), **BLOBS[kind])
            elif kind == Kind.MLX:
                made[base, kind] = to_mlx(bases[base], at)
            else:
                made[base, kind] = write_kind(bases[base], name, at, shards=3 if "3 shards" in kind else 1)
        return made[base, kind]

    return get


_logits: dict[Path, torch.Tensor] = {}


def logits(path: Path) -> torch.Tensor:
    """By the reference, experts decoded one at a time: equal values give equal bits, whatever the layout."""
    if path not in _logits:
        _logits[path] = GptOss.from_checkpoint(_rounded(path), experts="oracle")(PROMPT)
    return _logits[path]


def _rounded(path: Path) -> Checkpoint:
    """GGUF cannot say that YaRN bounds are not rounded: both sides must compute the same."""
    c = open_checkpoint(path)
    return dataclasses.replace(c, config=dataclasses.replace(c.config, yarn_truncate=True))


@pytest.mark.parametrize("base", ["odd", "tiny"])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_matrix(
    base: str, kind: str, output: str, bases: dict[str, Path], inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    source, original = inputs(base, kind), bases[base]
    exact = kind in BLOBS and output == "openai"
    if exact:  # the file does not say that YaRN bounds are not rounded, and OpenAI's layout cannot say that they are
        with pytest.raises(BadInput, match=r"yarn_truncate cannot be expressed.*--exact-yarn"):
            make(output, source, tmp_path)
        shutil.rmtree(tmp_path / "o")
    out = make(output, source, tmp_path, exact_yarn=exact)
    a, b = open_checkpoint(source), open_checkpoint(out)
    report = compare(a, b)
    assert report.ok or (exact and not report.counts["DIFFERENT"]), (report.config, report.counts)
    for result in report.results:
        if kind in LOSSY:
            assert result.verdict != "DIFFERENT"
        elif result.a_encoding == result.b_encoding == "mxfp4" or (
            not result.name.endswith("experts.gate_up.weight") and not result.name.endswith("experts.down.weight")
        ):
            assert result.verdict == "BYTES EQUAL" or {result.a_encoding, result.b_encoding} & {"f16"}, result
        else:
            assert result.verdict in ("BYTES EQUAL", "VALUES EQUAL"), result
    if kind not in LOSSY:
        assert torch.equal(logits(out), logits(original))
    else:
        assert float((logits(out) - logits(original)).norm() / logits(original).norm()) < 0.2
    if (
        output == "hf-mxfp4"
        and open_checkpoint(source).tensors["layers.0.experts.down.weight"].encoding == "mxfp4"
        and base == "odd"
    ):
        assert (out / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", [k for k in INPUTS if k.startswith(("hf-bf16", "hf-defused", "gguf-bf16", "gguf-f"))])
def test_dequantised_experts_come_back_byte_for_byte(
    kind: str, bases: dict[str, Path], inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """--scales-from the original: the file of weights is the original's, to the byte."""
    out = to_hf(inputs("odd", kind), tmp_path / "o", "hf-mxfp4", scales_from=bases["odd"])
    assert (out / "model.safetensors").read_bytes() == (bases["odd"] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["hf-mxfp4", "openai", "gguf-mxfp4", "ollama-fused-old", "hf-quark"])
def test_the_side_file_brings_every_byte_back(
    kind: str, bases: dict[str, Path], inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    dense = to_hf(inputs("odd", kind), tmp_path / "dense", "hf-bf16")
    write(plan_new("odd-shape", tmp_path / "new", kind="hf-bf16"), sync=False, read_back=False)
    assert (dense / "model.safetensors").read_bytes() == (tmp_path / "new" / "model.safetensors").read_bytes()
    back = to_hf(dense, tmp_path / "back", "hf-mxfp4")
    assert (back / "model.safetensors").read_bytes() == (bases["odd"] / "model.safetensors").read_bytes()


def test_shards_as_published_and_as_asked(bases: dict[str, Path], tmp_path: Path) -> None:
    out = to_hf(bases["odd"], tmp_path / "o", "hf-mxfp4", max_shard_bytes=400_000)
    assert sorted(p.name for p in out.glob("*.safetensors"))[:2] == [
        "model-00000-of-00004.safetensors",
        "model-00001-of-00004.safetensors",
    ]
    assert compare(open_checkpoint(out), open_checkpoint(bases["odd"])).counts["BYTES EQUAL"] == 54


def test_a_merged_adapter_in_every_output(bases: dict[str, Path], tmp_path: Path) -> None:
    """What is written with --lora is what the merged view holds, and the same whichever way it is written."""
    from helpers.adapters import fused, made

    adapter = str(made(tmp_path, tmp_path / "a", fused()))
    dense = to_hf(bases["odd"], tmp_path / "dense", "hf-bf16", lora=[adapter])
    view = open_input(str(bases["odd"]), None, [adapter])
    report = compare(view, open_checkpoint(dense))
    assert report.ok and report.counts["BYTES EQUAL"] + report.counts["VALUES EQUAL"] == 54
    packed = to_hf(bases["odd"], tmp_path / "packed", "hf-mxfp4", lora=[adapter])
    again = to_hf(dense, tmp_path / "again", "hf-mxfp4", scales_from=bases["odd"])
    assert (packed / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    c = open_input(str(bases["odd"]), None, [adapter])
    write(
        plan_gguf(
            c, tmp_path / "o.gguf", GgufOptions(tokenizer="none", experts="mxfp4"), rounding_for(c, None, None)
        ).plan,
        sync=False,
    )
    report = compare(open_checkpoint(packed), open_checkpoint(tmp_path / "o.gguf"))
    assert report.counts["BYTES EQUAL"] == 54


# What a target cannot say -------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"][2, 7, 9] = np.nan
    save(folder / "model.safetensors", tensors)


REFUSED: dict[str, tuple[str, Callable[[Path], object], list[str], str]] = {
    "SwiGLU limit in a GGUF": (
        "hf-mxfp4",
        lambda f: with_config(f, lambda c: c.update(swiglu_limit=5.0)),
        ["to-gguf"],
        "swiglu_limit",
    ),
    "layer pattern in OpenAI's config": (
        "hf-mxfp4",
        lambda f: with_config(f, lambda c: c.update(layer_types=["full_attention"] * 3)),
        ["to-openai"],
        "layer_types cannot be expressed",
    ),
    "eps in OpenAI's config": (
        "hf-bf16",
        lambda f: with_config(f, lambda c: c.update(rms_norm_eps=1e-6)),
        ["to-openai"],
        "rms_norm_eps cannot be expressed",
    ),
    "NaN in bf16 experts": ("hf-bf16", _nan, ["to-hf"], "NaN or Inf"),
    "NaN, kept dense": ("hf-bf16", _nan, ["to-hf", "--experts", "bf16"], "NaN or Inf"),
    "float16 that would overflow": (
        "hf-mxfp4",
        lambda f: _scale(f, 150),
        ["to-gguf", "--experts", "f16"],
        "float16 cannot hold exactly",
    ),
    "experts": (
        "hf-defused",
        lambda f: with_config(f, lambda c: c.update(num_local_experts=4)),
        ["to-hf"],
        "another number of experts",
    ),
    "scales of another model": (
        "hf-bf16",
        lambda f: None,
        ["to-hf", "--scales-from", GOLD / "src" / "tiny-mxfp4"],
        "no MXFP4 scales for this model",
    ),
    "scales of a dense model": (
        "hf-bf16",
        lambda f: None,
        ["to-hf", "--scales-from", GOLD / "src" / "tiny-bf16"],
        "no MXFP4 scales for this model",
    ),
    "a side file of another model": (
        "hf-bf16",
        lambda f: save(f / "original-scales.mxfp4", {"x": np.zeros(4, np.uint8)}),
        ["to-hf"],
        "does not hold the scales of this model",
    ),
}


def _scale(folder: Path, value: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 7, 1] = value
    save(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_exit_3_and_nothing_written(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, change, command, said = REFUSED[name]
    folder = write_kind(bases["odd"], kind, tmp_path / "c")
    change(folder)
    out = tmp_path / ("o.gguf" if command[0] == "to-gguf" else "o")
    done = run(
        command[0], folder, "-o", out, *command[1:], *(["--tokenizer", "none"] if command[0] != "to-openai" else [])
    )
    assert done.returncode == 3, done.stderr
    assert said in done.stderr and done.stderr.splitlines()[-1].startswith("error: ") and not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_usage_errors(bases: dict[str, Path], tmp_path: Path) -> None:
    for options, said in ((["--rounding", "best"], "unknown rule"), (["--lora-order", "trl"], "peft or unsloth")):
        done = run("to-hf", bases["odd"], "-o", tmp_path / "o", *options)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "o").exists()


def test_statistics_are_printed_and_recorded(
    bases: dict[str, Path], inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    import json

    done = run("to-hf", inputs("odd", "hf-bf16"), "-o", tmp_path / "o", "--scales-from", bases["odd"], "--json")
    assert done.returncode == 0, done.stderr
    said, recorded = (
        json.loads(done.stdout)["quantisation"],
        json.loads((tmp_path / "o" / "quantisation.json").read_text()),
    )
    assert said["total"]["changed"] == 0 and said["total"]["relative_mse"] == 0 and said["total"]["blocks"] == 21600
    assert recorded == {"rule": "mse", **said} and len(said["tensors"]) == 6
    text = run("to-hf", inputs("odd", "hf-bf16"), "-o", tmp_path / "p", "--rounding", "triton").stdout
    assert "relative MSE" in text and "zero blocks" in text


def test_any_thread_count_and_an_interrupted_run_give_the_same_bytes(
    inputs: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantising, killed half way and resumed: the same files, and statistics of all blocks."""
    source, made = inputs("odd", "hf-defused"), []

    def plan(out: Path) -> tuple[Plan, Rounding]:
        out.mkdir(exist_ok=True)
        c = open_input(str(source), None)
        rounding = rounding_for(c, "even", None)
        return plan_hf(c, out, HfOptions(), rounding).plan, rounding

    for threads in (1, 3):
        whole, rounding = plan(tmp_path / str(threads))
        write(whole, threads=threads, sync=False)
        made.append(((tmp_path / str(threads) / "model.safetensors").read_bytes(), rounding.stats.as_dict()))
    assert made[0] == made[1]
    calls, produce = [], Quantised.produce

    def dying(self: Quantised, begin: int, end: int) -> object:
        calls.append(begin)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return produce(self, begin, end)

    monkeypatch.setattr(Quantised, "produce", dying)
    with pytest.raises(KeyboardInterrupt):
        write(plan(tmp_path / "cut")[0], threads=1)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again, rounding = plan(tmp_path / "cut")
    done = write(again, threads=1, resume=True)
    assert done.resumed and ((tmp_path / "cut" / "model.safetensors").read_bytes(), rounding.stats.as_dict()) == made[0]


@pytest.mark.parametrize("split", [[], ["--split-max-size", "1M"]], ids=["whole", "split"])
def test_a_dequantised_gguf_carries_its_scales(split: list[str], bases: dict[str, Path], tmp_path: Path) -> None:
    assert (
        run(
            "to-gguf", bases["odd"], "-o", tmp_path / "d.gguf", "--experts", "bf16", "--tokenizer", "none", *split
        ).returncode
        == 0
    )
    assert (tmp_path / "d.gguf.original-scales.mxfp4").is_file()
    assert run("to-hf", min(tmp_path.glob("d*.gguf")), "-o", tmp_path / "o").returncode == 0
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (bases["odd"] / "model.safetensors").read_bytes()


def test_the_scales_of_a_replaced_gguf_go_with_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """They were taken for those of the new file, which then could not be converted back."""
    out, side = tmp_path / "d.gguf", tmp_path / "d.gguf.original-scales.mxfp4"
    assert run("to-gguf", bases["odd"], "-o", out, "--experts", "bf16", "--tokenizer", "none").returncode == 0
    tiny = ["to-gguf", GOLD / "src" / "tiny-bf16", "-o", out]
    out.unlink()
    refused = run(*tiny)
    assert (
        refused.returncode == 4
        and "original-scales.mxfp4: holds the scales of an earlier output" in refused.stderr
        and not out.exists()
    )
    assert run(*tiny, "--force").returncode == 0 and not side.exists()
    assert run("to-hf", out, "-o", tmp_path / "o").returncode == 0


def test_a_gguf_with_the_real_vocabulary_becomes_a_whole_folder(tmp_path: Path) -> None:
    """Weights, tokenizer and generation config of pocket, through a GGUF and back."""
    write(plan_new("pocket", tmp_path / "p"), sync=False, read_back=False)
    assert run("to-gguf", tmp_path / "p", "-o", tmp_path / "p.gguf").returncode == 0
    done = run("to-hf", tmp_path / "p.gguf", "-o", tmp_path / "o")
    assert done.returncode == 0 and "the vocabulary in the file is theirs" in done.stderr
    assert {f.name for f in (tmp_path / "o").iterdir()} == {f.name for f in (tmp_path / "p").iterdir()}
    for file in (tmp_path / "p").iterdir():
        assert (tmp_path / "o" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_ollama_blob_gets_what_llama_cpp_wants(bases: dict[str, Path], tmp_path: Path) -> None:
    blob = write_blob(bases["odd"], tmp_path / "blob", vocabulary=True)
    assert run("to-gguf", blob, "-o", tmp_path / "o.gguf").returncode == 0
    m = open_checkpoint(tmp_path / "o.gguf").metadata
    assert (
        m["tokenizer.ggml.pre"] == "gpt-4o"
        and m["tokenizer.ggml.eos_token_id"] == 200002
        and m["tokenizer.ggml.padding_token_id"] == 199999
    )
    assert (
        "<|channel|>" in m["tokenizer.chat_template"]
        and len(m["tokenizer.ggml.tokens"]) == 1003
        and m["gpt-oss.rope.scaling.type"] == "yarn"
    )


# Real consumers -----------------------------------------------------------------------------------------------------


@pytest.mark.backend("transformers")
@pytest.mark.parametrize("experts", ["hf-mxfp4", "hf-bf16"])
def test_transformers_loads_both_forms(experts: str, inputs: Callable[[str, str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = to_hf(inputs("tiny", "hf-defused, 3 shards"), tmp_path / "o", experts, max_shard_bytes=200_000)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).float()
    with torch.no_grad():
        theirs = model(PROMPT).logits
    ours = GptOss.from_checkpoint(out)(PROMPT)
    assert float((theirs - ours).norm() / ours.norm()) < 1e-5


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_runs_a_ggufs_from_new_kinds(
    inputs: Callable[[str, str], Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    from gptoss_adapters.backends import open_backend

    wanted = None
    for kind in ("hf-mxfp4", "hf-defused", "ollama-fused-old", "hf-compressed-tensors"):
        out = to_gguf(inputs("tiny", kind), tmp_path / f"{kind}.gguf", experts="mxfp4")
        with open_backend(f"llama_cpp={out}", n_ctx=64) as backend:
            got = backend.logits(PROMPT[0].tolist())
        wanted = got if wanted is None else wanted
        assert np.array_equal(got, wanted), kind
    ours = logits(bases["tiny"])[0].numpy()
    assert np.linalg.norm(wanted - ours) / np.linalg.norm(ours) < 0.1


def test_gguf_py_reads_what_came_from_an_old_blob(inputs: Callable[[str, str], Path], tmp_path: Path) -> None:
    import gguf

    out = to_gguf(inputs("odd", "ollama-fused-old"), tmp_path / "o.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(out).tensors}
    source = open_checkpoint(inputs("odd", "ollama-fused-old"))
    for which, name in ((0, "gate"), (1, "up")):
        ours = source.read("layers.1.experts.gate_up.weight", np.float32)[:, which::2]
        t = tensors[f"blk.1.ffn_{name}_exps.weight"]
        assert np.array_equal(gguf.dequantize(t.data, t.tensor_type).reshape(ours.shape), ours)


@pytest.mark.parametrize("base", ["odd", "tiny"])
@pytest.mark.parametrize("kind", INPUTS)
def test_metal_refuses_what_its_kernels_cannot_compute(
    base: str, kind: str, inputs: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Its kernels want head_dim 64; what they take goes to Metal and back in test_to_metal.py."""
    with pytest.raises(BadInput, match="head_dim") as refused:
        plan_metal(open_input(str(inputs(base, kind)), None), tmp_path / "model.bin")
    assert refused.value.exit_code == 3 and not any(tmp_path.iterdir())
