"""What a checkpoint of the right format can still get wrong: names, shapes, dtypes, config, contents, companions."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers.counting import FEW_CALLS, CallCounter
from helpers.hostile import Gguf, write
from safetensors.numpy import load_file, save_file

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.errors import BadInput, GptOssError

DATA = Path(__file__).parents[1] / "data"
GOLD = DATA / "checkpoints" / "tiny"
Tensors = dict[str, np.ndarray[Any, Any]]
_E, _S = "model.layers.1.mlp.experts.", "model.layers.2.self_attn."


def edit(change: Callable[[Tensors], Any], folder: str = "hf-mxfp4") -> Callable[[Path], Path]:
    """A copy of a gold checkpoint with its tensors changed."""

    def make(root: Path) -> Path:
        shutil.copytree(GOLD / folder, root)
        tensors = load_file(root / "model.safetensors")
        change(tensors)
        save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, root / "model.safetensors")
        return root

    return make


def config(folder: str = "hf-mxfp4", **fields: Any) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        shutil.copytree(GOLD / folder, root)
        raw = json.loads((root / "config.json").read_text()) | fields
        (root / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
        return root

    return make


def put(name: str, change: Callable[[Any], Any], folder: str = "hf-mxfp4") -> Callable[[Path], Path]:
    return edit(lambda t: t.__setitem__(name, change(t[name])), folder)


def drop(name: str, folder: str = "hf-mxfp4") -> Callable[[Path], Path]:
    return edit(lambda t: t.pop(name), folder)


# what is done -> (how, what the message must say); opening must refuse it
OPEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing scales": (drop(_E + "down_proj_scales"), _E + "down_proj_scales: the tensor is missing"),
    "missing blocks": (drop(_E + "gate_up_proj_blocks"), _E + "gate_up_proj_blocks: the tensor is missing"),
    "missing bias": (drop(_E + "gate_up_proj_bias"), _E + "gate_up_proj_bias: the tensor is missing"),
    "missing sinks": (drop(_S + "sinks"), _S + "sinks: the tensor is missing"),
    "missing head": (drop("lm_head.weight"), "lm_head.weight: the tensor is missing"),
    "missing layer": (edit(lambda t: [t.pop(n) for n in list(t) if ".layers.3." in n]), "model.layers.3."),
    "missing scales, OpenAI": (
        drop("block.0.mlp.mlp2_weight.scales", "original"),
        "block.0.mlp.mlp2_weight.scales: the tensor is missing",
    ),
    "missing qkv bias, OpenAI": (
        drop("block.0.attn.qkv.bias", "original"),
        "block.0.attn.qkv.bias: the tensor is missing",
    ),
    "extra tensor": (
        edit(lambda t: t.update({"model.layers.0.extra": np.zeros(3, np.float32)})),
        "model.layers.0.extra: unexpected tensor",
    ),
    "extra layer": (
        config(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        "model.layers.3.",
    ),
    "an adapter's tensor": (
        edit(lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros(3, np.float32)})),
        "lora_A.weight: unexpected",
    ),
    "both layouts mixed": (
        edit(lambda t: t.update({"block.0.attn.sinks": t[_S + "sinks"]})),
        "block.0.attn.sinks: unexpected tensor",
    ),
    "one layer in bf16, with scales left over": (
        edit(
            lambda t: (
                t.pop(_E + "down_proj_blocks"),
                t.update({_E + "down_proj": np.zeros((8, 64, 96), ml_dtypes.bfloat16)}),
            )
        ),
        _E + "down_proj_scales: unexpected",
    ),
    "no tensor of ours": (
        edit(lambda t: (t.clear(), t.update(x=np.zeros(3, np.float32)))),
        "no tensor name is one of gpt-oss (got x)",
    ),
    "scales one short": (
        put(_E + "down_proj_scales", lambda a: a[..., :1]),
        "down_proj_scales: the shape does not fit the config (expected [8, 96, 2], got [8, 96, 1])",
    ),
    "blocks of one expert missing": (
        put(_E + "down_proj_blocks", lambda a: a[:7]),
        "expected [8, 96, 2, 16], got [7, 96, 2, 16]",
    ),
    "shape transposed": (put(_S + "o_proj.weight", lambda a: a.T), "expected [96, 256], got [256, 96]"),
    "experts transposed": (
        put(_E + "down_proj", lambda a: a.swapaxes(1, 2), "hf-bf16"),
        "expected [8, 64, 96], got [8, 96, 64]",
    ),
    "blocks as float32": (
        put(_E + "down_proj_blocks", lambda a: a.astype(np.float32)),
        "down_proj_blocks: wrong dtype (expected U8, got F32)",
    ),
    "blocks as int8": (
        put(_E + "down_proj_blocks", lambda a: a.view(np.int8)),
        "down_proj_blocks: wrong dtype (expected U8, got I8)",
    ),
    "scales as bfloat16": (
        put(_E + "down_proj_scales", lambda a: a.astype(ml_dtypes.bfloat16)),
        "down_proj_scales: wrong dtype",
    ),
    "sinks as float64": (
        put(_S + "sinks", lambda a: a.astype(np.float64)),
        "sinks: wrong dtype (expected BF16 or F16 or F32, got F64)",
    ),
    "norm as int16": (put("model.norm.weight", lambda a: a.view(np.int16)), "model.norm.weight: wrong dtype"),
    "vocabulary mismatch": (
        config(vocab_size=321),
        "the shape does not fit the config (expected [321, 96], got [320, 96])",
    ),
    "expert count mismatch": (config(num_local_experts=4), "another number of experts than the config"),
    "head count mismatch": (config(num_attention_heads=4), "the shape does not fit the config"),
    "hidden size not of blocks": (config(hidden_size=100), "multiples of 32"),
    "intermediate size mismatch": (config(intermediate_size=96), "the shape does not fit the config"),
    "layer_types too short": (config(layer_types=["full_attention"]), "config field layer_types must have 4 entries"),
    "no experts": (config(num_local_experts=0), "config field num_experts must be a positive integer"),
    "top-k above the experts": (config(num_experts_per_tok=9), "config field experts_per_token exceeds num_experts 8"),
    "theta zero": (config(rope_theta=0), "config field rope_theta"),
    "theta a string": (config(rope_theta="150000"), "config field rope_theta must be a number"),
    "window null": (config(sliding_window=None), "config field sliding_window is null"),
    "window negative": (config(sliding_window=-1), "config field sliding_window must be a positive integer"),
    "layers missing": (config(num_hidden_layers=...), "config field num_hidden_layers must be an integer"),
    "a million layers": (config(num_hidden_layers=10**6), "config field num_hidden_layers exceeds"),
    "tied embeddings": (config(tie_word_embeddings=True), "config field tie_word_embeddings"),
    "another model": (config(model_type="llama"), "config field model_type"),
    "auto_map": (config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), "config field auto_map names code to run"),
    "config with NaN": (
        lambda root: with_config(root, b'{"model_type": "gpt_oss", "rope_theta": NaN}'),
        "config.json: the JSON is malformed: NaN",
    ),
    "config not UTF-8": (
        lambda root: with_config(root, b'{"model_type": "\xff"}'),
        "config.json: the JSON is not UTF-8",
    ),
    "config empty": (lambda root: with_config(root, b""), "config.json: the JSON is malformed"),
    "config with duplicate keys": (
        lambda root: with_config(root, b'{"head_dim": 1, "head_dim": 2}'),
        "duplicate key 'head_dim'",
    ),
    "config nested deeply": (
        lambda root: with_config(root, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "config.json: the JSON is nested too deeply",
    ),
    "truncated": (lambda root: truncated(root, 1), "the file is truncated"),
    "truncated to the header": (lambda root: truncated(root, 900_000), "the file is truncated"),
    "generation config broken": (
        lambda root: companion(root, "generation_config.json", b"{"),
        "generation_config.json: the JSON is malformed",
    ),
    "tokenizer config broken": (
        lambda root: companion(root, "tokenizer_config.json", b"[1]"),
        "tokenizer_config.json: the JSON must be an object",
    ),
    "template not UTF-8": (
        lambda root: companion(root, "chat_template.jinja", b"\xff"),
        "chat_template.jinja: the text is not UTF-8",
    ),
    "template a link out": (
        lambda root: linked(root, "chat_template.jinja"),
        "chat_template.jinja: is a link that leaves its folder",
    ),
    "folder of pickles": (lambda root: pickles(root, "pytorch_model.bin"), "pytorch_model.bin: is a pickle checkpoint"),
    "a pickle by suffix": (
        lambda root: pickles(root, "consolidated.00.pth") / "consolidated.00.pth",
        "consolidated.00.pth: is a pickle checkpoint",
    ),
    "a pickle named safetensors": (
        lambda root: pickles(root, "model.safetensors", b"\x80\x04\x95x") / "model.safetensors",
        "holds a pickle, whatever its name says",
    ),
    "a zip named safetensors": (
        lambda root: pickles(root, "model.safetensors", b"PK\x03\x04xxxxx") / "model.safetensors",
        "holds a pickle, whatever its name says",
    ),
    "an empty folder": (lambda root: (root.mkdir(), root)[1], "no safetensors file in the folder"),
    "nothing there": (lambda root: root, "no such file or folder"),
    "a FIFO": (lambda root: (os.mkfifo(root), root)[1], "is not a regular file"),
    "a device": (lambda root: Path("/dev/zero"), "is not a regular file"),
    "text": (lambda root: write(root, b"hello, I am a model"), "neither a safetensors nor a GGUF file"),
    "two GGUF files": (
        lambda root: (root.mkdir(), write(root / "a.gguf", b""), write(root / "b.gguf", b""), root)[3],
        "which GGUF file is meant is unclear",
    ),
}


def with_config(root: Path, data: bytes) -> Path:
    shutil.copytree(GOLD / "hf-mxfp4", root)
    (root / "config.json").write_bytes(data)
    return root


def truncated(root: Path, by: int) -> Path:
    shutil.copytree(GOLD / "hf-mxfp4", root)
    data = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(data[:-by])
    return root


def companion(root: Path, name: str, data: bytes) -> Path:
    shutil.copytree(GOLD / "hf-mxfp4", root)
    (root / name).write_bytes(data)
    return root


def linked(root: Path, name: str) -> Path:
    shutil.copytree(GOLD / "hf-mxfp4", root)
    (root / name).symlink_to("/etc/hostname")
    return root


def pickles(root: Path, name: str, data: bytes = b"\x80\x02}q\x00.") -> Path:
    root.mkdir()
    shutil.copy(GOLD / "hf-mxfp4" / "config.json", root)
    (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("name", OPEN)
def test_opening_refuses(tmp_path: Path, name: str) -> None:
    make, said = OPEN[name]
    path = make(tmp_path / "x")
    with pytest.raises(GptOssError) as e, CallCounter() as work:
        open_checkpoint(path)
    assert work.calls < FEW_CALLS
    assert said in str(e.value) and str(e.value).startswith((str(tmp_path), "/dev/zero")) and str(e.value).isprintable()
    assert e.value.exit_code == 3


def check_all(path: Path) -> None:
    c = open_checkpoint(path)
    for name in c.tensors:
        c.check(name)


def _set(at: tuple[int, ...], value: Any) -> Callable[[Any], Any]:
    def change(a: Any) -> Any:
        a[at] = value
        return a

    return change


CHECK: dict[str, tuple[Callable[[Path], Path], str]] = {
    "scale 255": (
        put(_E + "down_proj_scales", _set((3, 7, 1), 255)),
        _E + "down_proj_scales: 1 MXFP4 scale bytes are 255 (NaN), the first at [3, 7, 1]",
    ),
    "scale 255, OpenAI": (
        put("block.3.mlp.mlp1_weight.scales", _set((0, 0, 0), 255), "original"),
        "block.3.mlp.mlp1_weight.scales: 1 MXFP4",
    ),
    "NaN in a bias": (put(_S + "q_proj.bias", _set((5,), np.nan)), _S + "q_proj.bias: NaN or Inf at [5]"),
    "Inf in the router": (
        put("model.layers.0.mlp.router.weight", _set((2, 3), np.inf)),
        "router.weight: NaN or Inf at [2, 3]",
    ),
    "-Inf in an expert": (
        put(_E + "gate_up_proj", _set((7, 95, 127), -np.inf), "hf-bf16"),
        _E + "gate_up_proj: NaN or Inf at [7, 95, 127]",
    ),
    "scale 255 in a GGUF": (
        lambda root: gguf_with_255(root),
        "blk.0.ffn_down_exps.weight: 1 MXFP4 scale bytes are 255",
    ),
}


def gguf_with_255(root: Path) -> Path:
    g = Gguf.parse((DATA / "gguf" / "gguf" / "tiny-mxfp4.gguf").read_bytes())
    at = g.info("blk.0.ffn_down_exps.weight").offset + 17 * 5
    g.data = g.data[:at] + b"\xff" + g.data[at + 1 :]
    return write(root, g.bytes())


@pytest.mark.parametrize("name", CHECK)
def test_check_refuses_contents(tmp_path: Path, name: str) -> None:
    make, said = CHECK[name]
    path = make(tmp_path / "x")
    open_checkpoint(path)  # contents are not read when a checkpoint is opened
    with pytest.raises(BadInput) as e:
        check_all(path)
    assert said in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize("value", [0, 254])
def test_extreme_scales_are_legal(tmp_path: Path, value: int) -> None:
    check_all(put(_E + "down_proj_scales", _set((3, 7, 1), value))(tmp_path / "x"))


def test_gold_passes_every_check() -> None:
    for path in (
        *(GOLD / k for k in ("original", "hf-mxfp4", "hf-bf16")),
        *sorted((DATA / "gguf" / "gguf").glob("*.gguf")),
    ):
        check_all(path)


def test_inspection_may_open_what_conversion_refuses(tmp_path: Path) -> None:
    path = config(auto_map={"AutoConfig": "x.Y"})(tmp_path / "x")
    assert any("auto_map" in o for o in open_checkpoint(path, strict=False).oddities)


def test_a_stray_pickle_is_an_oddity(tmp_path: Path) -> None:
    path = companion(tmp_path / "x", "training_args.bin", b"\x80\x02}q\x00.")
    assert "training_args.bin: a pickle file, not read" in open_checkpoint(path).oddities
