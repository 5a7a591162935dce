"""Checks on behaviour: what a token can influence, chunked prefill, decode against prefill, greedy divergence
judged by margins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gptoss_adapters.backends import Backend, open_backend
from gptoss_adapters.errors import GptOssError, UsageError
from gptoss_adapters.parity.logits.judge import Judged
from gptoss_adapters.parity.logits.measure import Record, Reference
from gptoss_adapters.parity.logits.metrics import TINY, centre
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.noise.nulls import Noise, realisations
from gptoss_adapters.parity.report.schema import FAIL, PASS, SKIPPED, Greedy, GreedyPrompt, Structural
from gptoss_adapters.reference.model import GptOss

ODD_BATCH = 7  # tokens per prefill step: divides nothing
GREEDY_TOKENS, GREEDY_PROMPTS = 16, 4
# an engine may differ from itself by this many times its own noise, in NMSE, when it only splits the work otherwise
AGAIN = 10.0
VISIBLE = 30.0  # times the noise: an influence that must be seen


def check_structure(
    backend: Backend, reference: Reference, record: Record, judged: Judged, chunks: bool = True
) -> list[Structural]:
    """All that apply; one that cannot be asked of this engine says so. chunks: start it a second time, for other
    prefill steps.
    """
    floor = _floor(record)
    checks = [_sink(judged)]
    if backend.info.capabilities.output == "full":
        checks += [
            _influence(backend, reference, floor),
            *([_chunked(backend, record, floor)] if chunks else []),
            _decode(backend, record, floor),
        ]
    return checks


def _floor(record: Record) -> float:
    """NMSE of a typical null at a typical position."""
    values = [np.median(np.concatenate([p["nmse"] for p in positions])) for positions in record.null_positions.values()]
    return max(float(np.median(values)), TINY)


def _nmse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = centre(a), centre(b)
    made: np.ndarray = ((x - y) ** 2).sum(-1) / np.maximum((x**2).sum(-1), TINY)
    return made


def _sink(judged: Judged) -> Structural:
    single = judged.families.get("single")
    if single is None:
        return Structural("sink at T=1", SKIPPED, detail="no prompt of one token")
    return Structural(
        "sink at T=1",
        FAIL if single.verdict == FAIL else PASS,
        "one key and the sink share the softmax",
        f"excess {single.worst:.3g}",
    )


def _influence(backend: Backend, reference: Reference, floor: float) -> Structural:
    """Change token 0: which positions notice. Told by the reference; on one sliding layer exactly 0..W-1."""
    name, c = "influence of token 0", reference.config
    length = min(3 * c.sliding_window, 2 * c.sliding_window + 64)
    ids = [(7 * i + 3) % c.vocab_size for i in range(length)]
    other = [(ids[0] + c.vocab_size // 2) % c.vocab_size, *ids[1:]]
    with torch.inference_mode():
        h = [reference.hidden(reference.model, [Prompt("", 0, tuple(x))])[0] for x in (ids, other)]
    expected = _nmse(*(reference.values(x, reference.sample) for x in h))
    rows = [backend.logits(x)[:, reference.sample] for x in (ids, other)]
    seen = _nmse(*rows)
    must, must_not = expected > VISIBLE * floor, expected < TINY**0.7
    edge = int(np.flatnonzero(expected > TINY**0.7)[-1])
    # an engine that computes other rows otherwise may differ there by its own rounding, never by more
    noise = VISIBLE * floor
    wrong = [int(i) for i in np.flatnonzero(must_not & (seen > noise))]
    missing = [int(i) for i in np.flatnonzero(must & (seen < expected / 100) & (seen < noise))]
    reach = np.flatnonzero(seen > noise)
    observed = f"positions 0..{int(reach[-1])}" if len(reach) else "none"
    detail = (
        f"above noise {noise:.2g}"
        + (f"; beyond the reach: {wrong[0]}" if wrong else "")
        + (f"; not noticed: {missing[0]}" if missing else "")
    )
    return Structural(name, FAIL if wrong or missing else PASS, f"positions 0..{edge}", observed, detail)


def _again(name: str, expected: str, a: np.ndarray, b: np.ndarray, floor: float) -> Structural:
    """Two ways of one engine to the same numbers."""
    worst = float(np.median(_nmse(a, b)))
    verdict = PASS if worst <= AGAIN * floor else FAIL
    return Structural(
        name,
        verdict,
        expected,
        "equal bit for bit" if np.array_equal(a, b) else f"median NMSE {worst:.3g}",
        f"noise {floor:.3g}",
    )


def _longest(record: Record) -> Prompt:
    return max((p for p in record.prompts), key=lambda p: len(p.ids))


def _chunked(backend: Backend, record: Record, floor: float) -> Structural:
    name = "chunked prefill"
    if "n_batch" not in backend.info.settings or backend.path is None:
        return Structural(name, SKIPPED, detail="the engine takes no n_batch")
    prompt = _longest(record).ids[:64]
    options = backend.options | {"n_batch": ODD_BATCH}
    try:
        with open_backend(
            backend.name,
            backend.path,
            python=backend.python,
            timeout=backend.timeout,
            **options,
        ) as other:
            return _again(
                name, f"the same in steps of {ODD_BATCH}", backend.logits(prompt), other.logits(prompt), floor
            )
    except UsageError as error:  # it reports n_batch among its settings, but has no such option
        return Structural(name, SKIPPED, detail=str(error))
    except GptOssError as error:
        return Structural(name, FAIL, f"the same in steps of {ODD_BATCH}", str(error))


def _decode(backend: Backend, record: Record, floor: float) -> Structural:
    """Token by token from the cache, and all at once."""
    prompt = list(_longest(record).ids[:48])
    made = backend.generate(prompt, max_tokens=8, stop_ids=(), logprobs=4)
    whole = backend.logits([*prompt, *made.ids])[len(prompt) - 1 : -1].astype(np.float64)
    whole -= np.log(np.exp(whole - whole.max(1, keepdims=True)).sum(1, keepdims=True)) + whole.max(1, keepdims=True)
    a = np.array([[p for _, p in t.top] for t in made.tokens])
    b = np.array([[row[i] for i, _ in t.top] for row, t in zip(whole, made.tokens, strict=True)])
    rms = float(np.sqrt(np.median((a - b) ** 2)))
    allowed = float(np.sqrt(AGAIN * floor) * np.std(whole))
    return Structural(
        "decode against prefill",
        PASS if rms <= allowed else FAIL,
        f"log-probabilities within {allowed:.3g}",
        f"median difference {rms:.3g}",
    )


def check_greedy(backend: Backend, reference: Reference, record: Record, floor: Noise) -> Greedy:
    """Free-running greedy generation beside the reference's; a different token is legitimate where the margin is within
    noise: that of the run's prompts or, since an expert may flip in what was generated, that of the nulls on the very
    tokens that led there.
    """
    noise = [np.concatenate([p["max_abs"] for p in positions]) for positions in record.null_positions.values()]
    allowed = 2 * float(np.quantile(np.concatenate(noise), 0.999))
    starts = [p for p in record.prompts if len(p.ids) > 1][:GREEDY_PROMPTS]
    out = Greedy()
    for n, prompt in enumerate(starts):
        ids = list(prompt.ids[:32])
        got = backend.generate(ids, max_tokens=GREEDY_TOKENS, stop_ids=()).ids
        out.prompts.append(_follow(reference, n, ids, got, allowed, floor))
    total = len(out.prompts)
    for t in range(GREEDY_TOKENS if total else 0):
        out.survival.append(sum(p.first_divergence is None or p.first_divergence > t for p in out.prompts) / total)
    if total:
        out.verdict = PASS if all(p.legitimate for p in out.prompts) else FAIL
    return out


def _follow(
    reference: Reference, number: int, prompt: Sequence[int], got: Sequence[int], allowed: float, floor: Noise
) -> GreedyPrompt:
    """Up to the first divergence both have the same prefix, so one pass over the target's own tokens shows both
    choices.
    """
    whole = (*prompt, *got)
    logits = _last_rows(reference.model, whole, len(got))
    for t, (row, token) in enumerate(zip(logits, got, strict=True)):
        if int(row.argmax()) != token:
            margin = float(row.max() - row[token])
            if margin > allowed:
                theirs = (_last_rows(null.apply(reference.model), whole, len(got))[t] for null in realisations(floor))
                allowed = max(allowed, *(2 * float(np.abs(centre(y) - centre(row)).max()) for y in theirs))
            return GreedyPrompt(number, len(got), t, margin, allowed, margin <= allowed)
    return GreedyPrompt(number, len(got), None)


@torch.inference_mode()
def _last_rows(model: GptOss, ids: Sequence[int], count: int) -> np.ndarray:
    """What led to each of the last `count` tokens, [count, V]."""
    hidden = model.hidden(torch.tensor([list(ids)]))[0, -count - 1 : -1]
    logits: np.ndarray = model.head(hidden).double().numpy()
    return logits
