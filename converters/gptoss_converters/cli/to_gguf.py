"""`gptoss-convert to-gguf`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

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
from gptoss_converters.cli.options import LoraOption, LoraOrderOption, RoundingOption, ScalesFromOption


class Dense(StrEnum):
    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"


class Experts(StrEnum):
    mxfp4 = "mxfp4"
    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"


def to_gguf(
    path: PathArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The GGUF file to write.")],
    dense: Annotated[
        Dense | None, typer.Option(help="Type of attention, embedding and head (default: as stored).")
    ] = None,
    experts: Annotated[
        Experts | None, typer.Option(help="Type of the experts (default: as stored; MXFP4 then moves byte for byte).")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR|none", help="Folder with tokenizer.json, or none for a file without vocabulary."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name in the file (default: a GGUF's own, else from the folder's or the repository's)."
        ),
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split into files of at most SIZE tensor bytes, e.g. 4G.")
    ] = None,
    sha256: Annotated[
        bool | None,
        typer.Option("--sha256/--no-sha256", help="Hash sources and output into the file (default: for Hub sources)."),
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Go on when llama.cpp cannot compute what the config says.")
    ] = False,
    lora: LoraOption = None,
    lora_order: LoraOrderOption = None,
    rounding: RoundingOption = None,
    scales_from: ScalesFromOption = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="Run the file in llama.cpp afterwards and compare it with the reference.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint for llama.cpp and Ollama, with every weight byte accounted for.

    Examples:

        gptoss-convert to-gguf ./gpt-oss-20b -o gpt-oss-20b.gguf

        gptoss-convert to-gguf openai/gpt-oss-120b -o 120b.gguf --dense q8_0 --split-max-size 40G

        gptoss-convert to-gguf ./my-tune -o tune.gguf --experts mxfp4 --dry-run
    """
    from gptoss_adapters.checkpoint.writing.writer import write
    from gptoss_converters.cli.options import open_input, rounding_for
    from gptoss_converters.gguf.metadata import title
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
    from gptoss_converters.rows.quantised import side_file_of, with_side_file
    from gptoss_converters.rows.readers import Readers

    out = Output(as_json)
    on_hub = not Path(path).exists() and not path.startswith("ollama:")
    hashes = on_hub if sha256 is None else sha256
    size = parse_size(split_max_size)
    checkpoint = open_input(path, revision, lora, lora_order)
    if (
        on_hub and name is None and "general.name" not in checkpoint.metadata
    ):  # the folder that a download lands in is named by a hash
        name = title(path.split("/")[1])
    options = GgufOptions(dense and dense.value, experts and experts.value, tokenizer, name, size, hashes, allow_lossy)
    how = rounding_for(checkpoint, rounding, scales_from)
    made = plan_gguf(checkpoint, output, options, how)
    plan, side = made.plan, side_file_of(output)
    if experts in (Experts.bf16, Experts.f16, Experts.f32):
        plan = with_side_file(plan, checkpoint, Readers(checkpoint), side)
    for notice in [*checkpoint.adapters, *made.notices]:
        out.note(notice)
    if dry_run:
        out.result(plan_text(plan), **plan_json(plan), notices=made.notices)
        return
    stale = side if side.is_file() and side not in {f.path for f in plan.files} | plan.sources.keys() else None
    if stale and not (force or resume):
        raise OutputError(
            "holds the scales of an earlier output, which would be taken for this one's",
            file=stale,
            hint="add --force to remove it",
        )
    with ProgressBar() as bar:
        written = write(plan, threads=threads, resume=resume, force=force, progress=bar)
    if stale:
        stale.unlink()
    files = [str(f.path) for f in plan.files]
    statistics = how.stats.as_dict() if how.stats else None
    if statistics is not None:
        record(output.with_name(f"{output.name}.quantisation.json"), how.rule, statistics)
    text = "\n".join(filter(None, [_summary(files, written, path, vocabulary=tokenizer != "none"), how.text()]))
    report, line, code = _parity(path, revision, files[0]) if parity else (None, "", 0)
    out.result(
        "\n".join(filter(None, [text, line])),
        files=files,
        notices=made.notices,
        quantisation=statistics,
        parity=report,
        **asdict(written),
    )
    if code:
        raise typer.Exit(code)


def _parity(path: str, revision: str | None, file: str) -> tuple[dict[str, Any], str, int]:
    """The report of what was just written, its verdict in a line, and its exit code. Runs llama-cpp-python, else
    llama.cpp's server.
    """
    from importlib.util import find_spec

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.errors import missing_extra

    if not find_spec("torch"):
        raise missing_extra("torch", "torch")
    from gptoss_adapters.parity.cli_run import Bars
    from gptoss_adapters.parity.report.files import write_report
    from gptoss_adapters.parity.report.schema import exit_code
    from gptoss_adapters.parity.runner import Options, Run, few_threads

    spec = f"{'llama_cpp' if find_spec('llama_cpp') else 'llama_server'}={file}"
    checkpoint = open_checkpoint(path, revision=revision)
    few_threads(checkpoint.config)
    with Bars() as bars:
        report = Run(checkpoint, Options(), bars).report([spec], f"gptoss-parity run {path} --target {spec}")
    folder = Path(file).with_name(f"{Path(file).stem}-parity")
    write_report(report, folder)
    (target,) = report.targets
    return (
        report.to_json(),
        f"parity: {target.verdict}: {target.reason}\n  {folder / 'report.html'}",
        exit_code(report.targets),
    )


def _summary(files: list[str], written: Any, source: str, vocabulary: bool) -> str:
    seconds = sum(written.seconds.values())
    lines = [f"wrote {', '.join(files)}: {human(written.nbytes)} in {seconds:.1f} s, read back and equal to the source"]
    if written.resumed:
        lines.append(f"  {human(written.resumed)} of it by the interrupted run")
    lines += [f"  sha256 {digest}  {name}" for name, digest in written.sha256.items()]
    return "\n".join([*lines, "next:", *(f"  {line}" for line in _next(Path(files[0]), source, vocabulary))])


def _next(file: Path, source: str, vocabulary: bool) -> list[str]:
    """Commands to copy into a shell. A file without a vocabulary runs in no server: llama.cpp's aborts on it."""
    from gptoss_converters.ollama.to_ollama import model_name

    if not vocabulary:
        return [f"gptoss-parity run {quote(source)} --target {quote(f'llama_cpp={file}')}"]
    line = f"FROM {file.resolve()}".replace("%", "%%") + r"\n"
    return [
        f"llama-server -m {quote(str(file))} --jinja",
        f"printf {quote(line)} > Modelfile && ollama create {model_name(file)} -f Modelfile",
    ]
