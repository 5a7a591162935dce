"""`gptoss-parity run` and `gptoss-parity faults`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Path_ = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="The reference: a checkpoint of any kind, a folder, a file or a Hub repository id."
    ),
]
Carry = Annotated[
    list[str] | None,
    typer.Option("--carry", metavar="FAULT", help="Give the reference this known fault first, e.g. yarn_truncate."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="S", help="Another seed draws other prompts.")]


def run(
    checkpoint: Path_,
    target: Annotated[
        list[str],
        typer.Option(
            "-t",
            "--target",
            metavar="BACKEND",
            help=(
                "NAME, NAME=PATH, NAME=URL or NAME@PYTHON, with options of the engine as NAME[OPTION=VALUE,..]; may "
                "be repeated."
            ),
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where report.json, report.md and report.html go.")
    ] = Path("parity"),
    carry: Carry = None,
    seed: Seed = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on SAME EXCEPT too.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Silence after which a target is given up.")
    ] = 300.0,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Tokenizer, chat template and tool calls too.")] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads of the reference (default: 1 for small models).")
    ] = None,
) -> None:
    """Compare engines with the torch reference: one verdict per target, and a report.

    Exits 0 when all are the same, 1 for DIFFERENT, 3 for NOT COMPARABLE.

    Examples:

        gptoss-parity run ./pocket -t llama_cpp=pocket.gguf -t transformers -o out

        gptoss-parity run ./pocket -t llama_server=http://localhost:8080

        gptoss-parity run ./pocket -t vllm@/opt/vllm/bin/python --strict

        gptoss-parity run ./pocket -t "llama_cpp[cache_type=f16,flash_attn=true,n_threads=2]=pocket.gguf" -t
        "torch[dtype=bfloat16]"
    """
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.parity.report.files import write_report
    from gptoss_adapters.parity.report.markdown import summary
    from gptoss_adapters.parity.report.schema import exit_code
    from gptoss_adapters.parity.runner import Options, Run, limit_threads
    from gptoss_adapters.parity.targets import parse_spec

    for spec in target:
        parse_spec(spec)  # a slip of the keyboard is said before anything runs
    opened = open_checkpoint(checkpoint)
    limit_threads(opened.config, threads)
    with Bars() as bars:
        made = Run(opened, Options(seed, tuple(carry or ()), timeout, text), bars).report(
            target, _repro(checkpoint, target, carry, seed, text)
        )
    output.mkdir(parents=True, exist_ok=True)
    files = write_report(made, output)
    print(summary(made, colour=sys.stdout.isatty()))
    for file in files:
        print(f"wrote {file}", file=sys.stderr)
    sys.exit(exit_code(made.targets, strict))


def faults(
    checkpoint: Path_,
    noise: Annotated[
        str, typer.Option(metavar="float32|bfloat16|ggml", help="The noise to see them above.")
    ] = "bfloat16",
    carry: Carry = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """The sensitivity certificate: which seeded faults these probes would see on this checkpoint, above this noise.

    Example:

        gptoss-parity faults ./pocket --noise ggml
    """
    import json
    from dataclasses import asdict

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.errors import UsageError
    from gptoss_adapters.parity.logits.attribution import Evidence, Sweep, certify
    from gptoss_adapters.parity.logits.measure import ModelSubject, take_record
    from gptoss_adapters.parity.noise.nulls import Noise
    from gptoss_adapters.parity.runner import Options, Run, limit_threads

    known = {"float32": Noise(), "bfloat16": Noise("bfloat16"), "ggml": Noise("float32", "bf16", "q8_0")}
    if noise not in known:
        raise UsageError("--noise", expected=", ".join(known), got=noise)
    opened = open_checkpoint(checkpoint)
    limit_threads(opened.config)
    with Bars() as bars:
        made = Run(opened, Options(seed, tuple(carry or ())), bars)
        record = take_record(made.reference, made.prompts, ModelSubject(made.reference.model), known[noise])
        sweep = Sweep.run(made.reference, made.reference.model, made.prompts)
        found = certify(Evidence.of(sweep, record, known[noise]))
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"{found.caught} of {found.total} seeded faults would be seen above {found.null} noise")
    for f in found.faults:
        seen = (
            "not on this checkpoint"
            if not f.applies
            else f"{f.by or 'NOT SEEN':<10} {f.excess:9.3g} x noise, best in {f.family}"
        )
        print(f"  {f.fault:<22} {seen:<45} {f.what}")


def _repro(checkpoint: str, targets: list[str], carry: list[str] | None, seed: int, text: bool) -> str:
    from gptoss_adapters.parity.targets import redact_key

    parts = [
        "gptoss-parity",
        "run",
        checkpoint,
        *(x for t in targets for x in ("--target", redact_key(t))),
        *(x for c in carry or () for x in ("--carry", c)),
    ]
    return shlex.join([*parts, *(["--seed", str(seed)] if seed else []), *([] if text else ["--no-text"])])


class Bars:
    """A bar per target; nothing at all unless stderr is a terminal."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bar:
            if what not in self.tasks:
                self.tasks[what] = self.bar.add_task(what, total=total)
            self.bar.update(self.tasks[what], completed=done, total=total)
