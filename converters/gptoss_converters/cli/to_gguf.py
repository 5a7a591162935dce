"""`gptoss-convert to-gguf`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_adapters.errors import OutputError
from gptoss_converters.cli.console import format_size, parse_size, plan_to_json, plan_to_text
from gptoss_converters.cli.export import Export, Outcome, Report, describe_write, join_lines, run_export
from gptoss_converters.cli.options import ForceFileOption, Run, find_on_hub, takes_run

if TYPE_CHECKING:
    from gptoss_adapters.checkpoint import Checkpoint
    from gptoss_adapters.checkpoint.writing.writer import Written
    from gptoss_converters.export_plan import ExportPlan
    from gptoss_converters.rows.quantised import Rounding


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


@takes_run(exact_yarn=False, force=ForceFileOption)
def to_gguf(
    run: Run,
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
    *,
    parity: Annotated[
        bool, typer.Option("--parity", help="Run the file in llama.cpp afterwards and compare it with the reference.")
    ] = False,
) -> None:
    """Convert a checkpoint for llama.cpp and Ollama, with every weight byte accounted for.

    Examples:

        gptoss-convert to-gguf ./gpt-oss-20b -o gpt-oss-20b.gguf

        gptoss-convert to-gguf openai/gpt-oss-120b -o 120b.gguf --dense q8_0 --split-max-size 40G

        gptoss-convert to-gguf ./my-tune -o tune.gguf --experts mxfp4 --dry-run
    """
    from gptoss_converters.gguf.metadata import title
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

    on_hub = find_on_hub(run.path)
    hashes = on_hub is not None if sha256 is None else sha256
    size = parse_size(split_max_size)

    def plan(checkpoint: Checkpoint, rounding: Rounding) -> Export:
        named = name
        if on_hub and name is None and "general.name" not in checkpoint.metadata:
            named = title(on_hub.repo.split("/")[1])  # the folder that a download lands in is named by a hash
        options = GgufOptions(
            dense and dense.value, experts and experts.value, tokenizer, named, size, hashes, allow_lossy
        )
        planned = plan_gguf(checkpoint, output, options, rounding)
        if experts in (Experts.bf16, Experts.f16, Experts.f32):
            planned = _keep_scales(planned, checkpoint, output)
        return GgufExport(planned, output, run, has_vocabulary=tokenizer != "none", parity=parity)

    run_export(run, plan)


def _keep_scales(planned: ExportPlan, checkpoint: Checkpoint, output: Path) -> ExportPlan:
    """With the side file of a dequantised export."""
    from gptoss_converters.rows.quantised import side_file_of, with_side_file
    from gptoss_converters.rows.readers import Readers

    plan = with_side_file(planned.plan, checkpoint, Readers(checkpoint), side_file_of(output))
    return replace(planned, plan=plan)


class GgufExport(Export):
    """One GGUF or its shards, and perhaps a side file; run in llama.cpp afterwards if `parity`."""

    def __init__(self, planned: ExportPlan, output: Path, run: Run, *, has_vocabulary: bool, parity: bool) -> None:
        super().__init__(planned, output)
        self.run = run
        self.has_vocabulary = has_vocabulary
        self.parity = parity

    def preview(self, rounding: Rounding) -> Report:
        return Report(plan_to_text(self.plan), {**plan_to_json(self.plan), "notices": self.notices})

    @contextmanager
    def prepare(self, run: Run) -> Iterator[None]:
        stale = self._find_stale_side_file()
        if stale and not (run.force or run.resume):
            raise OutputError(
                "holds the scales of an earlier output, which would be taken for this one's",
                file=stale,
                hint="add --force to remove it",
            )
        yield
        if stale:
            stale.unlink()

    def find_losses(self) -> list[str]:
        """None: a GGUF holds float32, and bfloat16 only where it was asked for."""
        return []

    def summarise(self, written: Written) -> str:
        files = [f.path for f in self.plan.files]
        lines = [f"wrote {', '.join(map(str, files))}: {describe_write(written)}"]
        if written.resumed:
            lines.append(f"  {format_size(written.resumed)} of it by the interrupted run")
        lines += [f"  sha256 {digest}  {name}" for name, digest in written.sha256.items()]
        packed = any(tensor.dtype == "MXFP4" for file in self.plan.files for tensor in file.tensors)
        commands = _suggest_commands(files[0], self.run.path, self.has_vocabulary, packed)
        return "\n".join([*lines, "next:", *(f"  {line}" for line in commands)])

    def report(self, outcome: Outcome) -> Report:
        verdict = _judge(self.run, self.plan.files[0].path) if self.parity else Report("", {})
        text = join_lines(self.summarise(outcome.written), outcome.rounding.text(), verdict.text)
        data = {
            "files": [str(f.path) for f in self.plan.files],
            "notices": self.notices,
            "quantisation": outcome.statistics,
            "parity": verdict.data or None,
            **asdict(outcome.written),
        }
        return Report(text, data, verdict.code)

    def _find_stale_side_file(self) -> Path | None:
        from gptoss_converters.rows.quantised import side_file_of

        side = side_file_of(self.output)
        ours = {f.path for f in self.plan.files} | self.plan.sources.keys()
        return side if side.is_file() and side not in ours else None


def _judge(run: Run, file: Path) -> Report:
    """The parity report of what was just written. Runs llama-cpp-python, else llama.cpp's server."""
    from importlib.util import find_spec

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.errors import missing_extra

    if not find_spec("torch"):
        raise missing_extra("torch", "torch")
    from gptoss_adapters.parity.cli_run import Bars
    from gptoss_adapters.parity.report.files import write_report
    from gptoss_adapters.parity.report.schema import exit_code
    from gptoss_adapters.parity.runner import Options, limit_threads
    from gptoss_adapters.parity.runner import Run as ParityRun

    spec = f"{'llama_cpp' if find_spec('llama_cpp') else 'llama_server'}={file}"
    checkpoint = open_checkpoint(run.path, revision=run.revision)
    limit_threads(checkpoint.config)
    with Bars() as bars:
        command = f"gptoss-parity run {run.path} --target {spec}"
        report = ParityRun(checkpoint, Options(), bars).report([spec], command)
    folder = file.with_name(f"{file.stem}-parity")
    write_report(report, folder)
    (target,) = report.targets
    text = f"parity: {target.verdict}: {target.reason}\n  {folder / 'report.html'}"
    return Report(text, report.to_json(), exit_code(report.targets))


def _suggest_commands(file: Path, source: str, vocabulary: bool, packed: bool) -> list[str]:
    """Commands to copy into a shell. A file without a vocabulary runs in no server: llama.cpp's aborts on it. Smaller
    files are llama.cpp's to make: experts that are MXFP4 (`packed`) stay as they are, byte for byte.
    """
    from gptoss_converters.ollama.to_ollama import name_model

    if not vocabulary:
        return [f"gptoss-parity run {quote(source)} --target {quote(f'llama_cpp={file}')}"]
    line = f"FROM {file.resolve()}".replace("%", "%%") + r"\n"
    whole = re.sub(r"-\d{5}-of-\d{5}$", "", file.stem)
    keep = "--tensor-type exps=mxfp4 " if packed else ""
    model, smaller = quote(str(file)), quote(str(file.with_name(f"{whole}-Q4_K_M.gguf")))
    return [
        f"llama-server -m {model} --jinja",
        f"printf {quote(line)} > Modelfile && ollama create {name_model(file)} -f Modelfile",
        f"llama-imatrix -m {model} -f TEXT -o imatrix.gguf",
        f"llama-quantize --imatrix imatrix.gguf {keep}{model} {smaller} Q4_K_M",
    ]
