"""The options that every exporter shares: what is opened, which adapters are merged into it, how dense experts are
rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_adapters.errors import UsageError

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_converters.rows.quantised import Rounding

RULES = ("mse", "even", "ocp", "triton", "ggml")
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="ADAPTER[:SCALE]",
        help="Merge a PEFT LoRA adapter (folder or Hub id), times SCALE; may be repeated.",
    ),
]
LoraOrderOption = Annotated[
    str | None,
    typer.Option(
        "--lora-order",
        metavar="peft|unsloth",
        help="How a fused expert adapter orders its columns, where the adapter does not say.",
    ),
]
RoundingOption = Annotated[
    str | None,
    typer.Option("--rounding", metavar="RULE", help="How dense experts become MXFP4: mse, even, ocp, triton or ggml."),
]
ScalesFromOption = Annotated[
    str | None,
    typer.Option(
        "--scales-from",
        metavar="CHECKPOINT",
        help="Keep this MXFP4 checkpoint's scales for blocks that did not change.",
    ),
]


ExactYarnOption = Annotated[
    bool,
    typer.Option(
        "--exact-yarn", help="Say that YaRN bounds are not rounded, as in every published model: a GGUF cannot say it."
    ),
]


def open_input(
    path: str,
    revision: str | None,
    lora: Sequence[str] | None = None,
    lora_order: str | None = None,
    *,
    exact_yarn: bool = False,
) -> Checkpoint:
    """The checkpoint, with the adapters merged into it. Raises BadInput and UsageError."""
    from gptoss_adapters.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, revision=revision)
    if exact_yarn:
        checkpoint = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, yarn_truncate=False))
    if lora_order not in (None, "peft", "unsloth"):
        raise UsageError("--lora-order takes peft or unsloth", got=lora_order)
    if lora:
        from gptoss_adapters.checkpoint.lora import parse_adapter, with_adapters

        checkpoint = with_adapters(checkpoint, [parse_adapter(text) for text in lora], lora_order)
    return checkpoint


def rounding_for(checkpoint: Checkpoint, rule: str | None, scales_from: str | None) -> Rounding:
    """The rule, and every place where the scales of blocks that did not change may be found: --scales-from, an
    adapter's base, the side file.
    """
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_converters.rows.quantised import CheckpointHints, Hints, Rounding, SideFile, side_file_of

    if rule is not None and rule not in RULES:
        raise UsageError("--rounding: unknown rule", expected=" | ".join(RULES), got=rule)
    hints: list[Hints] = []
    if scales_from:
        hints.append(CheckpointHints(open_checkpoint(scales_from), whole=True))
    if checkpoint.base is not None:
        hints.append(CheckpointHints(checkpoint.base, whole=False))
    side = side_file_of(checkpoint.path)
    if side.is_file():
        hints.append(SideFile(side))
    return Rounding(rule or "mse", hints)
