"""Compares what the loaded model's expert layers compute with the reference, on a fixed input, straight from the files.

Kernels that silently compute garbage have happened on several GPUs, and a weight can be damaged between disk and
device. The check runs in the first forward pass, through vLLM's own expert layer, so whatever kernel serves is what is
judged.
"""

from __future__ import annotations

from typing import Any

import torch

from gptoss_adapters.reference.experts import load_experts
from gptoss_adapters.reference.model import DEFINITION
from gptoss_adapters.vllm_plugin import log
from gptoss_adapters.vllm_plugin.decision import open_local

LAYERS = 2  # of this rank's layers, the first ones
TOKENS = 8
# Relative L2: several times what rounding gives.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check(model: Any, path: str) -> list[float]:
    """The relative L2 difference per checked layer; logs one line, an error when a layer is off. Never raises."""
    try:
        return _check(model, path)
    except Exception as error:  # the check must not take the server down
        log.warning("gptoss-adapters self-check could not run: %s: %s", type(error).__name__, error)
        return []


def _check(model: Any, path: str) -> list[float]:
    checkpoint = open_local(path)
    if checkpoint is None:
        log.warning("gptoss-adapters self-check: the checkpoint's files are not at hand")
        return []
    found = []
    bad = []
    first = model.model.start_layer
    for n in range(first, min(first + LAYERS, model.model.end_layer)):
        found.append(_measure_distance(model.model.layers[n], checkpoint, n))
        if not found[-1] <= TOLERANCE[_find_dtype(model)]:
            bad.append(n)
    shown = ", ".join(f"layer {first + k} {value:.1e}" for k, value in enumerate(found))
    if bad:
        log.error(
            "gptoss-adapters self-check FAILED: expert layers differ from the reference (relative L2: %s); do "
            "not trust this server's output",
            shown,
        )
    else:
        log.info("gptoss-adapters self-check passed: expert layers equal the reference (relative L2: %s)", shown)
    return found


def _find_dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.lm_head.weight.dtype if hasattr(model.lm_head, "weight") else torch.bfloat16
    return dtype


def _measure_distance(layer: Any, checkpoint: Any, n: int) -> float:
    """|theirs - ours| / |ours| on TOKENS seeded rows whose router scores choose every expert in turn."""
    config = checkpoint.config
    norm = layer.post_attention_layernorm.weight
    x = torch.randn(TOKENS, config.hidden_size, generator=torch.Generator().manual_seed(n)).to(norm.dtype)
    scores = torch.randn(TOKENS, config.num_experts, generator=torch.Generator().manual_seed(1000 + n))
    experts = torch.arange(config.num_experts)
    turn = (
        torch.arange(TOKENS)[:, None] * config.experts_per_token + torch.arange(config.experts_per_token)
    ) % config.num_experts
    scores += 10.0 * (experts[None, :, None] == turn[:, None, :]).any(-1)
    scores = scores.to(norm.dtype)
    theirs = (
        layer.mlp.experts(hidden_states=x.to(norm.device), router_logits=scores.to(norm.device))[
            :, : config.hidden_size
        ]
        .float()
        .cpu()
    )
    top, chosen = scores.float().topk(config.experts_per_token, dim=-1)
    ours = load_experts(checkpoint, n, torch.float32, torch.device("cpu"), "oracle", DEFINITION)(
        x.float(), chosen, top.softmax(-1)
    )
    return float((theirs - ours).norm() / ours.norm())
