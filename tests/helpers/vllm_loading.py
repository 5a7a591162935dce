"""What vLLM's engine does before it serves, in this process: the config, the model class, the weights."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import vllm_engine as engine

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "max_model_len": 256,
}


@contextmanager
def world() -> Iterator[None]:
    """vLLM's process groups, of one process, with its plugins loaded."""
    os.environ.update({k: v for k, v in engine.ENVIRONMENT.items() if k not in os.environ})
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, parallel_state
    from vllm.plugins import load_general_plugins
    from vllm.v1.worker.cpu_model_runner import _set_torch_accelerator_to_noop

    load_general_plugins()
    cleanup_dist_env_and_memory()  # what an engine in this process may have left
    _set_torch_accelerator_to_noop()  # as the CPU worker does before it loads
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        yield
        cleanup_dist_env_and_memory()


def load(model: Path | str, **options: Any) -> Any:
    """The torch module of this model, as a worker process of vLLM loads it."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.models import utils

    config = EngineArgs(model=str(model), **(OPTIONS | options)).create_engine_config()
    utils._model_to_pp_missing_layer_names.clear()  # by the address of a model, and the last one's may be this one's
    with set_current_vllm_config(config):
        return get_model(vllm_config=config)


def digest(model: Any) -> dict[str, str]:
    """Each parameter's own bytes, hashed."""
    import torch

    return {
        name: hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in model.named_parameters()
    }
