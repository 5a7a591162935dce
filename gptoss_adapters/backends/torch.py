"""The reference model (`gptoss_adapters.reference.model`) as a backend: any checkpoint kind, and the taps that
parity reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_adapters.backends.protocol import Capabilities, Engine, Info, Request, Token
from gptoss_adapters.backends.sampling import Sampler
from gptoss_adapters.errors import UsageError, missing_extra
from gptoss_adapters.spec import EOS_TOKEN_IDS

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint

DTYPES = ("float32", "float64", "bfloat16")


class Torch(Engine):
    """Options: dtype (of activations), device, experts (see `GptOss.from_checkpoint`), n_threads, n_batch (tokens per
    step of a prefill), truncate (None: as the checkpoint says; True or False: round the YaRN bounds, or do not), and
    n_ctx (tokens; None: the model's maximum).
    """

    arithmetic = "torch"
    opens = ("hf", "gguf")

    def __init__(
        self,
        path: str | None,
        dtype: str = "float32",
        device: str = "cpu",
        experts: str = "auto",
        n_threads: int = 1,
        n_batch: int = 512,
        truncate: bool | None = None,
        n_ctx: int | None = None,
    ) -> None:
        if path is None:
            raise UsageError("torch needs a checkpoint", expected="torch=PATH")
        if dtype not in DTYPES:
            raise UsageError("argument dtype", expected=", ".join(DTYPES), got=dtype)
        try:
            import torch
        except ImportError as error:
            raise missing_extra("torch", "torch") from error
        from gptoss_adapters.checkpoint import open_checkpoint
        from gptoss_adapters.reference.generate import KeptCache
        from gptoss_adapters.reference.model import GptOss

        torch.set_num_threads(n_threads)
        checkpoint = open_checkpoint(path)
        if truncate is not None:
            checkpoint = checkpoint.with_config(replace(checkpoint.config, yarn_truncate=truncate))
        self._torch, self._n_batch = torch, n_batch
        self._model = GptOss.from_checkpoint(checkpoint, getattr(torch, dtype), device, experts)
        self._new_kept = partial(KeptCache, self._model)
        self._kept = self._new_kept()
        settings = {
            "dtype": dtype,
            "device": device,
            "experts": experts,
            "n_threads": n_threads,
            "n_batch": n_batch,
            "truncate": checkpoint.config.yarn_truncate,
        }
        self.info = _describe(checkpoint, torch.__version__, n_ctx, settings)

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        cache = self._model.new_cache()
        for at in range(0, len(tokens), self._n_batch):
            logits = self._forward(tokens[at : at + self._n_batch], cache)
            if at + len(logits) > start:
                yield logits[max(start - at, 0) :]

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        sampler = Sampler(request)
        kept = self._kept if request.reuse else self._new_kept()
        self.reused = kept.rewind(request.tokens)
        for at in range(self.reused, len(request.tokens), self._n_batch):
            if cancelled():
                return
            logits = _array(kept.step(request.tokens[at : at + self._n_batch])[0, -1])
            kept.mark()
        for _ in range(self.info.n_ctx - len(request.tokens)):
            chosen = sampler.pick(logits)
            yield sampler.token(chosen, logits)
            logits = _array(kept.step([chosen])[0, -1])
        yield sampler.token(chosen := sampler.pick(logits), logits)

    def taps(self, tokens: Sequence[int], forced: np.ndarray | None) -> dict[str, np.ndarray]:
        from gptoss_adapters.reference.taps import Taps

        taps = Taps()
        if forced is not None:
            taps.forced = [self._torch.from_numpy(layer[None].astype(np.int64)) for layer in forced]
        logits = self._model(self._torch.tensor([list(tokens)]), taps=taps)
        parts = {
            "hidden": taps.hidden,
            "router_scores": taps.router_scores,
            "experts": taps.experts,
            "logits": [logits],
        }
        out = {name: np.stack([_array(layer[0]) for layer in layers]) for name, layers in parts.items()}
        return out | {"logits": out["logits"][0], "experts": out["experts"].astype(np.int32)}

    def _forward(self, tokens: Sequence[int], cache: Any) -> np.ndarray:
        return _array(self._model(self._torch.tensor([list(tokens)]), cache=cache)[0])


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def _describe(checkpoint: Checkpoint, version: str, n_ctx: int | None, settings: dict[str, Any]) -> Info:
    most = checkpoint.config.max_position_embeddings
    return Info(
        engine="torch",
        version=f"gptoss_adapters.reference.model, torch {version}",
        vocab_size=checkpoint.config.vocab_size,
        n_ctx=min(most, n_ctx or most),
        stop_ids=_stop_ids(checkpoint),
        capabilities=Capabilities("full", headers=True, taps=True, penalties="always", logit_bias=True),
        settings=settings,
    )


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """What the checkpoint's generation config says; without one, gpt-oss's own and the config's."""
    listed = (checkpoint.generation_config or {}).get("eos_token_id")
    if listed is None:
        listed = [*EOS_TOKEN_IDS, checkpoint.config.eos_token_id]
    found = listed if isinstance(listed, list) else [listed]
    return tuple(sorted({i for i in found if i is not None and i < checkpoint.config.vocab_size}))
