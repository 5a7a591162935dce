"""transformers' GptOss, from an HF folder: the published implementation, in fp32 and eager attention unless told
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptoss_adapters.backends.protocol import Capabilities, Engine, Info, Request, Token, as_ids
from gptoss_adapters.backends.sampling import Sampler
from gptoss_adapters.errors import BadInput, UsageError, missing_extra

PREFILL = 512  # tokens of a prompt per step: eager attention has every head's scores of a step against all before it


class Transformers(Engine):
    """Options: dtype ("float32", "bfloat16"), attention ("eager" or another of transformers' names), n_threads,
    truncate (None: as the config says; True or False: round the YaRN bounds, as llama.cpp always does, or do not), and
    n_ctx (tokens; None: the model's maximum).
    """

    arithmetic = "torch"
    opens = ("hf",)

    def __init__(
        self,
        path: str | None,
        dtype: str = "float32",
        attention: str = "eager",
        n_threads: int = 1,
        truncate: bool | None = None,
        n_ctx: int | None = None,
    ) -> None:
        if path is None:
            raise UsageError("transformers needs an HF folder", expected="transformers=FOLDER")
        try:
            import torch
            import transformers
        except ImportError as error:
            raise missing_extra("transformers", "transformers") from error
        torch.set_num_threads(n_threads)
        self._torch = torch
        self._model = _load(transformers, path, getattr(torch, dtype), attention, truncate)
        eos = self._model.generation_config.eos_token_id
        most = self._model.config.max_position_embeddings
        self.info = Info(
            engine="transformers",
            version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            vocab_size=self._model.config.vocab_size,
            n_ctx=min(most, n_ctx or most),
            stop_ids=as_ids(eos),
            capabilities=Capabilities("full", headers=True, penalties="always", logit_bias=True),
            settings={"dtype": dtype, "attention": attention, "n_threads": n_threads, "truncate": truncate},
        )

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        cache = None
        with self._torch.inference_mode():
            for at in range(0, len(tokens), PREFILL):
                part = tokens[at : at + PREFILL]
                wanted = at + len(part) - max(start, at)
                logits, cache = self._forward(part, max(wanted, 1), cache)
                if wanted > 0:
                    yield logits

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        sampler = Sampler(request)
        cache = None
        with self._torch.inference_mode():
            for at in range(0, len(request.tokens), PREFILL):
                if cancelled():
                    return
                logits, cache = self._forward(request.tokens[at : at + PREFILL], 1, cache)
            for left in range(self.info.n_ctx - len(request.tokens), -1, -1):
                chosen = sampler.pick(logits[0])
                yield sampler.token(chosen, logits[0])
                if left:
                    logits, cache = self._forward([chosen], 1, cache)

    def _forward(self, tokens: Sequence[int], keep: int, cache: Any) -> tuple[np.ndarray, Any]:
        ids = self._torch.tensor([list(tokens)])
        out = self._model(ids, logits_to_keep=keep, past_key_values=cache, use_cache=True)
        return out.logits[0].float().numpy(), out.past_key_values


def _load(transformers: Any, path: str, dtype: Any, attention: str, truncate: bool | None) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if truncate is not None:
            config.rope_parameters["truncate"] = truncate
        return transformers.GptOssForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attention, local_files_only=True
        ).eval()
    except (OSError, ValueError) as error:
        raise BadInput(f"transformers refuses the checkpoint: {error}", file=path) from error
