"""The way that every exporter goes: open the source, plan, say what there is to know, write, record, report.

A command says in an `Export` what its format does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from gptoss_adapters.errors import OutputError
from gptoss_converters.cli.console import Output, ProgressBar, format_size, plan_to_json, plan_to_text, record
from gptoss_converters.cli.options import Run, open_input, rounding_for

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_adapters.checkpoint.writing.writer import Written
    from gptoss_converters.export_plan import ExportPlan
    from gptoss_converters.rows.quantised import Rounding


class Report(NamedTuple):
    """What a command prints, as text and as JSON; `code` is its exit code."""

    text: str
    data: Mapping[str, Any]
    code: int = 0


class Outcome(NamedTuple):
    """What was written; `statistics` of experts that were rounded, None when there were none."""

    written: Written
    rounding: Rounding
    statistics: dict[str, Any] | None


class Export:
    """A planned output. As it stands: one file that holds bfloat16 and MXFP4 only."""

    def __init__(self, planned: ExportPlan, output: Path) -> None:
        self.plan = planned.plan
        self.notices = planned.notices
        self.output = output

    def preview(self, rounding: Rounding) -> Report:
        """For --dry-run."""
        data = {**plan_to_json(self.plan), "notices": self.notices, "quantised": rounding.quantised}
        return Report(plan_to_text(self.plan), data)

    @contextmanager
    def prepare(self, run: Run) -> Iterator[None]:
        """Around the writing: what must be so before it, and what is tidied after it. Raises OutputError."""
        yield

    def find_written(self, run: Run, bar: ProgressBar) -> Written | None:
        """What an earlier run wrote to the end, if this one only has to go on behind it. Here: nothing."""
        return None

    def finish(self, bar: ProgressBar) -> None:
        """After the planned files have their names, before the output counts as complete."""

    def find_losses(self) -> list[str]:
        """Notices that only the data could give, after it was written."""
        from gptoss_converters.rows.rows import rounded

        return rounded(self.plan)

    def statistics_file(self) -> Path | None:
        """Where what quantising did is kept, if anywhere."""
        return self.output.with_name(f"{self.output.name}.quantisation.json")

    def summarise(self, written: Written) -> str:
        """What was written, and what to do with it."""
        return f"wrote {self.output}: {describe_write(written)}"

    def report(self, outcome: Outcome) -> Report:
        """For the end of the run."""
        text = join_lines(self.summarise(outcome.written), outcome.rounding.text())
        data = {
            "files": [str(f.path) for f in self.plan.files],
            "notices": self.notices,
            "quantisation": outcome.statistics,
            **asdict(outcome.written),
        }
        return Report(text, data)


class FolderExport(Export):
    """A folder of safetensors."""

    @contextmanager
    def prepare(self, run: Run) -> Iterator[None]:
        from gptoss_converters.to_hf import refuse_other_weights

        with make_folder(self.output):
            refuse_other_weights(self.plan, self.output)
            yield

    def statistics_file(self) -> Path | None:
        return self.output / "quantisation.json"

    def summarise(self, written: Written) -> str:
        return f"wrote {self.output}: {len(self.plan.files)} files, {describe_write(written)}"


def run_export(run: Run, plan: Callable[[Checkpoint, Rounding], Export]) -> None:
    """Writes what `plan` makes of the source of `run`, unless it is a dry run, and prints what was done.

    Raises BadInput, UsageError, OutputError and CheckFailed; typer.Exit when the report has an exit code.
    """
    from gptoss_adapters.checkpoint.writing.writer import write

    out = Output(run.as_json)
    checkpoint = open_input(
        run.path, run.revision, run.lora, run.lora_order, exact_yarn=run.exact_yarn, follow_links=run.follow_links
    )
    rounding = rounding_for(checkpoint, run.rounding, run.scales_from)
    planned = plan(checkpoint, rounding)
    out.note([*checkpoint.adapters, *checkpoint.unheeded, *planned.notices])
    if run.dry_run:
        preview = planned.preview(rounding)
        out.show(preview.text, **preview.data)
        return
    with planned.prepare(run), ProgressBar() as bar:
        written = planned.find_written(run, bar)
        written = written or write(planned.plan, threads=run.threads, resume=run.resume, force=run.force, progress=bar)
        planned.finish(bar)
    losses = planned.find_losses()
    out.note(losses)
    planned.notices.extend(losses)
    statistics = rounding.stats.as_dict() if rounding.stats else None
    kept = planned.statistics_file()
    if kept and statistics is not None:
        record(kept, rounding.rule, statistics)
    report = planned.report(Outcome(written, rounding, statistics))
    out.show(report.text, **report.data)
    if report.code:
        raise typer.Exit(report.code)


def describe_write(written: Written) -> str:
    """`13.8 GB in 9.1 s, read back and equal to the source`."""
    seconds = sum(written.seconds.values())
    return f"{format_size(written.nbytes)} in {seconds:.1f} s, read back and equal to the source"


def join_lines(*texts: str) -> str:
    """Texts one below the other, without the empty ones."""
    return "\n".join(filter(None, texts))


@contextmanager
def make_folder(folder: Path) -> Iterator[None]:
    """A folder for an output; what stays empty is removed if it was not there before. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError("is not a folder", file=folder)
    with remove_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextmanager
def remove_if_empty(folder: Path) -> Iterator[None]:
    """Afterwards a folder that was not there before goes, if nothing came to stand in it."""
    there = folder.exists()
    try:
        yield
    finally:
        if not there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
