"""`gptoss-convert to-mlx`."""

from __future__ import annotations

from gptoss_converters.cli.console import parse_size
from gptoss_converters.cli.export import FolderExport, run_export
from gptoss_converters.cli.options import MaxShardSizeOption, OutputFolderOption, Run, TokenizerFolderOption, takes_run


@takes_run()
def to_mlx(
    run: Run,
    output: OutputFolderOption,
    max_shard_size: MaxShardSizeOption = None,
    tokenizer: TokenizerFolderOption = None,
) -> None:
    """Write a checkpoint in MLX's layout, as mlx-lm loads it: MXFP4 experts byte for byte, the rest in bfloat16.

    Examples:

        gptoss-convert to-mlx ./my-tune -o ./my-tune-mlx

        gptoss-convert to-mlx gpt-oss-20b.gguf -o ./gpt-oss-20b-mlx
    """
    from gptoss_adapters.checkpoint.kinds import Kind
    from gptoss_converters.to_hf import HfOptions
    from gptoss_converters.to_mlx import plan_mlx

    options = HfOptions(Kind.MLX, parse_size(max_shard_size), tokenizer)
    run_export(run, lambda checkpoint, rounding: FolderExport(plan_mlx(checkpoint, output, options, rounding), output))
