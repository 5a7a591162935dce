"""`gptoss-parity`: is it the same model?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptoss_adapters.console import run as run_app
from gptoss_adapters.parity.cli_run import faults, run

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Is it the same model? Compare engines with the torch reference.",
)

SHOW_HELP = """Show a report again: a summary here, report.md and report.html beside it. Exits as the run did.

\b
Example:
  gptoss-parity show out/report.json
"""


@app.callback()
def _group() -> None:
    """Makes typer keep command names, however many there are."""


@app.command(help=SHOW_HELP)
def show(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json, or the folder that holds one.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Where report.md and report.html go (default: beside the JSON)."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="md|html", help="Print this rendering on stdout instead, and write nothing."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on SAME EXCEPT too.")] = False,
) -> None:
    from gptoss_adapters.errors import UsageError
    from gptoss_adapters.parity.report.files import FORMATS, write_renderings
    from gptoss_adapters.parity.report.markdown import summary
    from gptoss_adapters.parity.report.schema import Report, exit_code

    path = report / "report.json" if report.is_dir() else report
    loaded = Report.load(path)
    if form is not None:
        if form not in FORMATS:
            raise UsageError("--format", expected=", ".join(FORMATS), got=form)
        sys.stdout.write(FORMATS[form](loaded))
    else:
        print(summary(loaded, colour=sys.stdout.isatty()))
        for written in write_renderings(loaded, output or path.parent):
            print(f"wrote {written}", file=sys.stderr)
    sys.exit(exit_code(loaded.targets, strict))


for _command in (run, faults):
    app.command()(_command)


def main() -> None:
    """Entry point of `gptoss-parity`."""
    run_app(app)
