"""The KV cache: keys, values and positions of one layer, as far as later tokens can see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class KeyValues(Protocol):
    """What a layer's attention needs of a cache."""

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Append T columns; returns k, v [B, S, n_kv, hd] and positions [B, S] of every column that the new queries
        may need.
        """
        ...


class Cache:
    """Keys and values of one layer: [B, S, n_kv, hd] with the position of every column, [B, S] (-1: padding, on the
    left).

    Columns stand in the order of their positions, `start` to `end` of the buffers, so the tail is the most recent. A
    sliding layer keeps what its window can still reach; a full layer's buffer doubles as it grows. Appending changes no
    column before `end`: who keeps the buffers and the two ends can go back to them.
    """

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.start = 0
        self.end = 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.positions: Tensor | None = None

    def __len__(self) -> int:
        return self.end - self.start

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        new, t = (k, v, positions), k.shape[1]
        if self.window is not None and t >= self.window:  # long: more than will be kept
            every = tuple(torch.cat((old, x), 1) for old, x in zip(self.held(), new, strict=True)) if len(self) else new
            self._move([x[:, x.shape[1] - (self.window - 1) :] for x in every], 2 * self.window)
            return every
        if self.k is None or self.end + t > self.k.shape[1]:
            held = self.held() if self.k is not None else [x[:, :0] for x in new]
            grown = 2 * self.window if self.window is not None else max(len(self) + t, 2 * len(self))
            self._move(held, grown)
        for buffer, x in zip(self._buffers(), new, strict=True):
            buffer[:, self.end : self.end + t] = x
        self.end += t
        every = self.held()
        if self.window is not None:
            self.start = max(self.start, self.end - (self.window - 1))
        return every

    def held(self) -> tuple[Tensor, ...]:
        """k, v, positions of the columns in use, as views. Only after the first `extend`."""
        return tuple(x[:, self.start : self.end] for x in self._buffers())

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.k is not None and self.v is not None and self.positions is not None
        return self.k, self.v, self.positions

    def _move(self, held: Sequence[Tensor], size: int) -> None:
        """Into new buffers of `size` columns."""
        made = [x.new_empty((x.shape[0], size, *x.shape[2:])) for x in held]
        self.start, self.end = 0, held[0].shape[1]
        for buffer, x in zip(made, held, strict=True):
            buffer[:, : self.end] = x
        self.k, self.v, self.positions = made


def next_position(cache: Sequence[Cache] | None) -> int | None:
    """The position after what the cache holds; None if its rows end at different ones."""
    last = [c.positions[:, c.end - 1] for c in cache or () if c.positions is not None and len(c)]
    if not last:
        return 0
    if bool((last[0] != last[0][0]).any()):
        return None
    return int(last[0][0]) + 1
