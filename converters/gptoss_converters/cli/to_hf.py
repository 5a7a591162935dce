"""`gptoss-convert to-hf` and `to-openai`, and what every exporter to a folder of safetensors does."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_adapters.errors import OutputError
from gptoss_converters.cli.console import (
    JsonOption,
    Output,
    PathArgument,
    ProgressBar,
    RevisionOption,
    ThreadsOption,
    human,
    parse_size,
    plan_json,
    plan_text,
    record,
)
from gptoss_converters.cli.options import (
    ExactYarnOption,
    LoraOption,
    LoraOrderOption,
    RoundingOption,
    ScalesFromOption,
)

if TYPE_CHECKING:
    from gptoss_converters.to_hf import HfOptions

OutputOption = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]


class Experts(StrEnum):
    mxfp4 = "mxfp4"
    bf16 = "bf16"


def to_hf(
    path: PathArgument,
    output: OutputOption,
    experts: Annotated[Experts, typer.Option(help="How the experts are stored.")] = Experts.mxfp4,
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
    """Write a checkpoint in Hugging Face's layout, as transformers and vLLM load it.

    Examples:

        gptoss-convert to-hf ./my-bf16-tune -o ./my-tune-mxfp4 --scales-from openai/gpt-oss-20b

        gptoss-convert to-hf openai/gpt-oss-20b -o ./merged --lora ./my-adapter --experts bf16

        gptoss-convert to-hf gpt-oss-20b.gguf -o ./gpt-oss-20b
    """
    from gptoss_adapters.checkpoint import layouts
    from gptoss_converters.to_hf import HfOptions

    kind = layouts.HF_MXFP4 if experts == Experts.mxfp4 else layouts.HF_BF16
    options = HfOptions(kind, parse_size(max_shard_size), tokenizer)
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


def to_openai(
    path: PathArgument,
    output: OutputOption,
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
    """Write a checkpoint in OpenAI's original layout, as the gpt-oss package loads it.

    Examples:

        gptoss-convert to-openai ./my-tune -o ./my-tune-original

        gptoss-convert to-openai gpt-oss-20b.gguf -o ./original
    """
    from gptoss_adapters.checkpoint import layouts
    from gptoss_converters.to_hf import HfOptions

    options = HfOptions(layouts.OPENAI)
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


def convert(
    path: str,
    output: Path,
    options: HfOptions,
    lora: list[str] | None,
    lora_order: str | None,
    rule: str | None,
    scales_from: str | None,
    exact_yarn: bool,
    dry_run: bool,
    force: bool,
    resume: bool,
    threads: int | None,
    revision: str | None,
    as_json: bool,
) -> None:
    from gptoss_adapters.checkpoint import layouts
    from gptoss_adapters.checkpoint.writing.writer import write
    from gptoss_converters.cli.options import open_input, rounding_for
    from gptoss_converters.rows.rows import rounded
    from gptoss_converters.to_hf import plan_hf, refuse_other_weights
    from gptoss_converters.to_mlx import plan_mlx

    out = Output(as_json)
    checkpoint = open_input(path, revision, lora, lora_order, exact_yarn=exact_yarn)
    rounding = rounding_for(checkpoint, rule, scales_from)
    made = (plan_mlx if options.kind == layouts.MLX else plan_hf)(checkpoint, output, options, rounding)
    for notice in [*checkpoint.adapters, *made.notices]:
        out.note(notice)
    if dry_run:
        out.result(plan_text(made.plan), **plan_json(made.plan), notices=made.notices, quantised=rounding.quantised)
        return
    there = output.exists()
    if there and not output.is_dir():
        raise OutputError("is not a folder", file=output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        refuse_other_weights(made.plan, output)
        with ProgressBar() as bar:
            written = write(made.plan, threads=threads, resume=resume, force=force, progress=bar)
    finally:
        if not there and not any(output.iterdir()):
            output.rmdir()
    made.notices.extend(lost := rounded(made.plan))
    for notice in lost:
        out.note(notice)
    files = [str(f.path) for f in made.plan.files]
    statistics = rounding.stats.as_dict() if rounding.stats else None
    if statistics is not None:
        record(output / "quantisation.json", rounding.rule, statistics)
    seconds = sum(written.seconds.values())
    text = (
        f"wrote {output}: {len(files)} files, {human(written.nbytes)} in {seconds:.1f} s, read back and equal to "
        "the source"
    )
    out.result(
        "\n".join(filter(None, [text, rounding.text()])),
        files=files,
        notices=made.notices,
        quantisation=statistics,
        **asdict(written),
    )
