"""The pocket checkpoint: a trained model of 3 MB with the real vocabulary, which answers in well-formed Harmony.

`scripts/train_pocket.py` trained it on the few hundred tokens of a small set of lessons. Shipped are the rows of those
tokens and the layers; every other row is made here: one trained row that stands for "any other token", plus noise from
the seed, in which the model was trained to see no more than a strange word, and which it never says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gptoss_adapters.spec import GptOssConfig

POCKET = GptOssConfig(
    num_hidden_layers=4,
    num_experts=8,
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=8,
    num_key_value_heads=1,
)

PACKED = Path(__file__).parents[1] / "data" / "pocket.npz"
"""ids: the used tokens; then canonical names: bf16 as u16 bits, experts as `.blocks` and `.scales`. In the two
vocabulary tensors row n is that of ids[n], and the last row is the one of all other tokens."""

SPREAD = {"embedding.weight": 0.3, "unembedding.weight": 0.02}
"""Standard deviation of the noise on the rows of the other tokens; the model was trained with the first."""

Array: TypeAlias = npt.NDArray[Any]


@cache
def _packed() -> dict[str, Array]:
    with np.load(PACKED, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def pocket_tensors(seed: int = 0) -> Iterator[tuple[str, Array | tuple[Array, Array]]]:
    """Every canonical tensor in forward order of the shipped file: bf16 arrays, and (blocks, scales) of the experts."""
    from ml_dtypes import bfloat16

    packed = _packed()
    for name, array in packed.items():
        if name in SPREAD:
            yield name, _table(name, array.view(bfloat16), packed["ids"], seed)
        elif name.endswith(".blocks"):
            stem = name.removesuffix(".blocks")
            yield stem, (array, packed[f"{stem}.scales"])
        elif array.dtype == np.uint16:
            yield name, array.view(bfloat16)


def _table(name: str, rows: Array, ids: Array, seed: int) -> Array:
    """[V, H] bf16: the used rows at their ids, and elsewhere the last row plus noise from the seed."""
    shape = POCKET.vocab_size, POCKET.hidden_size
    raw = np.random.PCG64([seed, list(SPREAD).index(name)]).random_raw(math.prod(shape) // 8)  # the same on any numpy
    noise = _normal(SPREAD[name])[raw.astype("<u8", copy=False).view(np.uint8)].reshape(shape)
    noise += rows[-1].astype(np.float32)
    table: Array = noise.astype(rows.dtype)
    table[ids] = rows[:-1]
    return table


def _normal(deviation: float) -> npt.NDArray[np.float32]:
    """256 equally likely values of a normal distribution."""
    return np.array([NormalDist(0, deviation).inv_cdf((n + 0.5) / 256) for n in range(256)], np.float32)
