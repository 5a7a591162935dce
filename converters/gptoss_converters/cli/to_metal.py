"""`gptoss-convert to-metal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_converters.cli.export import Export, run_export
from gptoss_converters.cli.options import Run, takes_run

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint.writing.writer import Written


class MetalExport(Export):
    """A model.bin, with the command that runs it."""

    def summarise(self, written: Written) -> str:
        command = f'python -m gpt_oss.metal.examples.generate {self.output} -p "..."'
        return f"{super().summarise(written)}\nnext, on a Mac with the gpt-oss package:\n  {command}"


@takes_run()
def to_metal(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model.bin to write.")],
) -> None:
    """Write OpenAI's Metal model.bin, as gpt_oss.metal loads it on Apple GPUs. (Made without Apple hardware: compared
    with OpenAI's writer.)

    Examples:

        gptoss-convert to-metal ./my-tune -o model.bin

        gptoss-convert to-metal gpt-oss-20b.gguf -o model.bin --dry-run
    """
    from gptoss_converters.to_metal import plan_metal

    run_export(run, lambda checkpoint, rounding: MetalExport(plan_metal(checkpoint, output, rounding), output))
