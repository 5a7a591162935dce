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
from itertools import pairwise

import numpy as np
import torch

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.compare import DIFFERENT as BYTES_DIFFER
from gptoss_adapters.checkpoint.compare import ROUNDED, compare
from gptoss_adapters.errors import GptOssError
from gptoss_adapters.parity.deviations import KnownDeviation, known_deviations
from gptoss_adapters.parity.faults.files import file_faults
from gptoss_adapters.parity.faults.table import all_faults, find_fault
from gptoss_adapters.parity.logits.attribution import Evidence, Found, Sweep, certificate, suspects, to_schema
from gptoss_adapters.parity.logits.behaviour import greedy, structural
from gptoss_adapters.parity.logits.judge import Flat, Judged, amount, judge, schema_families
from gptoss_adapters.parity.logits.layers import forced_routing, layers
from gptoss_adapters.parity.logits.measure import Record, Reference, measure
from gptoss_adapters.parity.logits.metrics import F64, histogram, nmse_of
from gptoss_adapters.parity.logits.probes import FAMILIES, Prompt, light, make_prompts
from gptoss_adapters.parity.logits.ties import Ties
from gptoss_adapters.parity.noise.nulls import Noise
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import Deviation, Identity, Report, Strip, Weights
from gptoss_adapters.parity.targets import Target, conversations, digests, embedding_norms, shown
from gptoss_adapters.reference.model import GptOss, yarn_inverse_frequencies
from gptoss_adapters.spec import GptOssConfig

