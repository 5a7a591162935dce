"""The statistics: per position from two sets of logits, then per family. KL in nats, float64 inside; see the schema for the names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptoss_adapters.parity.schema import Histogram, Metrics

F64 = npt.NDArray[np.float64]
Positions = dict[str, F64]  # statistic -> one value per position
TINY = 1e-30  # below every noise: stands for zero in logarithms
_BLOCK = 1 << 21  # values looked at together
_RESAMPLES = 2000


def compare_full(truth: np.ndarray, logits: np.ndarray, following: npt.NDArray[np.int64]) -> Positions:
    """truth, logits [T, V]; following [T]: the prompt's next token, -1 where there is none (forced-token statistics: NaN)."""
    step = max(1, _BLOCK // truth.shape[1])
    parts = [_block(truth[i : i + step], logits[i : i + step], following[i : i + step]) for i in range(0, len(truth), step)]
    return joined(parts)


def joined(parts: Sequence[Positions]) -> Positions:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def following_tokens(prompt: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array([*prompt[1:], -1], np.int64)


def _block(z: np.ndarray, y: np.ndarray, following: npt.NDArray[np.int64]) -> Positions:
    z, y = z.astype(np.float64), y.astype(np.float64)
    zc, yc = _centred(z), _centred(y)
    lp, lq = _log_softmax(zc), _log_softmax(yc)
    p, q = np.exp(lp), np.exp(lq)
    middle = np.log((p + q) / 2 + 1e-300)
    rows = np.arange(len(z))
    known = following >= 0
    own = np.where(known, following, 0)
    forced_p, forced_q = (np.where(known, x[rows, own], np.nan) for x in (lp, lq))
    return {
        "nmse": ((yc - zc) ** 2).sum(1) / np.maximum((zc**2).sum(1), TINY),
        "kl": np.maximum((p * (lp - lq)).sum(1), 0),
        "kl_reverse": np.maximum((q * (lq - lp)).sum(1), 0),
        "js": np.maximum(((p * (lp - middle)).sum(1) + (q * (lq - middle)).sum(1)) / 2, 0),
        "dlp": forced_q - forced_p,
        "dp": np.exp(forced_q) - np.exp(forced_p),
        "same_top": (z.argmax(1) == y.argmax(1)).astype(np.float64),
        "overlap_10": _overlap(z, y, min(10, z.shape[1])),
        "max_abs": np.abs(yc - zc).max(1),
    }


def compare_top(truth: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, following: npt.NDArray[np.int64]) -> Positions:
    """For engines that give the k best only: truth [T, V], ids and logprobs [T, k].

    KL over the partition {those k, the rest}: a lower bound of the true one (data-processing inequality), with the reference's
    probabilities of those tokens known exactly. NMSE over the k, centred."""
    lp = np.concatenate([_log_softmax(_centred(row[None].astype(np.float64))) for row in truth])
    chosen = np.take_along_axis(lp, ids, 1)
    lq = logprobs.astype(np.float64)
    p, q = np.exp(chosen), np.exp(lq)
    rest_p, rest_q = (np.maximum(1 - x.sum(1), TINY) for x in (p, q))
    kl = (p * (chosen - lq)).sum(1) + rest_p * np.log(rest_p / rest_q)
    hit = ids == following[:, None]
    dlp = np.where(hit.any(1), (np.where(hit, lq - chosen, 0)).sum(1), np.nan)
    dp = np.where(hit.any(1), (np.where(hit, q - p, 0)).sum(1), np.nan)
    a, b = _centred(chosen), _centred(lq)
    k = min(10, ids.shape[1])
    return {
        "nmse": ((a - b) ** 2).sum(1) / np.maximum((a**2).sum(1), TINY),
        "kl": np.maximum(kl, 0), "kl_reverse": np.full(len(kl), np.nan), "js": np.full(len(kl), np.nan), "dlp": dlp, "dp": dp,
        "same_top": (lp.argmax(1) == ids[:, 0]).astype(np.float64),
        "overlap_10": np.array([len(set(np.argpartition(-t, k - 1)[:k]) & set(i[:k])) / k for t, i in zip(lp, ids, strict=True)]),
        "max_abs": np.abs(a - b).max(1),
    }  # fmt: skip


def summarise(prompts: Sequence[Positions], lower_bound: bool = False) -> Metrics:
    """One family, from its prompts."""
    whole = joined(prompts)
    nmse, kl, dlp, dp = whole["nmse"], whole["kl"], whole["dlp"], whole["dp"]
    dlp, dp = dlp[~np.isnan(dlp)], dp[~np.isnan(dp)]
    m = Metrics(positions=len(nmse), kl_lower_bound=lower_bound)
    m.nmse_gmean = float(np.exp(np.log(np.maximum(nmse, TINY)).mean()))
    m.nmse_median, m.nmse_p99, m.nmse_max = (float(x) for x in np.quantile(nmse, (0.5, 0.99, 1)))
    m.nmse_mean, m.kl_mean = float(nmse.mean()), float(kl.mean())
    m.kl_median, m.kl_p95, m.kl_p99, m.kl_p999, m.kl_max = (float(x) for x in np.quantile(kl, (0.5, 0.95, 0.99, 0.999, 1)))
    m.kl_se = _bootstrap([p["kl"] for p in prompts])
    m.kl_reverse_mean, m.js_mean = float(whole["kl_reverse"].mean()), float(whole["js"].mean())
    m.same_top, m.overlap_10 = float(whole["same_top"].mean()), float(whole["overlap_10"].mean())
    if len(dlp):
        m.dlp_mean, m.dlp_rms, m.dlp_max_abs = float(dlp.mean()), float(np.sqrt((dlp**2).mean())), float(np.abs(dlp).max())
        m.dlp_p1, m.dlp_p99 = (float(x) for x in np.quantile(dlp, (0.01, 0.99)))
        m.dp_mean, m.dp_rms = float(dp.mean()), float(np.sqrt((dp**2).mean()))
        m.ln_ppl_ratio, m.ln_ppl_ratio_se = -m.dlp_mean, float(dlp.std() / np.sqrt(len(dlp)))  # paired, so the covariance is in it
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
