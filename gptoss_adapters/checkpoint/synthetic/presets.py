"""The parity checkpoints p1..p6: small, seed-made, and so scaled that every part of the model shows in the logits.

    p1  kitchen: everything at once; the seeded faults of `gptoss_adapters.parity` show here
    p2  flat router and mild experts: shows router and SwiGLU faults that p1 drowns in bf16 noise; judge it with forced
    routing
    p3  one sliding layer, p4 one full layer: what a token can influence is exactly known
    p5  one full and one sliding layer, for prompts of three times the original context
    p6  robust router: four pairs of experts, one of each chosen by the sign of a channel that no layer writes to, so
    the margin is wide everywhere and any flip is a bug

The usual random initialisation hides a quarter of all faults: zero biases and sinks, units that never reach the clamp,
no row of tiny norm. head_dim is 32, which every engine takes; the original context is 256, where the YaRN ramp runs
from 0.32 to 4.98 (rounded: 0 to 5), so rounding is plain to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from gptoss_adapters.spec import FULL, SLIDING, GptOssConfig

Spread = dict[str, tuple[float, Callable[[GptOssConfig], float]]]

P1 = GptOssConfig(
    num_hidden_layers=4,
    num_experts=16,
    experts_per_token=4,
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=2,
    sliding_window=16,
    initial_context_length=256,
    max_position_embeddings=8192,
    bos_token_id=509,
    pad_token_id=510,
    eos_token_id=511,
)
CONFIGS = {
    "p1": P1,
    "p2": P1,
    "p3": replace(P1, num_hidden_layers=1, layer_types=(SLIDING,)),
    "p4": replace(P1, num_hidden_layers=1, layer_types=(FULL,)),
    "p5": replace(P1, num_hidden_layers=2, layer_types=(FULL, SLIDING)),
    "p6": replace(P1, num_experts=8),
}
TINY_ROW_EVERY, TINY_ROW = 8, 2.0**-9  # embedding rows of tiny norm make the eps of RMSNorm visible


def _spread(router: float = 3.0, gate_up: float = 5.0) -> Spread:
    """Canonical name without the layer -> (mean, standard deviation): queries and keys 1.6, sinks about 2.5, gains
    1 +- 0.3.
    """
    gain: tuple[float, Callable[[GptOssConfig], float]] = (1, lambda c: 0.3)
    return {
        "embedding.weight": (0, lambda c: 0.5),
        "unembedding.weight": (0, lambda c: 1 / math.sqrt(c.hidden_size)),
        "norm.weight": gain,
        "attn_norm.weight": gain,
        "mlp_norm.weight": gain,
        **{f"{x}_proj.weight": (0, lambda c: 1.6 / math.sqrt(c.hidden_size)) for x in "qk"},
        "v_proj.weight": (0, lambda c: 1 / math.sqrt(c.hidden_size)),
        **{f"{x}_proj.bias": (0, lambda c: 0.5) for x in "qkvo"},
        "sinks": (2.5, lambda c: 2.5),
        "o_proj.weight": (0, lambda c: 1 / math.sqrt(c.q_rows)),
        "router.weight": (0, lambda c: router / math.sqrt(c.hidden_size)),
        "router.bias": (0, lambda c: router / 2),
        "experts.gate_up.weight": (0, lambda c: gate_up / math.sqrt(c.hidden_size)),
        "experts.gate_up.bias": (0, lambda c: gate_up / 2),
        "experts.down.weight": (0, lambda c: 0.2 / math.sqrt(c.intermediate_size)),
        "experts.down.bias": (0, lambda c: 0.5),
    }


SPREADS = {name: _spread() for name in CONFIGS} | {"p2": _spread(router=0.3, gate_up=1.5)}
CHANNELS = 4  # of p6: what no layer writes to, one per expert chosen
_CHANNEL, _WEIGHT = 1.5, 2.0  # the channels' size in the embedding (0.5 elsewhere), and the router's weight on them


def adjust(preset: str, name: str, what: str, begin: int, rows: Any) -> Any:
    """What a normal distribution cannot say. `rows` are the stored bytes [n, ..] of rows `begin`.. of a canonical
    tensor.
    """
    if name == "embedding.weight":
        values = rows.view(ml_dtypes.bfloat16).copy()
        if preset == "p6":  # no tiny rows: their channels would drown in what the layers write
            values[:, :CHANNELS] = np.copysign(_CHANNEL, values[:, :CHANNELS].astype(np.float32))
            return values.view(np.uint8)
        tiny = (np.arange(begin, begin + len(rows)) % TINY_ROW_EVERY) == TINY_ROW_EVERY - 1
        values[tiny] = values[tiny] * ml_dtypes.bfloat16(TINY_ROW)  # a power of two: exact
        return values.view(np.uint8)
    return _robust_router(name, what, begin, rows) if preset == "p6" else rows


def _robust_router(name: str, what: str, begin: int, rows: Any) -> Any:
    leaf = name.split(".", 2)[-1] if name.startswith("layers.") else name
    index = np.arange(begin, begin + len(rows))
    if leaf in ("o_proj.weight", "o_proj.bias", "experts.down.bias"):
        width = P1.hidden_size
        values = rows.view(ml_dtypes.bfloat16).copy()
        if leaf == "experts.down.bias":
            values[:, :CHANNELS] = 0
        else:
            values[index % width < CHANNELS] = 0
        return values.view(np.uint8)
    if leaf == "experts.down.weight" and what == "blocks":
        blocks = rows.copy()
        blocks[index % P1.hidden_size < CHANNELS] = 0
        return blocks
    if leaf == "mlp_norm.weight":
        values = rows.view(ml_dtypes.bfloat16).copy()
        values[index < CHANNELS] = 1
        return values.view(np.uint8)
    if leaf == "router.weight":
        values = rows.view(ml_dtypes.bfloat16).copy()
        values[:] = (values.astype(np.float32) / 64).astype(values.dtype)
        for row, expert in enumerate(index):
            values[row, expert // 2] = _WEIGHT if expert % 2 else -_WEIGHT
        return values.view(np.uint8)
    if leaf == "router.bias":
        values = rows.view(ml_dtypes.bfloat16).copy()
        return (values.astype(np.float32) / 64).astype(values.dtype).view(np.uint8)
    return rows
