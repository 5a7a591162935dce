"""The options that commands share, and `Run`: those of every exporter, which `takes_run` gives to a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_adapters.errors import UsageError

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_adapters.checkpoint.formats.hub_names import HubName
    from gptoss_converters.rows.quantised import Rounding

RULES = ("mse", "even", "ocp", "triton", "ggml")

PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="A checkpoint: a file, a folder, or a Hub repository id (owner/name).")
]
OutputFolderOption = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="ADAPTER[:SCALE]",
        help="Merge a LoRA adapter (PEFT, mlx-lm or GGUF; folder, file or Hub id), times SCALE; may be repeated.",
    ),
]
LoraOrderOption = Annotated[
    str | None,
    typer.Option(
        "--lora-order",
        metavar="peft|unsloth",
        help="How a fused expert adapter orders its columns, where the adapter does not say.",
    ),
]
RoundingOption = Annotated[
    str | None,
    typer.Option("--rounding", metavar="RULE", help="How dense experts become MXFP4: mse, even, ocp, triton or ggml."),
]
ScalesFromOption = Annotated[
    str | None,
    typer.Option(
        "--scales-from",
        metavar="CHECKPOINT",
        help="Keep this MXFP4 checkpoint's scales for blocks that did not change.",
    ),
]
ExactYarnOption = Annotated[
    bool,
    typer.Option(
        "--exact-yarn", help="Say that YaRN bounds are not rounded, as in every published model: a GGUF cannot say it."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
ForceFileOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="Worker threads (default: one per core, at most 4).")
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a Hub repository.")
]
FollowLinksOption = Annotated[
    bool, typer.Option("--follow-links", help="Read files that links of the folder lead to, on another disk for one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
MaxShardSizeOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most bytes of tensors in a file, e.g. 4G (default: 4.8G).")
]
TokenizerFolderOption = Annotated[
    str | None, typer.Option(metavar="DIR|none", help="Folder with tokenizer.json, or none.")
]


@dataclass(frozen=True, slots=True)
class Run:
    """What every exporter lets one choose: its source, how that is read, and how the output is written."""

    path: PathArgument
    lora: LoraOption = None
    lora_order: LoraOrderOption = None
    rounding: RoundingOption = None
    scales_from: ScalesFromOption = None
    exact_yarn: ExactYarnOption = False
    follow_links: FollowLinksOption = False
    dry_run: DryRunOption = False
    force: ForceOption = False
    resume: ResumeOption = False
    threads: ThreadsOption = None
    revision: RevisionOption = None
    as_json: JsonOption = False


READING = ("lora", "lora_order", "rounding", "scales_from", "exact_yarn", "follow_links")
WRITING = ("dry_run", "force", "resume", "threads", "revision", "as_json")
Command = Callable[..., None]


def takes_run(*, exact_yarn: bool = True, force: Any = ForceOption) -> Callable[[Command], Command]:
    """Gives a command whose first parameter is a `Run` the options of one.

    `--help` lists them in this order: the path, the command's own parameters, how the source is read, the command's
    keyword-only parameters, how the output is written.
    """

    def decorate(command: Command) -> Command:
        shared = dict(inspect.signature(Run, eval_str=True).parameters)
        shared["force"] = shared["force"].replace(annotation=force)
        if not exact_yarn:
            del shared["exact_yarn"]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        listed = [
            shared["path"],
            *(p for p in own if p.kind is not p.KEYWORD_ONLY),
            *(shared[name] for name in READING if name in shared),
            *(p for p in own if p.kind is p.KEYWORD_ONLY),
            *(shared[name] for name in WRITING),
        ]

        @functools.wraps(command)
        def run_command(**values: Any) -> None:
            run = Run(**{name: values.pop(name) for name in shared})
            command(run, **values)

        # typer reads the options from these two
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in listed]
        run_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run_command.__annotations__ = {p.name: p.annotation for p in parameters}
        return run_command

    return decorate


def find_on_hub(path: str) -> HubName | None:
    """What a path names on the Hub; None for what is here, or in Ollama's store."""
    from gptoss_adapters.checkpoint.formats.hub_names import parse_hub_name
    from gptoss_adapters.checkpoint.formats.ollama import PREFIX

    return None if Path(path).exists() or path.startswith(PREFIX) else parse_hub_name(path)


def open_input(
    path: str,
    revision: str | None,
    lora: Sequence[str] | None = None,
    lora_order: str | None = None,
    *,
    exact_yarn: bool = False,
    strict: bool = True,
    follow_links: bool = False,
) -> Checkpoint:
    """The checkpoint, with the adapters merged into it; `strict` as in open_checkpoint. Raises BadInput, UsageError."""
    from gptoss_adapters.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, revision=revision, strict=strict, follow_links=follow_links)
    if exact_yarn:
        checkpoint = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, yarn_truncate=False))
    if lora_order not in (None, "peft", "unsloth"):
        raise UsageError("--lora-order takes peft or unsloth", got=lora_order)
    if lora:
        from gptoss_adapters.checkpoint.lora import parse_adapter, with_adapters

        checkpoint = with_adapters(checkpoint, [parse_adapter(text) for text in lora], lora_order)
    return checkpoint


def rounding_for(checkpoint: Checkpoint, rule: str | None, scales_from: str | None) -> Rounding:
    """The rule, and every place where the scales of blocks that did not change may be found: --scales-from, an
    adapter's base, the side file.
    """
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_converters.rows.quantised import CheckpointHints, Hints, Rounding, SideFile, side_file_of

    if rule is not None and rule not in RULES:
        raise UsageError("--rounding: unknown rule", expected=" | ".join(RULES), got=rule)
    hints: list[Hints] = []
    if scales_from:
        hints.append(CheckpointHints(open_checkpoint(scales_from), whole=True))
    if checkpoint.base is not None:
        hints.append(CheckpointHints(checkpoint.base, whole=False))
    side = side_file_of(checkpoint.path)
    if side.is_file():
        hints.append(SideFile(side))
    return Rounding(rule or "mse", hints)
