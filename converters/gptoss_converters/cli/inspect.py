"""`gptoss-convert inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_converters.cli.console import Output, ProgressBar, count_workers, format_size
from gptoss_converters.cli.options import (
    FollowLinksOption,
    JsonOption,
    LoraOption,
    LoraOrderOption,
    PathArgument,
    RevisionOption,
    ThreadsOption,
    open_input,
)

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint.inspect import Inspection

_BAR = 40  # columns of the longest histogram bar


def inspect(
    path: PathArgument,
    histograms: Annotated[
        bool, typer.Option("--histograms/--no-histograms", help="Read all experts for their scale and code histograms.")
    ] = True,
    lora: LoraOption = None,
    lora_order: LoraOrderOption = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    follow_links: FollowLinksOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint is: kind, config, sizes per part, MXFP4 histograms, and what is odd about it.

    Examples:

        gptoss-convert inspect ./gpt-oss-20b

        gptoss-convert inspect gpt-oss-20b.gguf --no-histograms --json
    """
    from gptoss_adapters.checkpoint.inspect import inspect as look

    checkpoint = open_input(path, revision, lora, lora_order, strict=False, follow_links=follow_links)
    with ProgressBar() as bar:
        found = look(
            checkpoint,
            histograms=histograms,
            threads=count_workers(threads),
            progress=lambda done, total: bar("experts", done, total),
        )
    Output(as_json).show(_describe(found), **found.as_dict())


def _describe(i: Inspection) -> str:
    config = {k: v for k, v in i.config.as_dict().items() if k != "layer_types" and v != ()}
    layers = "".join("S" if t.startswith("sliding") else "F" for t in i.config.layer_types)
    lines = [
        f"{i.path.encode(errors='backslashreplace').decode()}: {i.kind}, {i.parameters:,} parameters, "
        f"{i.active_parameters:,} active per token",
        *(f"  {name}  {format_size(size)}" for name, size in i.files.items()),
        "config",
        *(f"  {k:<24} {v}" for k, v in config.items()),
        f"  {'layer_types':<24} {layers}  (S sliding, F full)",
        "parts",
        *(
            f"  {name:<16} {p.tensors:>5} tensors {p.parameters:>16,} values {format_size(p.nbytes):>10}  "
            f"{', '.join(p.encodings)}"
            for name, p in i.parts.items()
        ),
        f"licence: {i.license or 'none'}",
        f"tokenizer: {', '.join(i.tokenizer) or 'none'}; chat template: {'yes' if i.chat_template else 'no'}",
    ]
    if i.histograms:
        lines += [f"MXFP4 scale bytes of {i.histograms.blocks:,} blocks", *_draw_bars(i.histograms.scales)]
        lines += ["largest magnitude in a block", *_draw_bars(i.histograms.largest)]
    lines += [f"odd: {what}" for what in i.oddities]
    return "\n".join(lines)


def _draw_bars(counts: dict[int, int] | dict[float, int]) -> list[str]:
    top = max(counts.values(), default=1)
    return [f"  {value:>5g} {count:>14,} {'#' * round(_BAR * count / top)}" for value, count in counts.items()]
