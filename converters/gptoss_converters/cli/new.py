"""`gptoss-convert new`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gptoss_adapters.errors import OutputError
from gptoss_converters.cli.console import Output, ProgressBar, format_size
from gptoss_converters.cli.export import remove_if_empty
from gptoss_converters.cli.options import JsonOption, OutputFolderOption, ThreadsOption


class Preset(StrEnum):
    odd_shape = "odd-shape"
    shape_20b = "20b-shape"
    shape_120b = "120b-shape"
    pocket = "pocket"
    p1 = "p1"
    p2 = "p2"
    p3 = "p3"
    p4 = "p4"
    p5 = "p5"
    p6 = "p6"


class Layout(StrEnum):
    hf_mxfp4 = "hf-mxfp4"
    hf_bf16 = "hf-bf16"
    openai = "openai"


def new(
    preset: Annotated[
        Preset, typer.Argument(metavar="PRESET", help="odd-shape, 20b-shape, 120b-shape, pocket, or p1 to p6.")
    ],
    output: OutputFolderOption,
    layout: Annotated[Layout, typer.Option(help="The checkpoint layout.")] = Layout.hf_mxfp4,
    layers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Cut the model to N layers.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Another seed gives other weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint from a seed: for tests, benchmarks and demonstrations, without a download.

    pocket answers in well-formed Harmony in any engine; odd-shape finds transposes; p1 to p6 show every part of
    the model in their logits (for gptoss-parity); the others have the true shapes.

    Examples:

        gptoss-convert new pocket -o ./pocket

        gptoss-convert new 20b-shape -o ./cut --layers 2
    """
    from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
    from gptoss_adapters.checkpoint.writing.writer import write

    _check_folder(output, force or resume)
    with remove_if_empty(output):
        plan = plan_new(preset.value, output, kind=layout.value, layers=layers, seed=seed)
        with ProgressBar() as bar:
            written = write(plan, threads=threads, force=force, resume=resume, progress=bar)
    files = [str(f.path) for f in plan.files]
    vocabulary = "" if any(f.endswith("tokenizer.json") for f in files) else " --tokenizer none"
    lines = [
        f"wrote {output}: {len(files)} files, {format_size(written.nbytes)}",
        "next:",
        f"  gptoss-convert to-gguf {output} -o {output.name}.gguf{vocabulary}",
    ]
    Output(as_json).show("\n".join(lines), files=files, **asdict(written))


def _check_folder(folder: Path, force: bool) -> None:
    """Raises OutputError when the folder, or a file of its name, is in the way."""
    if folder.exists() and not folder.is_dir():
        raise OutputError("is not a folder", file=folder)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputError("the folder is not empty", file=folder, hint="add --force to write into it")
