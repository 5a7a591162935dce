"""`gptoss-convert verify`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_adapters.errors import CheckFailed
from gptoss_converters.cli.console import Output, ProgressBar, count_workers, format_size
from gptoss_converters.cli.options import FollowLinksOption, JsonOption, LoraOrderOption, RevisionOption, ThreadsOption

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint.compare import Block, Report


def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: a file, a folder, or a Hub repository id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="ADAPTER[:SCALE]", help="An adapter that is merged into A; may be repeated."),
    ] = None,
    lora_order: LoraOrderOption = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    follow_links: FollowLinksOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints of any kind tensor by tensor; exit 1 when they differ.

    Verdicts: BYTES EQUAL, VALUES EQUAL, ROUNDED AS DECLARED (recomputed from the other side and byte-equal), DIFFERENT.

    Examples:

        gptoss-convert verify ./gpt-oss-20b gpt-oss-20b.gguf

        gptoss-convert verify openai/gpt-oss-20b gpt-oss-20b-q8.gguf --json
    """
    from gptoss_adapters.checkpoint.compare import compare
    from gptoss_converters.cli.options import open_input

    def choose_revision(path: str, other: str) -> str | None:
        """It is the repository's, where the other one is local."""
        return None if Path(path).exists() and not Path(other).exists() else revision

    left = open_input(a, choose_revision(a, b), lora, lora_order, follow_links=follow_links)
    right = open_input(b, choose_revision(b, a), follow_links=follow_links)
    with ProgressBar() as bar:
        advance = partial(bar, "verify")
        report = compare(left, right, threads=count_workers(threads), progress=advance)
    Output(as_json).show(_describe(report), **report.as_dict())
    if not report.ok:
        different = report.counts["DIFFERENT"]
        what = (
            f"{different} of {len(report.results)} tensors are DIFFERENT"
            if different
            else f"the configs differ: {'; '.join(report.config)}"
        )
        raise CheckFailed(what, file=b)


def _describe(report: Report) -> str:
    lines = [
        f"{r.verdict:<19} {r.name:<34} {r.a_encoding} / {r.b_encoding}{f'  ({r.rule})' if r.rule else ''}"
        for r in report.results
    ]
    for r in report.results:
        if r.worst:
            lines += _describe_worst(r.name, r.worst)
    lines += [f"config differs: {line}" for line in report.config] + [f"note: {line}" for line in report.notes]
    total = format_size(sum(r.nbytes for r in report.results))
    counts = ", ".join(f"{n} {verdict}" for verdict, n in report.counts.items() if n)
    return "\n".join([*lines, f"{counts} ({total} on both sides)"])


def _describe_worst(name: str, block: Block) -> list[str]:
    """The block with the largest difference, in hex and decoded, from both sides."""

    def show(values: tuple[float, ...]) -> str:
        return " ".join(f"{v:g}" for v in values)

    return [
        f"worst block of {name} at {list(block.index)}: off by {block.max_abs:g}, {block.differing} values of "
        "the tensor differ",
        f"  A {block.a_bytes}",
        f"    {show(block.a_values)}",
        f"  B {block.b_bytes}",
        f"    {show(block.b_values)}",
    ]
