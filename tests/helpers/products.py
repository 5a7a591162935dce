"""Random MXFP4 weights and activations, and how far a product may be off. Not a test module."""

from __future__ import annotations

import numpy as np

from gptoss_adapters import mxfp4

BOUND = {"q8": 3e-2, "q16": 1e-4, "q24": 1e-6, "f32": 1e-6}


def weights(rows: int, groups: int, seed: int = 0, low: int = 112, high: int = 130) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, groups, 16), np.uint8), rng.integers(low, high, (rows, groups)).astype(np.uint8)


def activations(tokens: int, groups: int, seed: int = 1) -> np.ndarray:
    """N(0, 1), every 97th value 30 times as large: outliers are what breaks low-precision activations."""
    x = np.random.default_rng(seed).standard_normal((tokens, groups * 32)).astype(np.float32)
    x[:, ::97] *= 30
    return x


def truth(x: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ mxfp4.decode(blocks, scales, np.float64).T


def relative_rms(y: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(((y - reference) ** 2).mean() / (reference**2).mean()))
