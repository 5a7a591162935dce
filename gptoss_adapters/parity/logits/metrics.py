"""The statistics: per position from two sets of logits, then per family. KL in nats, float64 inside; see the schema
for the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptoss_adapters.parity.report.measurements import Histogram, Metrics

F64 = npt.NDArray[np.float64]
Positions = dict[str, F64]  # statistic -> one value per position
TINY = 1e-30  # below every noise: stands for zero in logarithms
_RESAMPLES = 2000


@dataclass
class Truth:
    """The reference's logits of some positions, [T, V], with what every comparison needs of them."""

    z: F64
    lp: F64
    p: F64
    size: F64
    following: npt.NDArray[np.int64]  # the prompt's next token, -1 where there is none (forced-token statistics: NaN)

    @classmethod
    def of(cls, logits: np.ndarray, following: npt.NDArray[np.int64]) -> Truth:
        z = _centred(logits.astype(np.float64))
        lp = _log_softmax(z)
        return cls(z, lp, np.exp(lp), np.maximum((z**2).sum(1), TINY), following)


def compare_full(truth: Truth, logits: np.ndarray, brief: bool = False) -> Positions:
    """logits [T, V] against the truth. brief: the statistics that a noise floor needs (the others are NaN)."""
    y = _centred(logits.astype(np.float64))
    lp = truth.lp
    p = truth.p
    lq = _log_softmax(y)
    rows, known = np.arange(len(y)), truth.following >= 0
    own = np.where(known, truth.following, 0)
    forced_p, forced_q = (np.where(known, x[rows, own], np.nan) for x in (lp, lq))
    gap = y - truth.z
    out = {
        "nmse": np.einsum("tv,tv->t", gap, gap) / truth.size,
        "kl": np.maximum(np.einsum("tv,tv->t", p, lp - lq), 0),
        "dlp": forced_q - forced_p,
        "dp": np.exp(forced_q) - np.exp(forced_p),
        "same_top": (truth.z.argmax(1) == y.argmax(1)).astype(np.float64),
        "max_abs": np.maximum(gap.max(1), -gap.min(1)),
    }
    if brief:
        return out | {name: np.full(len(y), np.nan) for name in ("kl_reverse", "js", "overlap_10")}
    q = np.exp(lq)
    middle = np.log((p + q) / 2 + 1e-300)
    js = (np.einsum("tv,tv->t", p, lp - middle) + np.einsum("tv,tv->t", q, lq - middle)) / 2
    return out | {
        "kl_reverse": np.maximum(np.einsum("tv,tv->t", q, lq - lp), 0),
        "js": np.maximum(js, 0),
        "overlap_10": _overlap(truth.z, y, min(10, y.shape[1])),
    }


