"""What a report holds of one target, from a seed. Not a test module."""

from __future__ import annotations

import random

from gptoss_adapters.parity.report.measurements import Flip, Layers, Metrics, Strip
from gptoss_adapters.parity.report.schema import (
    Certificate,
    CertifiedFault,
    Check,
    Family,
    Greedy,
    GreedyPrompt,
    TextLayer,
    ToolCall,
    ToolCalls,
)

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'`|@everyone\x1b[31m\u202e"
PARTS = {"window": 5, "sinks": 4, "RoPE": 6, "attention": 1, "bias": 6, "router": 3, "MXFP4": 6, "SwiGLU": 7, "norm": 3}


def metrics(rng: random.Random, size: float, positions: int) -> Metrics:
    kl = size * rng.uniform(0.7, 1.4)
    return Metrics(
        positions=positions,
        nmse_gmean=kl * 2,
        nmse_median=kl * 1.8,
        nmse_mean=kl * 3,
        nmse_p99=kl * 20,
        nmse_max=kl * 60,
        kl_mean=kl,
        kl_se=kl / 12,
        kl_median=kl / 3,
        kl_p95=kl * 4,
        kl_p99=kl * 9,
        kl_p999=kl * 20,
        kl_max=kl * 31,
        dlp_mean=-kl,
        dlp_rms=kl**0.5,
        dp_mean=kl / 9,
        dp_rms=kl**0.5 / 4,
        same_top=1 - min(kl * 20, 0.6),
        overlap_10=1 - min(kl * 9, 0.5),
        ln_ppl_ratio=kl / 2,
    )


def family(rng: random.Random, name: str, what: str, size: float, excess: float) -> Family:
    positions = rng.choice((16, 640, 2304, 4608))
    state = "pass" if excess <= 3 else "look" if excess <= 10 else "fail"
    null = {f"{label}": metrics(rng, size, positions) for label in ("q8_0 activations", "f16 cache", "summation order")}
    return Family(
        name,
        what,
        rng.randint(1, 8),
        positions,
        metrics(rng, size * excess, positions),
        null,
        {"kl_mean": excess},
        excess,
        state,
        None if excess < 10 else 15,
    )


def families(rng: random.Random, size: float, excess: float) -> list[Family]:
    kinds = {
        "single token": "sinks, biases, experts and norms, without any history",
        "window edge": "T = W-1, W, W+1 and 2W: the reach of the sliding window",
        "tiny norms": "embeddings of small norm show the RMSNorm epsilon",
        "long": "beyond the original context: the YaRN ramp",
        "harmony chats": "rendered conversations, as in use",
    }
    return [family(rng, name, what, size, max(excess * rng.uniform(0.5, 1.2), 0.4)) for name, what in kinds.items()]


def strips(rng: random.Random, size: float, excess: float) -> list[Strip]:
    null = [size * rng.lognormvariate(0, 1) for _ in range(288)]
    seen = [v * rng.lognormvariate(0, 0.4) * (excess if i >= 15 else 1) for i, v in enumerate(null)]
    return [
        Strip(
            "window edge",
            0,
            [2 * v for v in seen],
            list(seen),
            [2 * v for v in null],
            null,
            {"16": "W", "256": "original context"},
        )
    ]


def layers(rng: random.Random, excess: float) -> Layers:
    null = [[1e-4 * rng.lognormvariate(0, 0.5) * (n + 1) for _ in range(96)] for n in range(4)]
    seen = [[v * (excess if n >= 2 and t > 14 else 1.2) for t, v in enumerate(row)] for n, row in enumerate(null)]
    flips = [
        Flip(
            rng.randrange(4),
            0,
            rng.randrange(96),
            gap := rng.lognormvariate(-6, 1),
            gap * rng.choice((2, 3, 5, 0.05)),
            True,
        )
        for _ in range(40)
    ]
    for flip in flips:
        flip.cheap = flip.gap <= flip.allowed
    return Layers(
        0,
        seen,
        null,
        [1.2, 1.1, excess, excess / 2],
        2 if excess > 10 else None,
        [0.01, 0.02, 0.04, 0.05],
        [0.01] * 4,
        flips,
    )


def greedy(rng: random.Random, good: bool) -> Greedy:
    prompts = [
        GreedyPrompt(i, 48, at, 0.02 if good else 1.9, 0.06, good)
        for i, at in enumerate([None, None, 31, 12 if good else 2, None, None])
    ]
    survival = [sum(p.first_divergence is None or p.first_divergence > t for p in prompts) / 6 for t in range(48)]
    return Greedy(prompts, survival, "pass" if good else "fail")


def certificate(rng: random.Random) -> Certificate:
    faults = []
    for part, n in PARTS.items():
        for i in range(n):
            excess = 10 ** rng.uniform(0.3, 4)
            faults.append(
                CertifiedFault(
                    f"{part.lower()}_fault_{i}",
                    part,
                    f"what {part} fault {i} does",
                    excess / 1e3,
                    excess,
                    excess > 10,
                    "window edge",
                    15,
                    "excess",
                    i != 5 or part != "RoPE",
                )
            )
    real = [f for f in faults if f.applies]
    return Certificate("ggml: q8_0 activations", faults, sum(f.caught for f in real), len(real), 0.7)


def text_layer() -> TextLayer:
    checks = [
        Check("vocabulary table", "pass", 201088, "", [], "GGUF metadata", 201088, {"ordinary": [199998, 199998]}),
        Check(
            "tokenizer",
            "look",
            10500,
            "llama.cpp's own splitting rule",
            [f"{HOSTILE!r}: expected '[1, 2]', got '[3]'"],
            "llama_cpp's own",
            9560,
            {"languages": [1130, 1522], "code": [1532, 1532]},
        ),
        Check("server prompts", "skipped", 0, "llama_cpp has no chat template"),
        Check(
            "stop ids", "fail", 4, "", ["<|call|>: expected 'stops', got 'goes on'"], HOSTILE, 3, {"must stop": [2, 3]}
        ),
    ]
    return TextLayer(checks, "fail")


def tool_calls() -> ToolCalls:
    good = ToolCall(
        "What is the weather in Paris? (1 tools, low)",
        True,
        True,
        True,
        True,
        True,
        True,
        True,
        None,
        '[commentary to functions.get_weather] {"city":"Paris"}',
        '[commentary to functions.get_weather] {"city":"Paris"}',
    )
    bad = ToolCall(
        HOSTILE,
        False,
        False,
        True,
        True,
        False,
        True,
        True,
        None,
        "[final] Hello",
        f"[final] {HOSTILE}",
        "the answers part at token 3",
    )
    return ToolCalls([good, bad], "fail", "one answer differs")
