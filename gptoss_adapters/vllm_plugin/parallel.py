"""Which parallel sizes a gpt-oss model can be cut into: said before anything is cut.

vLLM's own classes end in a ZeroDivisionError, in an assertion without words, or in experts that nobody loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_adapters.errors import UsageError
from gptoss_adapters.spec import GptOssConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

HEADS = ("num_attention_heads", "num_key_value_heads")


def refuse_uneven(vllm_config: VllmConfig, config: GptOssConfig) -> None:
    """Raises UsageError, naming the field and the sizes that would do, where the ranks do not divide the model."""
    from vllm.distributed import get_ep_group, get_tensor_model_parallel_world_size

    by_expert = vllm_config.parallel_config.enable_expert_parallel
    _refuse(
        "--tensor-parallel-size",
        get_tensor_model_parallel_world_size(),
        config,
        HEADS if by_expert else (*HEADS, "intermediate_size"),
    )
    if by_expert:
        _refuse("--enable-expert-parallel", get_ep_group().world_size, config, ("num_experts",))


def _refuse(option: str, ranks: int, config: GptOssConfig, fields: tuple[str, ...]) -> None:
    sizes = {field: getattr(config, field) for field in fields}
    uneven = [f"{field} {size}" for field, size in sizes.items() if size % ranks]
    if uneven:
        fitting = [n for n in range(1, min(sizes.values()) + 1) if not any(size % n for size in sizes.values())]
        raise UsageError(
            f"{option}: {ranks} ranks do not divide {', '.join(uneven)}",
            hint=f"give one of {', '.join(map(str, fitting))}",
        )
