"""The numbers of a report, as dataclasses: statistics, strips along a prompt, histograms, layers. See `schema.py`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Metrics:
    """The statistics of one probe family, target (or null) against reference. KL in nats; names as in llama.cpp
    where it has one.
    """

    positions: int = 0
    nmse_gmean: float | None = None  # geometric mean over positions
    nmse_median: float | None = None
    nmse_mean: float | None = None
    nmse_p99: float | None = None
    nmse_max: float | None = None
    kl_mean: float | None = None
    kl_se: float | None = None  # bootstrap by prompt
    kl_median: float | None = None
    kl_p95: float | None = None
    kl_p99: float | None = None
    kl_p999: float | None = None
    kl_max: float | None = None
    kl_reverse_mean: float | None = None
    js_mean: float | None = None
    dlp_mean: float | None = None  # log-prob of the forced token, target minus reference
    dlp_rms: float | None = None
    dlp_p1: float | None = None
    dlp_p99: float | None = None
    dlp_max_abs: float | None = None
    dp_mean: float | None = None  # probability of the forced token
    dp_rms: float | None = None  # llama.cpp's "RMS dp"
    same_top: float | None = None  # 0..1
    overlap_10: float | None = None  # 0..1, of the ten best
    ln_ppl_ratio: float | None = None
    ln_ppl_ratio_se: float | None = None
    kl_lower_bound: bool = False  # only the top k were given: KL is a lower bound, NMSE is over those k


@dataclass
class Strip:
    """Per-position numbers of one prompt; `null_*` are the medians over the nulls. ticks: position -> label (W,
    original context).
    """

    family: str
    prompt: int
    nmse: list[float | None] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    null_nmse: list[float | None] = field(default_factory=list)
    null_kl: list[float | None] = field(default_factory=list)
    ticks: dict[str, str] = field(default_factory=dict)


@dataclass
class Histogram:
    """Counts of log10 KL over all positions: `edges` has one more entry than the counts; what lies outside is in
    the end bins.
    """

    edges: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    null_counts: list[int] = field(default_factory=list)  # of one null realisation (the median one)


@dataclass
class Flip:
    """The target chose other experts. Cheap when the gap between the last chosen and the first not chosen is within
    the noise.
    """

    layer: int
    prompt: int
    position: int
    gap: float  # of the reference's router scores
    allowed: float  # twice the noise of a router score
    cheap: bool = True


@dataclass
class Layers:
    """What taps show: layers x positions of one prompt, and the router."""

    prompt: int = 0
    nmse: list[list[float | None]] = field(default_factory=list)  # [L][T]
    null_nmse: list[list[float | None]] = field(default_factory=list)  # [L][T]
    excess: list[float] = field(default_factory=list)  # per layer, median over positions of nmse / null
    onset: int | None = None  # first layer whose excess fails
    flip_rate: list[float] = field(default_factory=list)  # per layer
    null_flip_rate: list[float] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)  # the costliest first, at most 200
