"""`gptoss-convert to-metal`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gptoss_converters.cli.console import (
    JsonOption,
    Output,
    PathArgument,
    ProgressBar,
    RevisionOption,
    ThreadsOption,
    human,
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
from gptoss_converters.cli.to_hf import DryRunOption, ForceOption, ResumeOption


def to_metal(
    path: PathArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model.bin to write.")],
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
    """Write OpenAI's Metal model.bin, as gpt_oss.metal loads it on Apple GPUs. (Made without Apple hardware: compared
    with OpenAI's writer.)

    Examples:

        gptoss-convert to-metal ./my-tune -o model.bin

        gptoss-convert to-metal gpt-oss-20b.gguf -o model.bin --dry-run
    """
    from gptoss_adapters.checkpoint.writing.writer import write
    from gptoss_converters.cli.options import open_input, rounding_for
    from gptoss_converters.rows.rows import rounded
    from gptoss_converters.to_metal import plan_metal

    out = Output(as_json)
    checkpoint = open_input(path, revision, lora, lora_order, exact_yarn=exact_yarn)
    rule = rounding_for(checkpoint, rounding, scales_from)
    made = plan_metal(checkpoint, output, rule)
    for notice in [*checkpoint.adapters, *made.notices]:
        out.note(notice)
    if dry_run:
        out.result(plan_text(made.plan), **plan_json(made.plan), notices=made.notices, quantised=rule.quantised)
        return
    with ProgressBar() as bar:
        written = write(made.plan, threads=threads, resume=resume, force=force, progress=bar)
    made.notices.extend(lost := rounded(made.plan))
    for notice in lost:
        out.note(notice)
    statistics = rule.stats.as_dict() if rule.stats else None
    if statistics is not None:
        record(output.with_name(f"{output.name}.quantisation.json"), rule.rule, statistics)
    seconds = sum(written.seconds.values())
    text = f"wrote {output}: {human(written.nbytes)} in {seconds:.1f} s, read back and equal to the source"
    text += f'\nnext, on a Mac with the gpt-oss package:\n  python -m gpt_oss.metal.examples.generate {output} -p "..."'
    out.result(
        "\n".join(filter(None, [text, rule.text()])),
        files=[str(output)],
        notices=made.notices,
        quantisation=statistics,
        **asdict(written),
    )
