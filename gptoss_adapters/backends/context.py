"""How long a context may be: the model's maximum, or what memory leaves for keys, values and attention scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_adapters.spec import SLIDING, GptOssConfig

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint

LLAMA = ("llama_cpp", "llama_server")
SIZED = (*LLAMA, "torch", "transformers", "vllm")
"""The engines whose memory is known here."""
LEAST = 4096  # tokens; less is of no use, and an engine that cannot have them says so itself
_STEP = 256
_CELL_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
_SHARE = 0.9  # of the memory that is free
_BESIDE = 600 << 20  # of a process: Python, the engine, a batch of logits


@dataclass(frozen=True, slots=True)
class Fit:
    """A context in tokens, and why it is that long."""

    tokens: int
    reason: str


def fit_context(name: str, checkpoint: Checkpoint, options: Mapping[str, Any], copies: int) -> Fit:
    """The longest context of `copies` engines `name` on a checkpoint, with their `options`."""
    config = checkpoint.config
    most = config.max_position_embeddings
    if _on_accelerator(name, options):
        return Fit(most, f"the model's maximum of {most}; the accelerator's memory is not looked at")
    free = read_free_memory()
    if free is None:
        return Fit(most, f"the model's maximum of {most}; how much memory is free is not known here")
    room = _SHARE * free / copies - _weight_bytes(name, checkpoint) - _BESIDE
    if context_bytes(name, config, options, most) <= room:
        return Fit(most, f"the model's maximum of {most}, which fits into memory")
    low, high = 0, most // _STEP
    while high - low > 1:
        middle = (low + high) // 2
        fits = context_bytes(name, config, options, middle * _STEP) <= room
        low, high = (middle, high) if fits else (low, middle)
    tokens = max(low * _STEP, min(LEAST, most))
    needed = f"{context_bytes(name, config, options, tokens) / 1e9:.2f} GB for it"
    have = f"{free / 1e9:.2f} GB of free memory"
    words = f"what {have} hold: {needed}, beside the weights"
    if low * _STEP < tokens:
        words = f"the least that is tried, although {have} do not hold {needed} and the weights"
    return Fit(tokens, f"{words}; the model's maximum is {most}")


def context_bytes(name: str, config: GptOssConfig, options: Mapping[str, Any], tokens: int) -> int:
    """What a context of so many tokens takes beside the weights: keys and values of every layer, and the scratch that
    grows with it.
    """
    sliding = sum(kind == SLIDING for kind in config.layer_types)
    full = config.num_hidden_layers - sliding
    cell = 2 * config.kv_rows * _cell_bytes(name, options)  # one token's keys and values in one layer
    batch = int(options.get("n_batch") or (tokens if name == "vllm" else 512))
    heads = config.num_attention_heads
    if name in LLAMA:
        window = tokens if options.get("swa_full", True) else min(tokens, config.sliding_window + batch)
        # Without flash attention every head's scores of a batch, and two masks, as measured of llama.cpp.
        scores = 0 if options.get("flash_attn") else tokens * batch * (4 * heads + 8)
        return int(cell * (full * tokens + sliding * window)) + scores
    if name == "torch":  # a full layer's buffer doubles as it grows
        windows = [config.window_of(n) or tokens for n in range(config.num_hidden_layers)]
        return int(cell * 2 * sum(min(tokens, window) for window in windows))
    if name == "transformers":  # eager attention: the scores of one step of a prefill, twice
        scores = tokens * batch * heads * 2 * int(_cell_bytes(name, options))
        return int(cell * (full + sliding) * tokens) + scores
    experts = min(batch, tokens) * config.experts_per_token * 3 * config.hidden_size * 4
    return int(cell * (full + sliding) * tokens) + experts


def cache_gigabytes(config: GptOssConfig, dtype: str, tokens: int) -> int:
    """GiB of vLLM's key-value cache that hold one sequence of so many tokens, every layer counted in full."""
    cell = 2 * config.kv_rows * _DTYPE_BYTES.get(dtype, 4)
    return 1 + int(cell * config.num_hidden_layers * tokens >> 30)


def read_free_memory() -> int | None:
    """Bytes that this process and its children may still take: of the machine, or of the container. None: unknown."""
    found = [value for value in (_read_meminfo(), _read_cgroup()) if value is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return None


def _weight_bytes(name: str, checkpoint: Checkpoint) -> int:
    """Of one engine: the files as they are; torch widens what is not an expert to float32 at most."""
    stored = sum(len(file.data) for file in checkpoint.stored.values())
    config = checkpoint.config
    total, _ = config.parameters()
    experts = sum(config.experts_of(n) for n in range(config.num_hidden_layers))
    packed = 3 * config.hidden_size * config.intermediate_size * experts
    if name == "transformers":
        return 4 * total
    return stored + (2 * (total - packed) if name == "torch" else 0)


def _cell_bytes(name: str, options: Mapping[str, Any]) -> float:
    if name in LLAMA:
        return _CELL_BYTES.get(options.get("cache_type", "f32"), 4.0)
    return _DTYPE_BYTES.get(options.get("dtype", "float32"), 4)


def _on_accelerator(name: str, options: Mapping[str, Any]) -> bool:
    if name == "torch":
        return str(options.get("device", "cpu")) != "cpu"
    return name == "vllm" and Path("/dev/nvidiactl").exists()


def _read_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _read_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, its file cache not counted. None: there is no limit."""
    try:
        most = int((root / "memory.max").read_text())
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, most - used + int(stat.get("inactive_file", 0)))
