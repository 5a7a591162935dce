"""Every input kind times every output kind: bytes or values by the comparer, files where they must be identical, logits
by the reference.

The weights are MXFP4 values throughout (odd shapes, and the gold checkpoint), so that every output has a right answer:
MXFP4 in and MXFP4 out are the same bytes; dense kinds hold the same values, and get the bytes back when the original
scales are known.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gptoss_converters.cli.options import open_input, rounding_for
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.exports import BLOBS, INPUTS, OUTPUTS, make, to_gguf, to_hf

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput
from gptoss_adapters.reference.model import GptOss

PROMPT = torch.tensor([[3, 17, 99, 200, 5, 42, 42, 7, 250, 31, 8, 120, 64, 77, 90, 2]])
LOSSY = ("gguf-q8_0",)  # the one input whose values are not the original's


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
