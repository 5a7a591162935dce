"""A report with every section filled, from a seed, and with hostile names: for the tests of the renderings. Not a
test module.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from gptoss_adapters.parity.report.measurements import Flip, Histogram, Layers, Metrics, Strip
from gptoss_adapters.parity.report.schema import (
    AngleError,
    Certificate,
    CertifiedFault,
    Check,
    Deviation,
    Family,
    Greedy,
    GreedyPrompt,
    Identity,
    Report,
    Structural,
    Suspect,
    TargetResult,
    TextLayer,
    ToolCall,
    ToolCalls,
    Weights,
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


def report() -> Report:
    rng = random.Random(7)
    edges = [-7 + i * 0.25 for i in range(29)]
    shape = [int(300 * 2.718 ** (-((e + 3.2) ** 2) / 0.8)) for e in edges[:-1]]
    shifted = [0] * 4 + shape[:-4]
    deviation = Deviation(
        "yarn_truncate",
        "confirmed",
        "llama.cpp",
        "all since b6000",
        "ggml.c: rope yarn corr dims",
        "rounds the bounds of the YaRN ramp to 8 and 18",
        840.0,
        1.3,
        None,
        767,
        0.99,
        0.01,
    )
    llama = TargetResult(
        "llama_cpp=pocket.gguf",
        "llama_cpp",
        "SAME EXCEPT",
        "Only the rounded YaRN bounds are there; with them in the reference nothing is left above noise.",
        [],
        [deviation],
        "ggml: dense bf16, experts q8_0 activations, cache f32",
        families(rng, 3e-4, 2),
        2.4,
        None,
        strips(rng, 1e-4, 1.3),
        Histogram(edges, shape, [*shape[1:], 0]),
        layers(rng, 1.5),
        [
            Structural("window reach", "pass", "0..15", "0..15"),
            Structural("decode against prefill", "pass", "same", "same"),
        ],
        greedy(rng, True),
        text_layer(),
        tool_calls(),
        Weights({"BYTES EQUAL": 71}, 104_600_000, [], [], [], [], "pass"),
        certificate(rng),
        Identity(
            "llama_cpp", "llama-cpp-python 0.3.36", {"pocket.gguf": "ab" * 32}, {"n_threads": 1, "cache_type": "f32"}
        ),
        41.3,
    )
    suspects = [
        Suspect("win_plus1", True, 0.998, "window", "sliding window keeps W+1 keys", 1.2, 0.999, 0.004),
        Suspect("win_none", False, 0.41, "window", "no layer sliding", 320.0, 0.2, 0.01),
        Suspect(HOSTILE, False, 0.1, HOSTILE, HOSTILE),
    ]
    broken = TargetResult(
        f"llama_server={HOSTILE}",
        "llama_server",
        "DIFFERENT",
        "The sliding window keeps one key too many: first off at position 15.",
        suspects,
        [],
        "ggml: q8_0 activations",
        families(rng, 3e-4, 400),
        460.0,
        15,
        strips(rng, 1e-4, 300),
        Histogram(edges, shifted, shape),
        layers(rng, 300),
        [Structural("window reach", "fail", "0..15", "0..16", "layer 0, sliding")],
        greedy(rng, False),
        None,
        None,
        Weights(
            {"BYTES EQUAL": 70, "DIFFERENT": 1}, 104_600_000, ["layers.0.<b>q_proj</b>.weight"], [], [], [], "fail"
        ),
        certificate(rng),
        Identity("llama_server", HOSTILE, {HOSTILE: "00"}, {HOSTILE: HOSTILE}),
    )
    dead = TargetResult(
        "vllm@/opt/vllm/bin/python=a/rather/long/path/that/has/no/space/in/it/at/all/and/goes/on/and/on/for/ever/model.safetensors",
        "vllm",
        "NOT COMPARABLE",
        "vllm: died with SIGABRT in open (error: no GPU)",
    )
    same = TargetResult(
        "torch",
        "torch",
        "SAME",
        "Every logit is bit for bit the same.",
        families=families(rng, 1e-9, 0.5),
        null="none needed",
    )
    bounded = TargetResult(
        "ollama=pocket",
        "ollama",
        "SAME WITHIN NUMERICS",
        "Lower bounds only: the engine gives its 20 best.",
        families=families(rng, 3e-4, 1.1),
        null="ggml",
        certificate=certificate(rng),
    )
    for one in bounded.families:
        one.metrics.kl_lower_bound = True
    positions = [2**n for n in range(18)]
    angles = AngleError(
        positions,
        [p * 3.1e-5 for p in positions],
        [8.093, 17.398],
        [8.0, 18.0],
        [1, 16, 64, 256, 768],
        [1e-12, 1e-9, 2e-7, 4e-6, 3e-5],
    )
    return Report(
        "pocket",
        created="2026-11-25T18:00:00Z",
        repro=f"gptoss-parity run pocket --target 'llama_cpp=pocket.gguf' --seed 0  # {HOSTILE}",
        reference=Identity("torch", "torch 2.13.0", {"model.safetensors": "cd" * 32}, {"dtype": "float32"}),
        config={"num_hidden_layers": 4, "sliding_window": 16, HOSTILE: HOSTILE},
        targets=[llama, broken, dead, same, bounded],
        angle_error=angles,
        seconds=151.0,
    )


if __name__ == "__main__":
    from gptoss_adapters.parity.report import html, markdown

    folder = Path(sys.argv[1])
    report().save(folder / "report.json")
    (folder / "report.html").write_text(html.render(report()))
    (folder / "report.md").write_text(markdown.render(report()))
