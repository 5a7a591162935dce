"""Every input kind, and every exporter on it. Not a test module."""

from __future__ import annotations

from pathlib import Path

from gptoss_converters.cli.options import open_input, rounding_for
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_mlx import plan_mlx

from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.writing.writer import write
from helpers.kinds import MIXED

GGUF_TYPES = {
    "gguf-mxfp4": {},
    "gguf-bf16": {"experts": "bf16"},
    "gguf-f32": {"experts": "f32", "dense": "f32"},
    "gguf-f16": {"experts": "f16"},
    "gguf-q8_0": {"experts": "q8_0", "dense": "q8_0"},
}
BLOBS = {"ollama": {}, "ollama-fused-old": {"fused": True, "old_type": True}}
SAFETENSORS = ("hf-mxfp4", "openai", "hf-quark", "hf-compressed-tensors", "hf-bf16", "hf-bf16-out-in", "hf-defused")
INPUTS = (
    *SAFETENSORS,
    "hf-linear-experts",
    MIXED,
    *(f"{k}, 3 shards" for k in SAFETENSORS),
    *GGUF_TYPES,
    *BLOBS,
    Kind.MLX,
)
OUTPUTS = ("gguf", "gguf-mxfp4", "hf-mxfp4", "hf-bf16", "openai", Kind.MLX)


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
