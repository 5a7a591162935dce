"""How LoRA adapters of gpt-oss come into vLLM: read, checked and rewritten where every one of them passes.

`--lora-modules`, `/v1/load_lora_adapter`, resolvers and `LoRARequest` all end in a worker's `_load_adapter`. vLLM's own
takes what names and shapes it expects, and is silent about much of the rest: layers that the model does not have,
modules outside `--lora-target-modules`, experts in Unsloth's order of columns, matrices smaller than the model's. Here
an adapter is served whole, or refused in one line.

On a CPU two things more: vLLM cannot wrap the experts of any MXFP4 or CPU kernel, which stops every start with
`--enable-lora`; ours take adapters (lora_experts), others are left alone. And its kernels give the tokens of requests
without an adapter that of the last slot when both are in one batch.

Installed when a gpt-oss model is built with LoRA, so nothing of it runs for anybody else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import torch
from vllm.config.lora import MaxLoRARanks
from vllm.lora import model_manager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.fused_moe import MoERunner

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.errors import BadInput, GptOssError
from gptoss_adapters.spec import GptOssConfig
from gptoss_adapters.vllm_plugin import log, policy
from gptoss_adapters.vllm_plugin.decision import open_local
from gptoss_adapters.vllm_plugin.lora_experts import FusedMoE3DWithLoRA
from gptoss_adapters.vllm_plugin.lora_reading import ServedAdapter, read_adapter

_MERGED = "or merge it into the checkpoint (gptoss-convert to-hf BASE -o OUT --lora ADAPTER)"


def install() -> None:
    """May be called again."""
    if getattr(WorkerLoRAManager._load_adapter, "gptoss_adapters", False):
        return
    WorkerLoRAManager._load_adapter = _wrap_loader(WorkerLoRAManager._load_adapter)
    model_manager.from_layer = _wrap_layers(model_manager.from_layer)
    for name in ("_shrink_prefill", "_shrink_decode"):
        setattr(PunicaWrapperCPU, name, _leave_out_base_rows(getattr(PunicaWrapperCPU, name)))


def _wrap_loader(builtin: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(builtin)
    def load_adapter(self: Any, lora_request: Any) -> Any:
        path = Path(get_adapter_absolute_path(lora_request.lora_path))
        manager = self._adapter_manager
        if not (_is_gpt_oss(manager.model.config) and path.exists()):
            return builtin(self, lora_request)  # which says that there is nothing
        try:
            lora = _load(self, lora_request, path)
        except GptOssError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # a fault of ours must not cost what vLLM would serve
            log.warning("gptoss-adapters: vLLM reads LoRA adapter %s: %s: %s", path, type(error).__name__, error)
            lora = builtin(self, lora_request)
        try:
            check_served(manager, lora, path)
        except GptOssError as error:
            raise ValueError(str(error)) from None
        return lora

    load_adapter.gptoss_adapters = True  # type: ignore[attr-defined]
    return load_adapter


def _load(worker: Any, lora_request: Any, path: Path) -> Any:
    manager = worker._adapter_manager
    model = manager.model
    adapter = read_adapter(path, _read_config(model.config), _open_base(model.vllm_config.model_config.model))
    check_rank(adapter, worker.lora_config.max_lora_rank)
    dtype = worker.lora_config.lora_dtype
    tensors = {name: torch.from_numpy(matrix).to(dtype) for name, matrix in adapter.tensors()}
    modules = sorted({name.split(".")[-3] for name in tensors})
    lora = worker._lora_model_cls.from_lora_tensors(
        lora_model_id=lora_request.lora_int_id,
        tensors=tensors,
        peft_helper=PEFTHelper.from_dict({"r": adapter.rank, "lora_alpha": adapter.rank, "target_modules": modules}),
        device="cpu",
        dtype=dtype,
        model_vocab_size=worker.vocab_size,
        weights_mapper=model.hf_to_vllm_mapper.get_rename_mapper(),
    )
    lora.is_3d_lora_weight = adapter.has_experts
    manager._validate_moe_lora_format(lora)
    log.info("gptoss-adapters: LoRA adapter %s read: %d matrices", path, len(tensors))
    return lora


def _read_config(hf: Any) -> GptOssConfig:
    """Raises RuntimeError where only vLLM can read the model's config."""
    try:
        return spellings.from_hf(hf.to_dict())
    except GptOssError as error:
        raise RuntimeError(str(error)) from error


def _open_base(model: str) -> Checkpoint | None:
    """The base's files, where they are at hand and we can read them."""
    try:
        return open_local(str(model))
    except (GptOssError, OSError):
        return None


def check_rank(adapter: ServedAdapter, limit: int) -> None:
    """Raises BadInput naming the option that would do."""
    if adapter.rank > limit:
        enough = next((str(rank) for rank in sorted(get_args(MaxLoRARanks)) if rank >= adapter.rank), None)
        hint = f"start vLLM with --max-lora-rank {enough}, {_MERGED}" if enough else _MERGED[3:]
        raise BadInput(
            "the adapter's rank is above vLLM's limit",
            file=adapter.path,
            expected=f"at most {limit}",
            got=adapter.rank,
            hint=hint,
        )


def check_served(manager: Any, lora: Any, path: Path) -> None:
    """Raises BadInput when vLLM would hold a matrix that no layer of this deployment applies."""
    served = set(manager.modules)
    for packed in manager.packed_modules.values():
        served.update(packed)
    absent = {name.removesuffix(".base_layer") for name in lora.loras} - served
    absent = {name for name in absent if _is_here(manager.model, name)}
    if not absent:
        return
    first, targets = min(absent), manager.lora_config.target_modules
    if targets is not None and not manager._match_target_modules(first):
        what = f"--lora-target-modules {' '.join(sorted(targets))} leaves out modules that the adapter changes"
        hint = f"add {first.rpartition('.')[2]} to it, {_MERGED}"
    elif first.endswith(".experts"):
        what, hint = "the adapter changes experts, which take no adapter in this deployment", _MERGED[3:]
    else:
        what, hint = "the adapter changes modules that vLLM's model does not adapt", _MERGED[3:]
    raise BadInput(what, file=path, tensor=first, got=f"{len(absent)} such modules", hint=hint)


def _is_here(model: Any, name: str) -> bool:
    """Whether the layer is on this rank of a pipeline."""
    layers = model.model
    parts = name.split(".")
    n = int(parts[parts.index("layers") + 1])
    return bool(layers.start_layer <= n < layers.end_layer)


def _wrap_layers(builtin: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(builtin)
    def from_layer(layer: Any, max_loras: int, lora_config: Any, packed: Any, model_config: Any = None) -> Any:
        if not (isinstance(layer, MoERunner) and policy.on_cpu() and _is_gpt_oss(model_config)):
            return builtin(layer, max_loras, lora_config, packed, model_config)
        if not FusedMoE3DWithLoRA.takes(layer):
            return layer  # vLLM goes on without; an adapter that needs it is refused
        wrapped = FusedMoE3DWithLoRA(layer)
        wrapped.create_lora_weights(max_loras, lora_config, model_config)
        return wrapped

    return from_layer


def _leave_out_base_rows(builtin: Callable[..., None]) -> Callable[..., None]:
    @wraps(builtin)
    def shrink(self: Any, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        builtin(self, y, x, w_t_all, scale)
        y.mul_((self._token_lora_indices[: y.size(0)] >= 0).unsqueeze(1))  # -1 has indexed the last slot

    return shrink


def _is_gpt_oss(config: Any) -> bool:
    return getattr(config, "model_type", None) == "gpt_oss"
