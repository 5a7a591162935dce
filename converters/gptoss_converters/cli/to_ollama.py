"""`gptoss-convert to-ollama`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_adapters.errors import OutputError, UsageError
from gptoss_converters.cli.console import (
    JsonOption,
    Output,
    PathArgument,
    ProgressBar,
    RevisionOption,
    ThreadsOption,
    human,
    parse_size,
)
from gptoss_converters.cli.options import LoraOption, LoraOrderOption, RoundingOption, ScalesFromOption
from gptoss_converters.cli.to_gguf import Dense, Experts

if TYPE_CHECKING:
    from gptoss_converters.ollama.to_ollama import OllamaModel


class TemplateMode(StrEnum):
    harmony = "harmony"
    embedded = "embedded"


def to_ollama(
    path: PathArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")],
    template: Annotated[
        TemplateMode,
        typer.Option(help="harmony: a Go TEMPLATE and Ollama's parser; embedded: the template in the GGUF."),
    ] = TemplateMode.harmony,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME[:TAG]", help="The model's name in Ollama (default: from the checkpoint's)."),
    ] = None,
    num_ctx: Annotated[int, typer.Option(metavar="TOKENS", help="PARAMETER num_ctx.")] = 8192,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="SYSTEM: instructions for every chat.")] = None,
    message: Annotated[
        list[str] | None, typer.Option(metavar="ROLE:TEXT", help="MESSAGE: a turn of an example chat; may be repeated.")
    ] = None,
    requires: Annotated[
        str, typer.Option(metavar="VERSION|none", help="REQUIRES; none for Ollama before 0.14, which refuses the line.")
    ] = "0.30.0",
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Move the model into this Ollama model store instead of DIR.")
    ] = None,
    create: Annotated[
        str | None, typer.Option(metavar="URL", help="Create the model on this Ollama server afterwards.")
    ] = None,
    dense: Annotated[
        Dense | None, typer.Option(help="Type of attention, embedding and head (default: as stored).")
    ] = None,
    experts: Annotated[Experts | None, typer.Option(help="Type of the experts (default: as stored).")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR", help="Folder with tokenizer.json.")] = None,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split into files of at most SIZE tensor bytes (Ollama 0.34.1).")
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Go on when llama.cpp cannot compute what the config says.")
    ] = False,
    lora: LoraOption = None,
    lora_order: LoraOrderOption = None,
    rounding: RoundingOption = None,
    scales_from: ScalesFromOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint for Ollama: a GGUF, a Modelfile and a README with the next commands.

    Examples:

        gptoss-convert to-ollama ./my-tune -o ./my-tune-ollama

        gptoss-convert to-ollama ./my-tune -o out --template embedded --name my-tune:v2 --create http://localhost:11434

        gptoss-convert to-ollama ./my-tune -o out --store ~/.ollama/models
    """
    from gptoss_adapters.checkpoint.writing.writer import write
    from gptoss_converters.cli.options import open_input, rounding_for
    from gptoss_converters.gguf.to_gguf import GgufOptions
    from gptoss_converters.ollama.to_ollama import OllamaOptions, finish, plan_ollama

    if store and (create or split_max_size):
        raise UsageError("--store goes with neither --create nor --split-max-size")
    out = Output(as_json)
    options = OllamaOptions(
        template.value,
        name,
        num_ctx,
        system,
        tuple(map(_turn, message or ())),
        None if requires == "none" else requires,
    )
    gguf = GgufOptions(
        dense and dense.value,
        experts and experts.value,
        tokenizer,
        None,
        parse_size(split_max_size),
        False,
        allow_lossy,
    )
    checkpoint = open_input(path, revision, lora, lora_order)
    how = rounding_for(checkpoint, rounding, scales_from)
    model = plan_ollama(checkpoint, output, gguf, options, how)
    for notice in [*checkpoint.adapters, *model.gguf.notices]:
        out.note(notice)
    if dry_run:
        sizes = "\n".join(f"{f.path}: {f.size} bytes ({human(f.size)})" for f in model.plan.files)
        out.result(
            f"{sizes}\n{output / 'Modelfile'}:\n{model.modelfile}",
            files={str(f.path): f.size for f in model.plan.files},
            modelfile=model.modelfile,
        )
        return
    there = _check_folder(model, force, resume)
    try:
        with ProgressBar() as bar:
            written = write(model.plan, threads=threads, resume=resume, force=force, progress=bar)
            finish(model)
            where = _hand_over(model, checkpoint, store, create, bar)
    finally:
        if not there and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    statistics = how.stats.as_dict() if how.stats else None
    text = "\n".join(filter(None, [how.text(), _summary(model, where)]))
    out.result(
        text,
        quantisation=statistics,
        name=model.name,
        folder=str(output),
        where=where,
        notices=model.gguf.notices,
        **asdict(written),
    )


def _turn(text: str) -> tuple[str, str]:
    role, colon, content = text.partition(":")
    if not colon or role not in ("system", "user", "assistant"):
        raise UsageError("--message takes ROLE:TEXT", expected="a role of system, user or assistant", got=text)
    return role, content


def _check_folder(model: OllamaModel, force: bool, resume: bool) -> bool:
    """Makes the folder; whether it was there. Raises OutputError when something is in the way."""
    there = model.folder.exists()
    if there and not model.folder.is_dir():
        raise OutputError("is not a folder", file=model.folder)
    taken = [n for n in ("Modelfile", "README.md") if (model.folder / n).exists()]
    if taken and not (force or resume):
        raise OutputError("exists already", file=model.folder / taken[0], hint="add --force to replace it")
    model.folder.mkdir(parents=True, exist_ok=True)
    return there


def _hand_over(
    model: OllamaModel, checkpoint: Any, store: Path | None, url: str | None, bar: ProgressBar
) -> str | None:
    """Into a store or onto a server; returns where the model is now, None for the folder."""
    if store:
        from gptoss_converters.ollama.store import write_store

        manifest = write_store(store, model.name, model.files[0], model.parts, checkpoint, bar)
        for file in ("Modelfile", "README.md"):
            (model.folder / file).unlink()
        return str(manifest)
    if url:
        from gptoss_converters.ollama.create import create
        from gptoss_converters.ollama.to_ollama import request

        create(url, list(model.files), lambda digests: request(model, digests), bar)
        return url
    return None


def _summary(model: OllamaModel, where: str | None) -> str:
    if where:
        return f"{model.name} is in Ollama ({where})\nnext:\n  ollama run {model.name}"
    files = ", ".join(f.name for f in model.files)
    return (
        f"wrote {model.folder}: {files}, Modelfile, README.md; checked against Ollama's grammar and rules\n"
        f"next:\n  cd {model.folder} && ollama create {model.name} -f Modelfile && ollama run {model.name}"
    )