def joined(parts: Sequence[Positions]) -> Positions:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def following_tokens(prompt: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array([*prompt[1:], -1], np.int64)


def compare_top(truth: Truth, ids: np.ndarray, logprobs: np.ndarray) -> Positions:
    """For engines that give the k best only: ids and logprobs [T, k].

    KL over the partition {those k, the rest}: a lower bound of the true one (data-processing inequality), with the
    reference's probabilities of those tokens known exactly. NMSE over the k, centred.
    """
    lp = truth.lp
    chosen = np.take_along_axis(lp, ids, 1)
    lq = logprobs.astype(np.float64)
    p, q = np.exp(chosen), np.exp(lq)
    rest_p, rest_q = (np.maximum(1 - x.sum(1), TINY) for x in (p, q))
    kl = (p * (chosen - lq)).sum(1) + rest_p * np.log(rest_p / rest_q)
    hit = ids == truth.following[:, None]
    dlp = np.where(hit.any(1), (np.where(hit, lq - chosen, 0)).sum(1), np.nan)
    dp = np.where(hit.any(1), (np.where(hit, q - p, 0)).sum(1), np.nan)
    a, b = _centred(chosen), _centred(lq)
    k = min(10, ids.shape[1])
    return {
        "nmse": ((a - b) ** 2).sum(1) / np.maximum((a**2).sum(1), TINY),
        "kl": np.maximum(kl, 0),
        "kl_reverse": np.full(len(kl), np.nan),
        "js": np.full(len(kl), np.nan),
        "dlp": dlp,
        "dp": dp,
        "same_top": (lp.argmax(1) == ids[:, 0]).astype(np.float64),
        "overlap_10": np.array(
            [len(set(np.argpartition(-t, k - 1)[:k]) & set(i[:k])) / k for t, i in zip(lp, ids, strict=True)]
        ),
        "max_abs": np.abs(a - b).max(1),
    }


def summarise(prompts: Sequence[Positions], lower_bound: bool = False) -> Metrics:
    """One family, from its prompts."""
    whole = joined(prompts)
    nmse = whole["nmse"]
    kl = whole["kl"]
    dlp = whole["dlp"]
    dp = whole["dp"]
    dlp, dp = dlp[~np.isnan(dlp)], dp[~np.isnan(dp)]
    m = Metrics(positions=len(nmse), kl_lower_bound=lower_bound)
    m.nmse_gmean = float(np.exp(np.log(np.maximum(nmse, TINY)).mean()))
    m.nmse_median, m.nmse_p99, m.nmse_max = (float(x) for x in np.quantile(nmse, (0.5, 0.99, 1)))
    m.nmse_mean, m.kl_mean = float(nmse.mean()), float(kl.mean())
    m.kl_median, m.kl_p95, m.kl_p99, m.kl_p999, m.kl_max = (
        float(x) for x in np.quantile(kl, (0.5, 0.95, 0.99, 0.999, 1))
    )
    m.kl_se = _bootstrap([p["kl"] for p in prompts])
    m.kl_reverse_mean, m.js_mean = (
        float(whole["kl_reverse"].mean()),
        float(whole["js"].mean()),
    )  # NaN becomes null in the report
    m.same_top, m.overlap_10 = float(whole["same_top"].mean()), float(whole["overlap_10"].mean())
    if len(dlp):
        m.dlp_mean = float(dlp.mean())
        m.dlp_rms = float(np.sqrt((dlp**2).mean()))
        m.dlp_max_abs = float(np.abs(dlp).max())
        m.dlp_p1, m.dlp_p99 = (float(x) for x in np.quantile(dlp, (0.01, 0.99)))
        m.dp_mean, m.dp_rms = float(dp.mean()), float(np.sqrt((dp**2).mean()))
        m.ln_ppl_ratio, m.ln_ppl_ratio_se = (
            -m.dlp_mean,
            float(dlp.std() / np.sqrt(len(dlp))),
        )  # paired, so the covariance is in it
    return m


def histogram(kl: F64, null_kl: F64) -> Histogram:
    edges = np.arange(-16.0, 2.5, 0.5)

    def counts(values: F64) -> list[int]:
        logs = np.clip(np.log10(np.maximum(values, TINY)), edges[0] + 0.01, edges[-1] - 0.01)
        return [int(n) for n in np.histogram(logs, edges)[0]]

    return Histogram([float(e) for e in edges], counts(kl), counts(null_kl))


def nmse_of(truth: F64, values: F64) -> F64:
    """[T, S] and [T, S], both centred -> per position."""
    result: F64 = ((values - truth) ** 2).sum(-1) / np.maximum((truth**2).sum(-1), TINY)
    return result


def centre(values: np.ndarray) -> F64:
    return _centred(values.astype(np.float64))


def _centred(x: np.ndarray) -> F64:
    result: F64 = x - x.mean(-1, keepdims=True)
    return result


def _log_softmax(x: F64) -> F64:
    top = x.max(-1, keepdims=True)
    result: F64 = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))
    return result


def _overlap(z: F64, y: F64, k: int) -> F64:
    a, b = (np.argpartition(-x, k - 1, axis=1)[:, :k] for x in (z, y))
    return np.array([len(set(i) & set(j)) / k for i, j in zip(a, b, strict=True)])


def _bootstrap(prompts: Sequence[F64]) -> float | None:
    """Standard error of the mean by resampling prompts: the tokens of one prompt are correlated."""
    if len(prompts) < 2:
        return None
    sums, sizes = np.array([p.sum() for p in prompts]), np.array([len(p) for p in prompts])
    pick = np.random.Generator(np.random.PCG64(0)).integers(0, len(prompts), (_RESAMPLES, len(prompts)))
    return float((sums[pick].sum(1) / sizes[pick].sum(1)).std())
