"""`gptoss-convert to-mlx`."""

from __future__ import annotations

from typing import Annotated

import typer

from gptoss_converters.cli.console import JsonOption, PathArgument, RevisionOption, ThreadsOption, parse_size
from gptoss_converters.cli.options import (
    ExactYarnOption,
    LoraOption,
    LoraOrderOption,
    RoundingOption,
    ScalesFromOption,
)
from gptoss_converters.cli.to_hf import DryRunOption, ForceOption, OutputOption, ResumeOption, convert


def to_mlx(
    path: PathArgument,
    output: OutputOption,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of tensors in a file, e.g. 4G (default: 4.8G).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR|none", help="Folder with tokenizer.json, or none.")
    ] = None,
    lora: LoraOption = None,
    lora_order: LoraOrderOption = None,
    rounding: RoundingOption = None,
    scales_from: ScalesFromOption = None,
    exact_yarn: ExactYarnOption = False,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    resume: ResumeOption = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in MLX's layout, as mlx-lm loads it: MXFP4 experts byte for byte, the rest in bfloat16.

    Examples:

        gptoss-convert to-mlx ./my-tune -o ./my-tune-mlx

        gptoss-convert to-mlx gpt-oss-20b.gguf -o ./gpt-oss-20b-mlx
    """
    from gptoss_adapters.checkpoint import layouts
    from gptoss_converters.to_hf import HfOptions

    options = HfOptions(layouts.MLX, parse_size(max_shard_size), tokenizer)
    convert(
        path,
        output,
        options,
        lora,
        lora_order,
        rounding,
        scales_from,
        exact_yarn,
        dry_run,
        force,
        resume,
        threads,
        revision,
        as_json,
    )
