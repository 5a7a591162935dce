"""The real vLLM CPU engine in tests: load, logprobs over the whole vocabulary, and the reference beside it."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
ROOT = Path(__file__).parents[2]
GOLD = ROOT / "tests" / "data" / "checkpoints"
ENVIRONMENT = {  # one process, small and offline
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def load(path: Path | str, dtype: str = "float32", **more: Any) -> Any:
    """A vLLM engine in this process; ids in, ids out."""
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from vllm import LLM

    options = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "seed": 0,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 256,
        "max_logprobs": -1,
        "enable_prefix_caching": False,
    }
    return LLM(model=str(path), dtype=dtype, **(options | more))


def free(llm: Any) -> None:
    """Lets the next engine start in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()


def model_of(llm: Any) -> Any:
    """The torch module that vLLM built: in-process engines only."""
    return llm.apply_model(lambda model: model)[0]


def score(llm: Any, prompts: Sequence[Sequence[int]], new: int = 4) -> list[tuple[F64, list[int]]]:
    """Per prompt: log-probabilities [T - 1 + new, V] after each token but the last generated one, and the generated
    ids.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=new, prompt_logprobs=-1, logprobs=-1, detokenize=False, ignore_eos=True
    )
    out = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling, use_tqdm=False)
    return [(_table([*o.prompt_logprobs[1:], *o.outputs[0].logprobs]), list(o.outputs[0].token_ids)) for o in out]


def _table(positions: Sequence[dict[int, Any]]) -> F64:
    table = np.full((len(positions), len(positions[0])), np.nan)
    for row, entries in zip(table, positions, strict=True):
        row[list(entries)] = [entry.logprob for entry in entries.values()]
    assert not np.isnan(table).any()
    return table


def reference(path: Path | str, ids: Sequence[int], **options: Any) -> F64:
    """[T, V]: the reference's log-probabilities after each token."""
    import torch

    from gptoss_adapters.reference.model import GptOss

    logits = GptOss.from_checkpoint(str(path), **options)(torch.tensor([list(ids)]))[0]
    return torch.log_softmax(logits.double(), -1).numpy()


def distance(ours: F64, theirs: F64) -> tuple[float, float]:
    """(largest difference, mean KL(theirs | ours)) of two tables of log-probabilities."""
    kl = (np.exp(theirs) * (theirs - ours)).sum(-1)
    return float(np.abs(ours - theirs).max()), float(kl.mean())
