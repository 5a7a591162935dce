"""report.json as dataclasses: everything that a parity run found, raw numbers included. The renderings are made from
this alone.

    >>> report = Report.load(path); report.save(path)

Version 1. Later versions only add fields (with defaults), so an old file stays readable: unknown fields are ignored.
Numbers that are not finite are stored as null. Lists "per position" run along the prompt from position 0.
A *statistic's excess* is observed / median over the nulls; pass <= 3 < look <= 10 < fail.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from gptoss_adapters.errors import BadInput
from gptoss_adapters.parity.report.json_form import build, to_plain
from gptoss_adapters.parity.report.measurements import Histogram, Layers, Metrics, Strip

VERSION = 1
SAME = "SAME"
WITHIN = "SAME WITHIN NUMERICS"
EXCEPT = "SAME EXCEPT"
DIFFERENT = "DIFFERENT"
NOT_COMPARABLE = "NOT COMPARABLE"
VERDICTS = (SAME, WITHIN, EXCEPT, DIFFERENT, NOT_COMPARABLE)
# of a family or check; skipped: did not apply, or could not be resolved
PASS = "pass"
LOOK = "look"
FAIL = "fail"
SKIPPED = "skipped"
PASS_EXCESS, LOOK_EXCESS = 3.0, 10.0
CONFIRMED = "confirmed"
EXPECTED = "expected"
ABSENT = "absent"


@dataclass
class Suspect:
    """A fault that may explain what was seen. Sorted by falling score; the first three are worth showing."""

    fault: str  # name in faults/table.py
    confirmed: bool  # applied to the reference, the excess vanishes in every probe family
    score: float  # 0..1: share of the log excess that goes away when the reference carries the fault
    part: str = ""  # window, sinks, RoPE, ...
    what: str = ""  # one line for a reader
    excess_left: float | None = None  # worst excess against the reference that carries the fault
    # least-squares amount of the fault's effect in the target's error: 1 = all of it, 0 = none
    coefficient: float | None = None
    coefficient_sd: float | None = None  # what the nulls give by chance


@dataclass
class Deviation:
    """A known deviation of the target's engine (deviations.py), and what this run says of it."""

    fault: str
    # confirmed | expected (not resolvable above this run's noise) | absent (would have been seen, is not there)
    status: str
    engine: str = ""
    versions: str = ""
    source: str = ""
    effect: str = ""
    excess_without: float | None = None  # worst excess against the plain reference
    excess_with: float | None = None  # ... against the reference that carries it
    # first position where its effect stands above the noise; None: nowhere in this run
    resolvable_from: int | None = None
    longest_position: int | None = None  # last position that ran
    coefficient: float | None = None
    coefficient_sd: float | None = None


@dataclass
class Family:
    """One set of prompts with one purpose."""

    name: str
    what: str  # what it shows, one line
    prompts: int
    positions: int
    metrics: Metrics
    null: dict[str, Metrics] = field(default_factory=dict)  # null implementation -> the same statistics
    excess: dict[str, float] = field(default_factory=dict)  # statistic -> observed / median null
    worst: float | None = None  # the largest of them
    verdict: str = SKIPPED
    # first position clearly above the noise; see faults/table.py for what it hints at
    first_divergent: int | None = None
    forced_routing: bool = False  # both sides were made to use the reference's experts


@dataclass
class Structural:
    """A check on behaviour rather than on size: window reach, sink, chunked prefill, decode against prefill."""

    name: str
    verdict: str  # pass | fail | skipped
    expected: str = ""
    observed: str = ""
    detail: str = ""


@dataclass
class GreedyPrompt:
    """A free-running greedy generation beside the reference's."""

    prompt: int
    length: int  # tokens compared
    first_divergence: int | None  # index of the first different token; None: equal to the end
    margin: float | None = None  # the reference's logit of its token minus that of the target's, there
    allowed: float | None = None  # twice the noise of a logit
    legitimate: bool = True


@dataclass
class Greedy:
    """Divergence judged by margins. survival[t]: share of prompts still equal after t + 1 tokens."""

    prompts: list[GreedyPrompt] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)
    verdict: str = SKIPPED


@dataclass
class Check:
    """One line of a text-layer or other check."""

    name: str
    verdict: str  # pass | look (every difference is a known deviation) | fail | skipped
    count: int = 0  # how many cases were compared
    detail: str = ""
    failures: list[str] = field(default_factory=list)  # the first few, one line each
    source: str = ""  # what was asked: an engine's own tokenizer, a file, an endpoint
    same: int = 0  # of `count`
    families: dict[str, list[int]] = field(default_factory=dict)  # kind of case -> [same, count]


@dataclass
class TextLayer:
    """Tokenizer, chat template, prompt token counts, stop ids. Filled by `text_layer.check_text_layer(checkpoint,
    backend)`.
    """

    checks: list[Check] = field(default_factory=list)
    verdict: str = SKIPPED


