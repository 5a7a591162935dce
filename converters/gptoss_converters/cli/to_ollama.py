"""`gptoss-convert to-ollama`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_adapters.errors import OutputError, UsageError
from gptoss_converters.cli.console import ProgressBar, format_size, parse_size
from gptoss_converters.cli.export import Export, Outcome, Report, join_lines, make_folder, run_export
from gptoss_converters.cli.options import OutputFolderOption, Run, find_on_hub, takes_run
from gptoss_converters.cli.to_gguf import Dense, Experts

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_adapters.checkpoint.writing.writer import Written
    from gptoss_converters.ollama.to_ollama import OllamaModel
    from gptoss_converters.rows.quantised import Rounding


TEXTS = ("Modelfile", "README.md")


class TemplateMode(StrEnum):
    harmony = "harmony"
    embedded = "embedded"


@takes_run(exact_yarn=False)
def to_ollama(
    run: Run,
    output: OutputFolderOption,
    template: Annotated[
        TemplateMode | None,
        typer.Option(
            help="harmony: a Go TEMPLATE and Ollama's parser; embedded: the template in the GGUF, for /api/chat only. "
            "(Default: harmony, unless the checkpoint's own template is another.)"
        ),
    ] = None,
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
        str | None,
        typer.Option(metavar="URL", help="Create the model on this Ollama server afterwards; run again to go on."),
    ] = None,
    dense: Annotated[
        Dense | None, typer.Option(help="Type of attention, embedding and head (default: as stored).")
    ] = None,
    experts: Annotated[Experts | None, typer.Option(help="Type of the experts (default: as stored).")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR", help="Folder with tokenizer.json.")] = None,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split into files of at most SIZE tensor bytes.")
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Go on when llama.cpp cannot compute what the config says.")
    ] = False,
) -> None:
    """Export a checkpoint for Ollama: a GGUF, a Modelfile and a README with the next commands.

    Examples:

        gptoss-convert to-ollama ./my-tune -o ./my-tune-ollama

        gptoss-convert to-ollama ./my-tune -o out --name my-tune:v2 --create http://localhost:11434

        gptoss-convert to-ollama ./my-tune -o out --template embedded

        gptoss-convert to-ollama ./my-tune -o out --store ~/.ollama/models
    """
    from gptoss_converters.gguf.to_gguf import GgufOptions
    from gptoss_converters.ollama.to_ollama import OllamaOptions, name_model, plan_ollama

    if store and (create or split_max_size):
        raise UsageError("--store goes with neither --create nor --split-max-size")
    if create and not run.dry_run:
        from gptoss_converters.ollama.server import Server

        Server(create).check()
    on_hub = find_on_hub(run.path)
    options = OllamaOptions(
        None if template is None else template.value,
        name if name or on_hub is None else name_model(Path(on_hub.repo)),
        num_ctx,
        system,
        tuple(map(_parse_turn, message or ())),
        None if requires == "none" else requires,
    )
    gguf = GgufOptions(
        dense=dense and dense.value,
        experts=experts and experts.value,
        tokenizer=tokenizer,
        split_max_size=parse_size(split_max_size),
        allow_lossy=allow_lossy,
    )

    def plan(checkpoint: Checkpoint, rounding: Rounding) -> Export:
        model = plan_ollama(checkpoint, output, gguf, options, rounding)
        return OllamaExport(model, Destination(checkpoint, store, create))

    run_export(run, plan)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the model of a checkpoint goes from its folder: into a store, onto a server at `url`, or nowhere."""

    checkpoint: Checkpoint
    store: Path | None
    url: str | None

    def receive(self, model: OllamaModel, bar: ProgressBar, digests: Mapping[str, str] | None) -> str | None:
        """Hands the model over; returns where it is now, None for its folder. `digests` of its files, if known."""
        if self.store:
            from gptoss_converters.ollama.store import write_store

            manifest = write_store(self.store, model.name, model.files[0], model.parts, self.checkpoint, bar)
            for file in TEXTS:
                (model.folder / file).unlink()
            return str(manifest)
        if self.url:
            from gptoss_converters.ollama import pending
            from gptoss_converters.ollama.server import create_model
            from gptoss_converters.ollama.to_ollama import make_request

            digests = digests or pending.note(model, bar)
            create_model(self.url, model.files, make_request(model, digests), bar)
            pending.forget(model)
            return self.url
        return None


class OllamaExport(Export):
    """A folder with a GGUF, a Modelfile and a README, handed over to a destination."""

    def __init__(self, model: OllamaModel, destination: Destination) -> None:
        super().__init__(model.gguf, model.folder)
        self.model = model
        self.destination = destination
        self.where: str | None = None
        self.digests: Mapping[str, str] | None = None

    def preview(self, rounding: Rounding) -> Report:
        sizes = "\n".join(f"{f.path}: {f.size} bytes ({format_size(f.size)})" for f in self.plan.files)
        text = f"{sizes}\n{self.output / 'Modelfile'}:\n{self.model.modelfile}"
        files = {str(f.path): f.size for f in self.plan.files}
        return Report(text, {"files": files, "modelfile": self.model.modelfile})

    @contextmanager
    def prepare(self, run: Run) -> Iterator[None]:
        taken = [n for n in TEXTS if (self.output / n).exists()]
        if taken and not (run.force or run.resume or self._is_pending(run)):
            raise OutputError("exists already", file=self.output / taken[0], hint="add --force to replace it")
        with make_folder(self.output):
            yield

    def find_written(self, run: Run, bar: ProgressBar) -> Written | None:
        """What was written when an upload broke off, if every byte of it is still there."""
        from gptoss_adapters.checkpoint.writing.writer import Written
        from gptoss_converters.ollama import pending

        self.digests = pending.find(self.model, bar) if self._is_pending(run) else None
        return Written(self.plan.nbytes, resumed=self.plan.nbytes) if self.digests else None

    def _is_pending(self, run: Run) -> bool:
        from gptoss_converters.ollama import pending

        return bool(self.destination.url) and not run.force and pending.is_noted(self.model)

    def finish(self, bar: ProgressBar) -> None:
        from gptoss_converters.ollama.to_ollama import finish

        finish(self.model)
        self.where = self.destination.receive(self.model, bar, self.digests)

    def find_losses(self) -> list[str]:
        """None, as of every GGUF."""
        return []

    def statistics_file(self) -> Path | None:
        """None: Ollama imports the folder."""
        return None

    def summarise(self, written: Written) -> str:
        from gptoss_converters.ollama.to_ollama import describe_use

        name = self.model.name
        use = describe_use(self.model)
        if self.where:
            return f"{name} is in Ollama ({self.where})\nnext:\n  {use}"
        files = ", ".join(f.name for f in self.model.files)
        return (
            f"wrote {self.output}: {files}, Modelfile, README.md; checked against Ollama's grammar and rules\n"
            f"next:\n  cd {self.output} && ollama create {name} -f Modelfile\n  {use}"
        )

    def report(self, outcome: Outcome) -> Report:
        text = join_lines(outcome.rounding.text(), self.summarise(outcome.written))
        data = {
            "quantisation": outcome.statistics,
            "name": self.model.name,
            "folder": str(self.output),
            "where": self.where,
            "notices": self.notices,
            **asdict(outcome.written),
        }
        return Report(text, data)


def _parse_turn(text: str) -> tuple[str, str]:
    role, colon, content = text.partition(":")
    if not colon or role not in ("system", "user", "assistant"):
        raise UsageError("--message takes ROLE:TEXT", expected="a role of system, user or assistant", got=text)
    return role, content
