"""A checkpoint of any kind as the tensors that vLLM's gpt-oss loader knows: Hugging Face's names, out of the one layout
table.

vLLM then cuts them for tensor, expert and pipeline parallel ranks as it cuts its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import Checkpoint, layouts
from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.spec import MXFP4_BLOCK


def translate_weights(checkpoint: Checkpoint, *, quantise: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in forward order; experts in MXFP4 if they are stored so, or if `quantise` (by smallest
    squared error).
    """
    config = checkpoint.config
    packed_names, dense_names = (layouts.parts(kind, config) for kind in (Kind.HF_MXFP4, Kind.HF_BF16))
    for name, info in checkpoint.tensors.items():
        is_weight = name.endswith(("experts.gate_up.weight", "experts.down.weight"))
        if info.encoding == "mxfp4" or (is_weight and quantise):
            blocks, scales = checkpoint.mxfp4(name) if info.encoding == "mxfp4" else quantise_weight(checkpoint, name)
            for part, array in zip(packed_names[name], (blocks, scales), strict=True):
                yield part.name, as_tensor(array)
            continue
        tensor = as_tensor(checkpoint.array(name))
        if is_weight:  # stored [E, in, out] in that kind
            tensor = tensor.transpose(-1, -2)
        elif name.endswith("experts.down.bias"):
            tensor = tensor.clone()  # vLLM writes zeros into it on all ranks but the first
        yield dense_names[name][0].name, tensor


def quantise_weight(checkpoint: Checkpoint, name: str) -> tuple[U8, U8]:
    """blocks [E, O, I / 32, 16], scales [E, O, I / 32] of a dense expert weight; one expert is in memory at a time."""
    e, o, i = checkpoint.tensors[name].shape
    blocks = np.empty((e, o, i // MXFP4_BLOCK, MXFP4_BLOCK // 2), np.uint8)
    scales = np.empty((e, o, i // MXFP4_BLOCK), np.uint8)
    for n in range(e):
        blocks[n], scales[n] = mxfp4.encode(np.ascontiguousarray(checkpoint.array(name, expert=n)), rule="mse")
    return blocks, scales
