"""What a forward pass is given, checked before it runs: token ids and their positions."""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_adapters.errors import UsageError
from gptoss_adapters.spec import GptOssConfig


def check_ids(ids: Tensor, config: GptOssConfig) -> None:
    """ids: int64 or int32 of shape [B, T], not empty, inside the vocabulary. Raises UsageError."""
    if ids.dim() != 2 or not ids.numel() or ids.dtype not in (torch.int64, torch.int32):
        raise UsageError("input_ids must be int64 of shape [B, T], not empty", got=f"{ids.dtype} {list(ids.shape)}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        raise UsageError(
            "input_ids: token id outside the vocabulary",
            expected=f"0..{config.vocab_size - 1}",
            got=low if low < 0 else high,
        )


def count_positions(ids: Tensor, first: int | None) -> Tensor:
    """[B, T]: `first` and onwards in every row. Raises UsageError for None: the rows do not go on at one position."""
    if first is None:
        raise UsageError("rows of different lengths are in the cache: give their positions")
    return torch.arange(first, first + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)


def check_positions(positions: Tensor, ids: Tensor, config: GptOssConfig) -> None:
    """positions: as many as ids, ascending in each row, inside the context. Raises UsageError."""
    if positions.shape != ids.shape:
        raise UsageError(
            "positions must have the shape of input_ids", expected=list(ids.shape), got=list(positions.shape)
        )
    longest = int(positions.max()) + 1
    if longest > config.max_position_embeddings:
        raise UsageError(
            "prompt is longer than the context", expected=f"<= {config.max_position_embeddings}", got=longest
        )
    if bool((positions.diff(dim=1) < 0).any()):
        raise UsageError("positions must ascend in each row, padding (-1) on the left")
