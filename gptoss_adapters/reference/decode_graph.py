"""Decoding on a GPU as one CUDA graph per token: a small model's step is hundreds of launches, which take the host
longer to send than the GPU to run.

A graph replays fixed addresses and asks the host nothing, so keys and values stand in buffers of fixed size, and which
columns a query sees is decided by their positions alone. A sliding layer's buffer is a ring of its window; a full
layer's is as long as the context that the graph was made for, all of which every step reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.cache import Cache
from gptoss_adapters.reference.experts import TritonExperts
from gptoss_adapters.reference.model import GptOss

SHORTEST = 1024  # columns: contexts are rounded up to this times a power of two, so that a few graphs serve all lengths


class FixedCache:
    """Keys and values of one layer for steps of one token: k, v [B, S, n_kv, hd], positions [B, S] (-1: nothing there).

    Position p stands in column p % S.
    """

    def __init__(
        self, rows: int, columns: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.k, self.v = (
            torch.zeros((rows, columns, kv_heads, head_dim), dtype=dtype, device=device) for _ in range(2)
        )
        self.positions = torch.full((rows, columns), -1, dtype=torch.int64, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]

    def load(self, cache: Cache) -> None:
        """Hold what `cache` holds, and nothing else."""
        k, v, positions = cache.held()
        first = max(0, positions.shape[1] - self.positions.shape[1])  # a ring's window does not reach what came before
        self.positions.fill_(-1)
        self.extend(k[:, first:], v[:, first:], positions[:, first:])

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """As `Cache.extend`, but returns every column of the buffers. Padding (-1) goes to the last one, which is
        written later or stays at -1.
        """
        at = positions % self.positions.shape[1]  # (B, T); -1 is the last column
        self.k[self._rows, at], self.v[self._rows, at], self.positions[self._rows, at] = k, v, positions
        return self.k, self.v, self.positions


class DecodeGraph:
    """One decode step of `rows` sequences of up to `context` tokens. `load` the cache of a prefill, then `step` token
    by token.

    On a CUDA device the step is captured when the graph is made and replayed; elsewhere it runs as it is, which is how
    its results are tested where there is no GPU. Raises UsageError where `capturable` is False on a CUDA device.
    """

    def __init__(self, model: GptOss, rows: int, context: int) -> None:
        self.model, self.rows, self.context = model, rows, context
        config = model.config
        self.cache = [
            FixedCache(
                rows,
                min(context, attention.window or context),
                config.num_key_value_heads,
                config.head_dim,
                model.dtype,
                model.device,
            )
            for attention, _ in model.layers
        ]
        self._ids = torch.zeros((rows, 1), dtype=torch.int64, device=model.device)
        self._positions = torch.full((rows, 1), -1, dtype=torch.int64, device=model.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if model.device.type == "cuda":
            if not capturable(model, rows):
                raise UsageError("this model's experts cannot be held by a CUDA graph at so many rows", got=rows)
            self._logits = self._capture()

    @torch.inference_mode()
    def load(self, cache: Sequence[Cache]) -> None:
        """Take over the keys and values that a prefill of `rows` rows has left."""
        for own, prefilled in zip(self.cache, cache, strict=True):
            own.load(prefilled)

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [B], positions [B, 1] below `context` -> logits [B, 1, V], overwritten by the next step."""
        self._ids.copy_(tokens[:, None])
        self._positions.copy_(positions)
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._logits

    def _step(self) -> Tensor:
        return self.model.head(self.model.forward(self._ids, self._positions, self.cache))

    @torch.inference_mode()
    def _capture(self) -> Tensor:
        """A few steps of padding first: kernels are compiled and libraries set up outside of the graph."""
        with torch.cuda.device(self.model.device):
            aside, present = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(present)
            with torch.cuda.stream(aside):
                for _ in range(3):
                    self._step()
            present.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                return self._step()


def capturable(model: GptOss, rows: int) -> bool:
    """Whether a step of so many rows neither waits for the host nor has shapes that depend on the routing."""
    return all(isinstance(moe.experts, TritonExperts) and moe.experts.capturable(rows) for _, moe in model.layers)


def worthwhile(model: GptOss, rows: int) -> bool:
    """Whether `generate` decodes by a graph."""
    return model.device.type == "cuda" and capturable(model, rows)


def context_for(model: GptOss, tokens: int) -> int:
    """The context of the graph that serves sequences of so many tokens."""
    columns = SHORTEST
    while columns < tokens:
        columns *= 2
    return min(columns, model.config.max_position_embeddings)
