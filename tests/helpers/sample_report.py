"""A report with every section filled, from a seed, and with hostile names: for the tests of the renderings. Not a
test module.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from gptoss_adapters.parity.report.measurements import Histogram
from gptoss_adapters.parity.report.schema import (
    AngleError,
    Deviation,
    Identity,
    Report,
    Structural,
    Suspect,
    TargetResult,
    Weights,
)
from helpers.sample_measurements import HOSTILE, certificate, families, greedy, layers, strips, text_layer, tool_calls

EDGES = [-7 + i * 0.25 for i in range(29)]
SHAPE = [int(300 * 2.718 ** (-((e + 3.2) ** 2) / 0.8)) for e in EDGES[:-1]]


def deviation() -> Deviation:
    return Deviation(
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


def same_but_for_a_deviation(rng: random.Random) -> TargetResult:
    return TargetResult(
        "llama_cpp=pocket.gguf",
        "llama_cpp",
        "SAME EXCEPT",
        "Only the rounded YaRN bounds are there; with them in the reference nothing is left above noise.",
        [],
        [deviation()],
        "ggml: dense bf16, experts q8_0 activations, cache f32",
        families(rng, 3e-4, 2),
        2.4,
        None,
        strips(rng, 1e-4, 1.3),
        Histogram(EDGES, SHAPE, [*SHAPE[1:], 0]),
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


def different(rng: random.Random) -> TargetResult:
    suspects = [
        Suspect("win_plus1", True, 0.998, "window", "sliding window keeps W+1 keys", 1.2, 0.999, 0.004),
        Suspect("win_none", False, 0.41, "window", "no layer sliding", 320.0, 0.2, 0.01),
        Suspect(HOSTILE, False, 0.1, HOSTILE, HOSTILE),
    ]
    shifted = [0] * 4 + SHAPE[:-4]
    return TargetResult(
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
        Histogram(EDGES, shifted, SHAPE),
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


def not_comparable() -> TargetResult:
    return TargetResult(
        "vllm@/opt/vllm/bin/python=a/rather/long/path/that/has/no/space/in/it/at/all"
        "/and/goes/on/and/on/for/ever/model.safetensors",
        "vllm",
        "NOT COMPARABLE",
        "vllm: died with SIGABRT in open (error: no GPU)",
    )


def bit_for_bit_the_same(rng: random.Random) -> TargetResult:
    return TargetResult(
        "torch",
        "torch",
        "SAME",
        "Every logit is bit for bit the same.",
        families=families(rng, 1e-9, 0.5),
        null="none needed",
    )


def same_within_numerics(rng: random.Random) -> TargetResult:
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
    return bounded


def angle_error() -> AngleError:
    positions = [2**n for n in range(18)]
    return AngleError(
        positions,
        [p * 3.1e-5 for p in positions],
        [8.093, 17.398],
        [8.0, 18.0],
        [1, 16, 64, 256, 768],
        [1e-12, 1e-9, 2e-7, 4e-6, 3e-5],
    )


def report() -> Report:
    rng = random.Random(7)
    targets = [
        same_but_for_a_deviation(rng),
        different(rng),
        not_comparable(),
        bit_for_bit_the_same(rng),
        same_within_numerics(rng),
    ]
    return Report(
        "pocket",
        created="2026-11-25T18:00:00Z",
        repro=f"gptoss-parity run pocket --target 'llama_cpp=pocket.gguf' --seed 0  # {HOSTILE}",
        reference=Identity("torch", "torch 2.13.0", {"model.safetensors": "cd" * 32}, {"dtype": "float32"}),
        config={"num_hidden_layers": 4, "sliding_window": 16, HOSTILE: HOSTILE},
        targets=targets,
        angle_error=angle_error(),
        seconds=151.0,
    )


if __name__ == "__main__":
    from gptoss_adapters.parity.report import html, markdown

    folder = Path(sys.argv[1])
    report().save(folder / "report.json")
    (folder / "report.html").write_text(html.render(report()))
    (folder / "report.md").write_text(markdown.render(report()))
