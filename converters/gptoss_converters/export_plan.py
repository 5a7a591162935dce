"""What an exporter is about to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import GptOssConfig


@dataclass(frozen=True)
class ExportPlan:
    """The plan for the streaming writer, and what the user should know about it."""

    plan: Plan
    notices: list[str] = field(default_factory=list)


def refuse_differing_layers(config: GptOssConfig, file: Path, who: str) -> None:
    """Raises BadInput for a model whose layers differ in what `who` has one number for."""
    for values, what in ((config.experts_per_layer, "number of experts"), (config.windows, "sliding window")):
        if values:
            raise BadInput(
                f"the {what} differs from layer to layer: {who} has one for all layers",
                file=file,
                got=", ".join(map(str, dict.fromkeys(values))),
                hint="to-hf keeps it, and transformers and vLLM have classes for such models",
            )