@dataclass
class ToolCall:
    """One tool-calling case. None: not compared. expected and got are for the reader (ids, pieces or JSON)."""

    case: str
    name_equal: bool | None = None
    arguments_equal: bool | None = None  # as JSON values
    channel_equal: bool | None = None
    stream_equal: bool | None = None  # streamed == whole, in every chunking that was tried
    recipient_equal: bool | None = None
    content_type_equal: bool | None = None
    round_trip_equal: bool | None = None  # rendered, parsed and rendered again: the same ids
    # what the engine's own chat endpoint parsed, against our parse of the reference's answer
    server_equal: bool | None = None
    expected: str = ""
    got: str = ""
    detail: str = ""


@dataclass
class ToolCalls:
    """Filled by `tool_calls.check_tool_calls(checkpoint, backend)`."""

    cases: list[ToolCall] = field(default_factory=list)
    verdict: str = SKIPPED
    detail: str = ""


@dataclass
class Weights:
    """`checkpoint.compare` of the reference's checkpoint with the target's file; counts by its verdicts."""

    counts: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0
    different: list[str] = field(default_factory=list)  # tensor names
    rounded: list[str] = field(default_factory=list)  # "tensor: rule"
    config: list[str] = field(default_factory=list)  # config fields that differ and matter
    notes: list[str] = field(default_factory=list)
    verdict: str = SKIPPED
    detail: str = ""


@dataclass
class CertifiedFault:
    """What one seeded fault would have done to this run's probes."""

    fault: str
    part: str
    what: str
    nmse: float | None  # largest over the families of the geometric mean over positions
    excess: float | None  # over the noise, worst family; null: the fault does not apply to this checkpoint
    caught: bool
    family: str = ""  # where it shows best
    first_position: int | None = None
    by: str = ""  # "excess" | "projection" | "structural" | "op" | "": what would catch it
    applies: bool = True


@dataclass
class Certificate:
    """The run's own power: which of the seeded faults it would have seen above one target's noise."""

    null: str = ""  # the noise class
    faults: list[CertifiedFault] = field(default_factory=list)
    caught: int = 0
    total: int = 0  # of those that apply
    control: float | None = None  # excess of the negative control pos_plus1: must stay near or below 1


@dataclass
class Identity:
    """Who computed. sha256: file name -> digest; settings: what the numbers depend on (dtype, threads, cache type,
    ...).
    """

    engine: str = ""
    version: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class TargetResult:
    """One target's result. `reason`: one sentence for the verdict; for NOT COMPARABLE what was missing or what
    happened.
    """

    name: str  # as given: "llama_cpp=model.gguf"
    backend: str
    verdict: str
    reason: str = ""
    suspects: list[Suspect] = field(default_factory=list)
    deviations: list[Deviation] = field(default_factory=list)
    # the noise class that it was judged by, for example "ggml: dense bf16, experts q8_0 activations, cache f32"
    null: str = ""
    families: list[Family] = field(default_factory=list)
    worst_excess: float | None = None
    first_divergent: int | None = None
    strips: list[Strip] = field(default_factory=list)
    kl_histogram: Histogram | None = None
    layers: Layers | None = None
    structural: list[Structural] = field(default_factory=list)
    greedy: Greedy | None = None
    text_layer: TextLayer | None = None
    tool_calls: ToolCalls | None = None
    weights: Weights | None = None
    certificate: Certificate | None = None
    identity: Identity = field(default_factory=Identity)
    seconds: float | None = None


@dataclass
class AngleError:
    """Computed, not measured: the largest rotation error that rounded YaRN bounds bring, at each position (radians)."""

    positions: list[int] = field(default_factory=list)
    radians: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)  # low, high as the config has them
    rounded: list[float] = field(default_factory=list)  # ... as a rounding engine has them
    measured_positions: list[int] = field(default_factory=list)  # where prompts ran:
    measured_nmse: list[float | None] = field(default_factory=list)  # ... the effect on the reference's own logits


@dataclass
class Report:
    """The whole run. `repro`: the command line; `checkpoint`: the path as given."""

    checkpoint: str
    version: int = VERSION
    created: str = ""  # UTC, ISO 8601
    repro: str = ""
    reference: Identity = field(default_factory=Identity)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    targets: list[TargetResult] = field(default_factory=list)
    angle_error: AngleError | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers."""
        plain: dict[str, Any] = to_plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, raw: dict[str, Any], file: str | Path | None = None) -> Self:
        """The inverse. Raises BadInput for what is not a report, or one of a later major version."""
        if not isinstance(raw, dict) or not isinstance(raw.get("version"), int) or "targets" not in raw:
            raise BadInput("not a parity report", file=file)
        if raw["version"] > VERSION:
            raise BadInput("the report is of a later version", file=file, expected=VERSION, got=raw["version"])
        try:
            built: Self = build(cls, raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"not a parity report: {error}", file=file) from None
        return built

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises BadInput naming the file."""
        try:
            raw = json.loads(path.read_text())
        except (ValueError, UnicodeDecodeError) as error:
            raise BadInput(f"not JSON: {error}", file=path) from None
        return cls.from_json(raw, path)


def exit_code(targets: Sequence[TargetResult], strict: bool = False) -> int:
    """0 when every target is the same; 1 for DIFFERENT (with `strict` for SAME EXCEPT too), else 3 for NOT
    COMPARABLE.
    """
    found = {t.verdict for t in targets}
    if DIFFERENT in found or (strict and EXCEPT in found):
        return 1
    return 3 if NOT_COMPARABLE in found else 0
