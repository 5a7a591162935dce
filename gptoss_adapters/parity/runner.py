"""A parity run: every target against the torch reference, into a `Report`. A target that fails does not stop the
others.
"""

from __future__ import annotations

import datetime
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.compare import DIFFERENT as BYTES_DIFFER
from gptoss_adapters.checkpoint.compare import ROUNDED, compare
from gptoss_adapters.errors import GptOssError
from gptoss_adapters.parity.case import Case
from gptoss_adapters.parity.faults.files import file_faults
from gptoss_adapters.parity.faults.table import all_faults
from gptoss_adapters.parity.logits.angles import measure_angle_error
from gptoss_adapters.parity.logits.attribution import Sweep
from gptoss_adapters.parity.logits.measure import Reference, take_record
from gptoss_adapters.parity.logits.probes import (
    make_prompts,
    read_embedding_norms,
    render_conversations,
)
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import Identity, Report, TargetResult, Weights
from gptoss_adapters.parity.targets import Target, hash_files, redact_key
from gptoss_adapters.parity.verdict import decide
from gptoss_adapters.spec import GptOssConfig

Progress = Callable[[str, int, int], None]


@dataclass
class Options:
    """carry: faults that the reference is given. timeout: seconds of silence before a target is given up. text: text
    layer and tool calls too. certificate: put every fault into the reference even where all is well. chunked: ask a
    second engine, with other prefill steps, too. backend: options for every target, beside those that its spec names.
    """

    seed: int = 0
    carry: tuple[str, ...] = ()
    timeout: float = 300.0
    text: bool = True
    certificate: bool = True
    chunked: bool = True
    backend: dict[str, object] = field(default_factory=dict)


def limit_threads(config: GptOssConfig, asked: int | None = None) -> None:
    """Two threads on matrices this small only wait for each other."""
    if asked or config.hidden_size <= 512:
        torch.set_num_threads(asked or 1)


class Run:
    """The reference and its prompts, shared by all targets."""

    def __init__(
        self, checkpoint: Checkpoint, options: Options, progress: Progress = lambda what, done, total: None
    ) -> None:
        self.options, self.progress = options, progress
        self.checkpoint = checkpoint
        self.reference = Reference(checkpoint, options.carry)
        self.prompts = make_prompts(
            checkpoint.config, read_embedding_norms(checkpoint), options.seed, render_conversations(checkpoint)
        )
        self.sweeps: dict[tuple[str, tuple[str, ...]], Sweep] = {}

    def report(self, specs: Sequence[str], repro: str = "") -> Report:
        start = time.monotonic()
        c = self.checkpoint.config
        made = Report(
            str(self.checkpoint.path),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            repro=repro,
            config=c.as_dict(),
            seed=self.options.seed,
        )
        settings = {
            "dtype": str(self.reference.dtype).removeprefix("torch."),
            "experts": "oracle",
            "carry": list(self.options.carry),
            "threads": torch.get_num_threads(),
        }
        version = f"gptoss_adapters.reference.model, torch {torch.__version__}"
        made.reference = Identity("torch", version, hash_files(self.checkpoint), settings)
        for spec in specs:
            made.targets.append(self.target(spec))
        made.angle_error = measure_angle_error(self.reference, self.prompts)
        made.seconds = round(time.monotonic() - start, 2)
        return made

    def target(self, spec: str) -> TargetResult:
        """One target, whatever happens to it."""
        start = time.monotonic()
        engine = re.split(r"[=@\[]", spec, maxsplit=1)[0]
        out = TargetResult(redact_key(spec), engine, schema.NOT_COMPARABLE)
        try:
            with _open_target(spec, self.checkpoint, self.options) as target:
                out.identity = target.identity()
                self._judge(target, out)
        except GptOssError as error:
            out.verdict, out.reason = schema.NOT_COMPARABLE, str(error)
        except Exception as error:  # a mistake of ours must not cost the other targets their report
            traceback.print_exc()
            out.verdict, out.reason = (
                schema.NOT_COMPARABLE,
                f"gptoss-parity itself failed: {type(error).__name__}: {error}".splitlines()[0],
            )
        out.seconds = round(time.monotonic() - start, 2)
        return out

    def _judge(self, target: Target, out: TargetResult) -> None:
        reference = self._reference_for(target, out)
        noise = target.noise(self.checkpoint)
        out.null = str(noise)
        prompts = target.cut(self.prompts)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress(redact_key(target.spec), done, len(prompts))

        record = take_record(reference, prompts, target, noise, tick)
        case = Case(target.backend, reference, noise, record, out)
        case.check_behaviour(self.options.chunked)
        if self.options.text:
            case.check_text(self.checkpoint)
        case.look_inside()
        if self.options.certificate or case.base.failed:
            case.attribute(self.sweep(reference, case.carried))
        out.verdict, out.reason = decide(out, case.findings())

    def _reference_for(self, target: Target, out: TargetResult) -> Reference:
        """Weights are compared as bytes first. Rounded ones are no fault of the engine: it is then judged on its
        own file's.
        """
        if target.checkpoint is None:
            out.weights = Weights(detail="the target's weights cannot be read here")
            return self.reference
        out.weights = compare_weights(self.checkpoint, target.checkpoint)
        if out.weights.verdict == schema.LOOK:
            config = replace(target.checkpoint.config, yarn_truncate=self.checkpoint.config.yarn_truncate)
            return Reference(target.checkpoint.with_config(config), self.options.carry)
        return self.reference

    def sweep(self, reference: Reference, carried: tuple[str, ...]) -> Sweep:
        """All faults over all prompts, put into the reference that carries these; made once."""
        key = str(reference.checkpoint.path), carried
        if key not in self.sweeps:
            done = 0
            total = 1 + len(all_faults()) + len(list(file_faults(len(reference.model.layers))))  # 1: the control

            def tick() -> None:
                nonlocal done
                done += 1
                self.progress("faults", done, total)

            self.sweeps[key] = Sweep.run(reference, reference.carrying(carried), self.prompts, tick)
        return self.sweeps[key]


@contextmanager
def _open_target(spec: str, checkpoint: Checkpoint, options: Options) -> Iterator[Target]:
    target = Target.open(spec, checkpoint, options.timeout, **options.backend)
    try:
        yield target
    finally:
        target.backend.close()


def compare_weights(a: Checkpoint, b: Checkpoint) -> Weights:
    """pass: bytes or values equal; look: rounded by a known rule; fail: different, or another config."""
    try:
        found = compare(a, b)
    except GptOssError as error:
        return Weights(verdict=schema.FAIL, detail=str(error))
    different = [r.name for r in found.results if r.verdict == BYTES_DIFFER]
    rounded = [f"{r.name}: {r.rule}" for r in found.results if r.verdict == ROUNDED]
    verdict = schema.PASS
    if rounded:
        verdict = schema.LOOK
    if different or found.config:
        verdict = schema.FAIL
    return Weights(
        found.counts, sum(r.nbytes for r in found.results), different, rounded, found.config, found.notes, verdict
    )
