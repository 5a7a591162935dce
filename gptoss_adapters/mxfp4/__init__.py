"""MXFP4: encode, decode and repack expert weights, and multiply with them as they are.

    >>> blocks, scales = mxfp4.encode(weights, rule="mse")        # [..., G * 32] -> [..., G, 16], [..., G]
    >>> mxfp4.decode(blocks, scales, np.float32)                  # exact
    >>> mxfp4.hf_to_ggml(blocks, scales, row_start=0, row_step=2) # the gate half of gate_up, as GGUF stores it
    >>> mxfp4.moe(x, experts, topk_ids, topk_weights, alpha, limit)  # one expert layer, weights straight from the file

`backend()` tells which kernels serve; each has a slow twin in `oracle.py` that it equals bit for bit.
"""

from gptoss_adapters.kernels.library import backend
from gptoss_adapters.mxfp4.codec import (
    check_scales,
    compare_ggml,
    decode,
    encode,
    ggml_to_hf,
    hf_to_ggml,
    to_f16,
    to_f32,
    to_q8_0,
)
from gptoss_adapters.mxfp4.oracle import RULES
from gptoss_adapters.mxfp4.products import ExpertWeights, linear_bf16, matmul, moe
from gptoss_adapters.mxfp4.statistics import QuantStats, TensorStats

__all__ = [
    "RULES",
    "ExpertWeights",
    "QuantStats",
    "TensorStats",
    "backend",
    "check_scales",
    "compare_ggml",
    "decode",
    "encode",
    "ggml_to_hf",
    "hf_to_ggml",
    "linear_bf16",
    "matmul",
    "moe",
    "to_f16",
    "to_f32",
    "to_q8_0",
]
