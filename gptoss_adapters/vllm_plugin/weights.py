"""A checkpoint of any kind as the tensors that vLLM's gpt-oss loader knows: Hugging Face's names, out of the one layout
table.

vLLM then cuts them for tensor, expert and pipeline parallel ranks as it cuts its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gptoss_adapters.checkpoint import Checkpoint, layouts
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.vllm_plugin.quantised import ReadPacked


def translate_weights(checkpoint: Checkpoint, read_packed: ReadPacked | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in forward order; experts in MXFP4 if they are stored so, or if `read_packed` has them so."""
    config = checkpoint.config
    packed_names, dense_names = (layouts.parts(kind, config) for kind in (Kind.HF_MXFP4, Kind.HF_BF16))
    for name, info in checkpoint.tensors.items():
        is_weight = name.endswith(("experts.gate_up.weight", "experts.down.weight"))
        read = checkpoint.mxfp4 if info.encoding == "mxfp4" else read_packed if is_weight else None
        if read is not None:
            for part, array in zip(packed_names[name], read(name), strict=True):
                yield part.name, as_tensor(array)
            continue
        tensor = as_tensor(checkpoint.array(name))
        if is_weight:  # stored [E, in, out] in that kind
            tensor = tensor.transpose(-1, -2)
        elif name.endswith("experts.down.bias"):
            tensor = tensor.clone()  # vLLM writes zeros into it on all ranks but the first
        yield dense_names[name][0].name, tensor
