"""What torch.compile and torch.export need: operations that are nodes of their graph, and a torch.nn.Module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptoss_adapters.errors import UsageError
from gptoss_adapters.mxfp4 import torch_ops  # importing it registers the operators
from gptoss_adapters.reference.experts import NativeExperts
from gptoss_adapters.reference.linear import as_tensor, linear, reads_directly
from gptoss_adapters.reference.ops import Ops
from gptoss_adapters.reference.packed import PackedWeight


def trace_ops(definition: Ops) -> Ops:
    """The definitions, with the native product as one node of the graph, whatever the number of rows."""
    return replace(definition, linear=linear_traced)


def linear_traced(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `linear`."""
    if not reads_directly(x, weight):
        return linear(x, weight, bias)
    y: Tensor = torch_ops.linear_bf16(x, weight, None)
    return y if bias is None else y + bias.to(x.dtype)


class TracedExperts:
    """`NativeExperts` as one node of a graph."""

    def __init__(self, native: NativeExperts) -> None:
        self.config = native.config
        self.precision = native.precision
        self.tensors = [as_tensor(array) for array in native.arrays()]

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        alpha, limit = self.config.swiglu_alpha, self.config.swiglu_limit
        y: Tensor = torch_ops.mxfp4_moe(
            x.float(), *self.tensors, chosen.int(), weights.float(), alpha, limit, self.precision
        )
        return y.to(x.dtype)


def trace(model: Any, definition: Ops) -> Any:
    """A copy of the model for a tracer. Raises UsageError for one with packed dense weights."""
    dense = (model.unembedding, *(weight for block in model.layers for weight in block.attention.w.values()))
    if any(isinstance(weight, PackedWeight) for weight in dense):
        raise UsageError('a model with packed dense weights cannot be traced: load it with dense="stored"')
    ops = trace_ops(definition)
    blocks = []
    for block in model.layers:
        experts = block.moe.experts
        if isinstance(experts, NativeExperts):
            experts = TracedExperts(experts)
        attention, moe = replace(block.attention, ops=ops), replace(block.moe, experts=experts, ops=ops)
        blocks.append(block._replace(attention=attention, moe=moe))
    return replace(model, ops=ops, layers=blocks)


class Traceable(torch.nn.Module):
    """ids [B, T] -> logits [B, T, V], from position 0, of a model made by `trace`. It holds no weight of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=self.model.device).expand(input_ids.shape[0], -1)
        logits: Tensor = self.model.head(self.model.forward(input_ids, positions))
        return logits
