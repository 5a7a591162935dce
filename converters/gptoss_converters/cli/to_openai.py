"""`gptoss-convert to-openai`."""

from __future__ import annotations

from gptoss_converters.cli.export import FolderExport, run_export
from gptoss_converters.cli.options import OutputFolderOption, Run, takes_run


@takes_run()
def to_openai(run: Run, output: OutputFolderOption) -> None:
    """Write a checkpoint in OpenAI's original layout, as the gpt-oss package loads it.

    Examples:

        gptoss-convert to-openai ./my-tune -o ./my-tune-original

        gptoss-convert to-openai gpt-oss-20b.gguf -o ./original
    """
    from gptoss_adapters.checkpoint.kinds import Kind
    from gptoss_converters.to_hf import HfOptions, plan_hf

    options = HfOptions(Kind.OPENAI)
    run_export(run, lambda checkpoint, rounding: FolderExport(plan_hf(checkpoint, output, options, rounding), output))
