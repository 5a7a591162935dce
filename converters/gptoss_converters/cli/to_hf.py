"""`gptoss-convert to-hf`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gptoss_converters.cli.console import parse_size
from gptoss_converters.cli.export import FolderExport, run_export
from gptoss_converters.cli.options import MaxShardSizeOption, OutputFolderOption, Run, TokenizerFolderOption, takes_run


class Experts(StrEnum):
    mxfp4 = "mxfp4"
    bf16 = "bf16"


@takes_run()
def to_hf(
    run: Run,
    output: OutputFolderOption,
    experts: Annotated[Experts, typer.Option(help="How the experts are stored.")] = Experts.mxfp4,
    max_shard_size: MaxShardSizeOption = None,
    tokenizer: TokenizerFolderOption = None,
) -> None:
    """Write a checkpoint in Hugging Face's layout, as transformers and vLLM load it.

    Examples:

        gptoss-convert to-hf ./my-bf16-tune -o ./my-tune-mxfp4 --scales-from openai/gpt-oss-20b

        gptoss-convert to-hf openai/gpt-oss-20b -o ./merged --lora ./my-adapter --experts bf16

        gptoss-convert to-hf gpt-oss-20b.gguf -o ./gpt-oss-20b
    """
    from gptoss_adapters.checkpoint.kinds import Kind
    from gptoss_converters.to_hf import HfOptions, plan_hf

    kind = Kind.HF_MXFP4 if experts == Experts.mxfp4 else Kind.HF_BF16
    options = HfOptions(kind, parse_size(max_shard_size), tokenizer)
    run_export(run, lambda checkpoint, rounding: FolderExport(plan_hf(checkpoint, output, options, rounding), output))