Progress = Callable[[str, int, int], None]
STRIP_FAMILIES = ("long", "far", "harmony")
ANGLE_POSITIONS = (1, 2, 4, 8, 16, 48, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


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


def few_threads(config: GptOssConfig, asked: int | None = None) -> None:
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
            checkpoint.config, embedding_norms(checkpoint), options.seed, conversations(checkpoint)
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
        made.reference = Identity(
            "torch", f"gptoss_adapters.reference.model, torch {torch.__version__}", digests(self.checkpoint), settings
        )
        for spec in specs:
            made.targets.append(self.target(spec))
        made.angle_error = self.angle_error()
        made.seconds = round(time.monotonic() - start, 2)
        return made

    def target(self, spec: str) -> schema.Target:
        """One target, whatever happens to it."""
        start = time.monotonic()
        engine = re.split(r"[=@\[]", spec, maxsplit=1)[0]
        out = schema.Target(shown(spec), engine, schema.NOT_COMPARABLE)
        try:
            with _opened(spec, self.checkpoint, self.options) as target:
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

    def _judge(self, target: Target, out: schema.Target) -> None:
        reference = self._reference_for(target, out)
        noise = target.noise(self.checkpoint)
        out.null = str(noise)
        prompts = self._prompts_for(target)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress(shown(target.spec), done, len(prompts))

        record = measure(reference, prompts, target, noise, tick)
        case = Case(self, target, reference, noise, record, out)
        case.decide()

    def _reference_for(self, target: Target, out: schema.Target) -> Reference:
        """Weights are compared as bytes first. Rounded ones are no fault of the engine: it is then judged on its
        own file's.
        """
        if target.checkpoint is None:
            out.weights = Weights(detail="the target's weights cannot be read here")
            return self.reference
        out.weights = compare_weights(self.checkpoint, target.checkpoint)
        if out.weights.verdict == schema.LOOK:
            target.checkpoint.config = replace(
                target.checkpoint.config, yarn_truncate=self.checkpoint.config.yarn_truncate
            )
            return Reference(target.checkpoint, self.options.carry)
        return self.reference

    def _prompts_for(self, target: Target) -> list[Prompt]:
        prompts = light(self.prompts) if target.limited else self.prompts
        return [p for p in prompts if len(p.ids) <= target.backend.info.n_ctx]

    def sweep(self, reference: Reference, carried: tuple[str, ...]) -> Sweep:
        """All faults over all prompts, put into the reference that carries these; made once."""
        key = str(reference.checkpoint.path), carried
        if key not in self.sweeps:
            done, total = (
                0,
                1 + len(all_faults()) + len(list(file_faults(len(reference.model.layers)))),
            )  # 1: the control

            def tick() -> None:
                nonlocal done
                done += 1
                self.progress("faults", done, total)

            self.sweeps[key] = Sweep.run(reference, reference.carrying(carried), self.prompts, tick)
        return self.sweeps[key]

    def angle_error(self) -> schema.AngleError | None:
        """Computed for the checkpoint's own rotation; measured: the reference's logits with and without rounding."""
        c = self.checkpoint.config
        fault = find_fault("yarn_truncate")
        if not fault.applies(self.reference.model):
            return None
        gap = float(
            (yarn_inverse_frequencies(replace(c, yarn_truncate=True)) - yarn_inverse_frequencies(c)).abs().max()
        )
        made = schema.AngleError(
            [p for p in ANGLE_POSITIONS if p <= max(c.max_position_embeddings, 2)],
            bounds=list(c.yarn_bounds()),
            rounded=[float(b) for b in replace(c, yarn_truncate=True).yarn_bounds()],
        )
        made.radians = [gap * p for p in made.positions]
        prompt = max(self.prompts, key=lambda p: len(p.ids))
        with torch.inference_mode():
            z, y = (
                self.reference.values(self.reference.hidden(m, [prompt])[0], self.reference.sample)
                for m in (self.reference.model, fault.apply(self.reference.model))
            )
        made.measured_positions = list(range(len(z)))
        made.measured_nmse = [float(x) for x in nmse_of(z, y)]
        return made


@contextmanager
def _opened(spec: str, checkpoint: Checkpoint, options: Options) -> Iterator[Target]:
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
    verdict = schema.FAIL if different or found.config else schema.LOOK if rounded else schema.PASS
    return Weights(
        found.counts, sum(r.nbytes for r in found.results), different, rounded, found.config, found.notes, verdict
    )


@dataclass
class Case:
    """One target's evidence on the way to its verdict."""

    run: Run
    target: Target
    reference: Reference
    noise: Noise
    record: Record
    out: schema.Target
    present: list[Found] = field(default_factory=list)  # faults whose effect stands in what the known deviations leave

    def decide(self) -> None:
        plain = self._truth(self.reference.model)
        self.flat = Flat.of(self.record, ties=self._ties(self.reference.model, plain))
        self.nulls = np.stack([np.concatenate(n) for n in self.record.nulls])
        judged = judge(self.flat, plain)
        known = [
            k for k in known_deviations(self.target.arithmetic) if find_fault(k.fault).applies(self.reference.model)
        ]
        base, model, carried = judged, self.reference.model, tuple(k.fault for k in known)
        if known:
            model = self.reference.carrying(carried)
            truth = self._truth(model)
            with_it = judge(
                replace(self.flat, ties=self._ties(model, truth)), truth
            )  # other positions are ties with the deviation
            self.out.deviations = [self._deviation(k, plain, truth, judged, with_it) for k in known]
            if self.out.deviations[0].status == schema.ABSENT:
                carried, model = (), self.reference.model
            else:
                base = with_it
        self._fill(judged, base)
        self._inside(model)
        self._attribute(base, carried)
        self._verdict(judged, base)

    def _ties(self, model: GptOss, truth: F64) -> Ties:
        """truth: of that model, [N, S]."""
        parts = np.split(truth, np.cumsum([len(v) for v in self.record.values])[:-1])
        return Ties(model, self.noise, self.record.prompts, self.record.ids, parts)

    def _truth(self, model: GptOss) -> F64:
        """[N, S]"""
        with torch.inference_mode():
            hidden = self.reference.hidden(model, self.record.prompts)
            return np.concatenate(
                [self.reference.values(h, ids) for h, ids in zip(hidden, self.record.ids, strict=True)]
            )

    def _deviation(self, known: KnownDeviation, plain: F64, truth: F64, without: Judged, with_it: Judged) -> Deviation:
        found = amount(self.flat.values - plain, truth - plain, self.nulls, self.flat.energy)
        status = schema.CONFIRMED if found.present else schema.ABSENT if found.absent else schema.EXPECTED
        made = Deviation(
            known.fault,
            status,
            self.target.engine,
            known.versions,
            known.source,
            known.effect,
            without.worst,
            with_it.worst,
            coefficient=found.coefficient,
            coefficient_sd=found.chance,
        )
        made.resolvable_from = self._resolvable_from(plain, truth)
        made.longest_position = max(len(p.ids) for p in self.record.prompts) - 1
        return made

    def _resolvable_from(self, plain: F64, truth: F64) -> int | None:
        """The first position from which on the effect, seen over at least 16 positions of a prompt, can be told
        from noise.
        """
        best: int | None = None
        for begin, end in pairwise(self.flat.starts):
            for lo in range(0, max(end - begin - 16, 0) + 1, 16):
                part = slice(begin + lo, min(begin + lo + 16, end))
                effect = (truth - plain)[part]
                if (effect**2).any() and amount(
                    effect, effect, self.nulls[:, part], self.flat.energy[:, part]
                ).resolvable:
                    best = lo if best is None else min(best, lo)
                    break
        return best

    def _fill(self, plain: Judged, base: Judged) -> None:
        out, record = self.out, self.record
        out.families = schema_families(record, plain, FAMILIES)
        out.worst_excess, out.first_divergent = plain.worst, base.first_divergent
        own = np.concatenate([p["kl"] for p in record.positions])
        null = np.concatenate([p["kl"] for p in next(iter(record.null_positions.values()))])
        out.kl_histogram = histogram(own, null)
        out.strips = [
            self._strip(i, p) for i, p in enumerate(record.prompts) if p.family in STRIP_FAMILIES and p.index == 0
        ]
        same = self._with(
            base is not plain
        )  # known deviations change how far a token's influence is felt, and what is chosen
        out.structural = structural(self.target, same, record, base, self.run.options.chunked)
        out.greedy = greedy(self.target, same, record, self.noise)
        self._text()

    def _with(self, carried: bool) -> Reference:
        """The reference that behaviour is held against."""
        if not carried:
            return self.reference
        import copy

        made = copy.copy(self.reference)
        made.model = self.reference.carrying([d.fault for d in self.out.deviations])
        return made

    def _strip(self, i: int, prompt: Prompt) -> Strip:
        c = self.reference.config
        ticks = {
            str(p): label
            for p, label in ((c.sliding_window, "W"), (c.initial_context_length, "original context"))
            if p < len(prompt.ids)
        }
        nulls = [positions[i] for positions in self.record.null_positions.values()]
        own = self.record.positions[i]
        made = Strip(prompt.family, prompt.index, own["nmse"].tolist(), own["kl"].tolist(), ticks=ticks)
        made.null_nmse, made.null_kl = (np.median([n[name] for n in nulls], 0).tolist() for name in ("nmse", "kl"))
        return made

    def _text(self) -> None:
        if not self.run.options.text:
            return
        from gptoss_adapters.parity.text.text_layer import check_text_layer
        from gptoss_adapters.parity.text.tool_calls import check_tool_calls

        self.out.text_layer = check_text_layer(self.run.checkpoint, self.target.backend)
        self.out.tool_calls = check_tool_calls(self.run.checkpoint, self.target.backend)

    def _inside(self, model: GptOss) -> None:
        if self.target.backend.info.capabilities.taps:
            index = max(
                range(len(self.record.prompts)),
                key=lambda i: (self.record.prompts[i].family == "long", len(self.record.prompts[i].ids)),
            )
            with torch.inference_mode():
                self.out.layers = layers(
                    self.target, self.reference, model, self.noise, self.record.prompts[index], index
                )
                self.out.structural.append(
                    forced_routing(self.target, self.reference, model, self.noise, self.record.prompts)
                )

    def _attribute(self, base: Judged, carried: tuple[str, ...]) -> None:
        if not (self.run.options.certificate or base.failed):
            return
        sweep = self.run.sweep(self.reference, carried)
        evidence = Evidence.of(sweep, self.record, self.noise, self.flat.ties)
        found = suspects(evidence, base)
        self.present = [f for f in found if f.amount.present]
        self.out.certificate = certificate(evidence)
        if base.failed or self.present or self._other_failures():
            self.out.suspects = to_schema(found)

    def _other_failures(self) -> list[str]:
        out = self.out
        lines = []
        if out.weights and out.weights.verdict == schema.FAIL:
            names = [*out.weights.different, *out.weights.config]
            lines.append(f"weights or config differ: {', '.join(names[:3]) or out.weights.detail}")
        lines += [f"{s.name}: {s.observed}" for s in out.structural if s.verdict == schema.FAIL]
        if out.greedy and out.greedy.verdict == schema.FAIL:
            lines.append("greedy answers part where the reference's choice is clear")
        if out.text_layer and out.text_layer.verdict == schema.FAIL:
            lines.append("text layer: " + ", ".join(c.name for c in out.text_layer.checks if c.verdict == schema.FAIL))
        if out.tool_calls and out.tool_calls.verdict == schema.FAIL:
            lines.append("tool calls differ")
        costly = [f for f in out.layers.flips if not f.cheap] if out.layers else []
        if costly:
            lines.append(f"the router of layer {costly[0].layer} chose others at a margin of {costly[0].gap:.3g}")
        return lines

    def _verdict(self, plain: Judged, base: Judged) -> None:
        out, failures = self.out, self._other_failures()
        deviations = [d for d in out.deviations if d.status != schema.ABSENT]
        if base.failed or self.present or failures:
            out.verdict = schema.DIFFERENT
            named = next((s for s in out.suspects if s.confirmed), out.suspects[0] if out.suspects else None)
            cause = (
                f"{named.what} ({named.fault}, {'confirmed' if named.confirmed else 'not confirmed'})"
                if named
                else "no known fault fits"
            )
            out.reason = "; ".join(
                [f"{cause}: {base.worst:.3g} times the noise", *failures] if base.failed or self.present else failures
            )
        elif deviations:
            out.verdict = schema.EXCEPT
            out.reason = "; ".join(self._said(d) for d in deviations)
        elif self._bitwise():
            out.verdict, out.reason = schema.SAME, "bit for bit the reference in this precision"
        else:
            out.verdict, out.reason = (
                schema.WITHIN,
                f"at most {plain.worst:.2g} times what honest rounding gives ({out.null})",
            )
        if (
            out.weights
            and out.weights.verdict == schema.LOOK
            and out.verdict in (schema.WITHIN, schema.SAME, schema.EXCEPT)
        ):
            out.reason += f"; {len(out.weights.rounded)} tensors rounded as declared, judged on the file's own weights"

    def _said(self, d: Deviation) -> str:
        if d.status == schema.CONFIRMED:
            return (
                f"{d.fault}, confirmed: {d.excess_without:.3g} times the noise without it, {d.excess_with:.2g} with it"
            )
        where = (
            f"position {d.resolvable_from}"
            if d.resolvable_from is not None
            else f"position {(d.longest_position or 0) + 1}"
        )
        return f"{d.fault}, expected, not resolvable below {where}"

    def _bitwise(self) -> bool:
        """Equal to the plain null, which is the reference in the target's own precision, in every logit that was
        kept.
        """
        return bool(np.array_equal(self.flat.values - self._truth(self.reference.model), self.nulls[0]))
