"""The plugin does no harm: what vLLM loads without it, it loads with it, to the byte, and what it refuses it refuses in
the same words; or it is better, and the log says why in one line. Row by row of helpers/odd_checkpoints.py.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import odd_checkpoints as odd
from helpers import vllm_engine as engine
from helpers import vllm_loading
from helpers.hub_server import Hub

from gptoss_adapters.errors import GptOssError

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Outcome:
    """What came of a start: the class' module and the parameters, or the refusal; and the plugin's lines."""

    module: str
    parameters: dict[str, str]
    refusal: str
    lines: tuple[tuple[int, str], ...]

    @property
    def served(self) -> tuple[str, dict[str, str], str]:
        return self.module, self.parameters, self.refusal


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with vllm_loading.world():
        gc.freeze()  # vLLM collects garbage at each load, and what it has imported is none
        yield
        gc.unfreeze()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    from gptoss_adapters.vllm_plugin import log

    for name in [n for n in os.environ if n.startswith("GPTOSS_ADAPTERS_")]:
        monkeypatch.delenv(name)
    found: list[tuple[int, str]] = []

    def keep(record: logging.LogRecord) -> bool:
        found.append((record.levelno, record.getMessage()))
        return True

    log.addFilter(keep)  # no handler: vLLM configures logging anew while it starts, which drops those
    yield found
    log.removeFilter(keep)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""
    import transformers.utils.hub as theirs
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        if hasattr(theirs, name):
            monkeypatch.setattr(theirs, name, str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(model: Path | str, mode: str, lines: list[tuple[int, str]], **options: Any) -> Outcome:
    os.environ["GPTOSS_ADAPTERS_VLLM"] = mode
    lines.clear()
    try:
        loaded = vllm_loading.load(model, **options)
    except Exception as error:
        return Outcome("", {}, f"{type(error).__name__}: {error}".partition("{")[0], tuple(lines))
    finally:
        del os.environ["GPTOSS_ADAPTERS_VLLM"]
    return Outcome(type(loaded).__module__, vllm_loading.digest(loaded), "", tuple(lines))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if row.hub else ()) for row in odd.ROWS],
    ids=lambda row: row.name,
)
def test_as_without_the_plugin_or_better(
    row: odd.Odd, tmp_path: Path, cache: Path, lines: list[tuple[int, str]]
) -> None:
    model, options = row.build(tmp_path)
    without = start(model, "off", lines, **options)
    found = start(model, "auto", lines, **options)
    assert without.lines == ()
    said = [text for _, text in found.lines]
    if row.expected == "ours":
        assert not found.refusal and found.module == "gptoss_adapters.vllm_plugin.model", found
    elif row.blank:
        assert (found.module, set(found.parameters)) == (without.module, set(without.parameters)), found
    else:
        assert found.served == without.served, said
    assert len(said) == bool(row.said), said
    assert row.said in "".join(said)


@pytest.mark.slow
def test_what_is_better_has_the_same_weights(tmp_path: Path, cache: Path, lines: list[tuple[int, str]]) -> None:
    """vLLM refuses it, or would load something else; we load what the plain checkpoint has."""
    rows = {row.name: row for row in odd.ROWS}
    plain = start(odd.BF16, "off", lines)
    for name in ("one layer per expert", "experts as [out, in]", "a stale MXFP4 entry", "code, and another epsilon"):
        model, options = rows[name].build(tmp_path / name.replace(" ", "-"))
        assert start(model, "auto", lines, **options).parameters == plain.parameters, name


@pytest.mark.slow
def test_a_pinned_revision_is_read_and_not_main(tmp_path: Path, cache: Path, lines: list[tuple[int, str]]) -> None:
    for revision, seed in (("main", 1.0), ("v2", 2.0)):
        folder = tmp_path / revision
        odd.shutil.copytree(odd.BF16, folder, copy_function=odd.shutil.copyfile)
        odd.crafted.with_tensors(folder, lambda found, seed=seed: scale_norm(found, seed))
        odd.kind("hf-defused")(folder)
        odd.cache(cache, revision, folder)
    found = {r: start(odd.REPO, "auto", lines, revision=r) for r in ("main", "v2")}
    assert not any(outcome.refusal for outcome in found.values()), found
    assert found["main"].parameters["model.norm.weight"] != found["v2"].parameters["model.norm.weight"]
    assert start(odd.REPO, "auto", lines).parameters == found["main"].parameters


def scale_norm(found: odd.crafted.Tensors, value: float) -> None:
    import ml_dtypes
    import numpy as np

    dtype, shape, _ = found["model.norm.weight"]
    found["model.norm.weight"] = (dtype, shape, np.full(shape, value, ml_dtypes.bfloat16).tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gptoss_adapters.spellings.from_hf", "gptoss_adapters.vllm_plugin.model.obey"])
def test_an_error_of_ours_is_one_warning(
    where: str, tmp_path: Path, lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has foreseen it: the decision itself, or our class on its way, ends in a ZeroDivisionError."""
    folder = tmp_path / "model"
    odd.shutil.copytree(odd.BF16, folder, copy_function=odd.shutil.copyfile)
    odd.EPS(folder)
    without = start(folder, "off", lines)
    monkeypatch.setattr(where, lambda *_, **__: 1 // 0)
    found = start(folder, "auto", lines)
    assert found.served == without.served and not found.refusal
    warnings = [text for level, text in found.lines if level == logging.WARNING]
    assert len(warnings) == 1 and "ZeroDivisionError" in warnings[0] and "vLLM's own" in warnings[0], found.lines
    for name in ("GPTOSS_ADAPTERS_QUANTIZE", "GPTOSS_ADAPTERS_SELFCHECK"):  # asked for, and not to be had
        monkeypatch.setenv(name, "mxfp4" if name.endswith("QUANTIZE") else "require")
        assert "ZeroDivisionError" in start(folder, "auto", lines).refusal
        monkeypatch.delenv(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a value head", "half a download", "random weights"])
def test_a_demand_that_cannot_be_met_is_refused_in_words(
    name: str, tmp_path: Path, cache: Path, lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = [row for row in odd.ROWS if row.name == name]
    model, options = row.build(tmp_path)
    monkeypatch.setenv("GPTOSS_ADAPTERS_QUANTIZE", "mxfp4")
    refusal = start(model, "auto", lines, **options).refusal
    kind = refusal.partition(":")[0]
    assert kind in {error.__name__ for error in GptOssError.__subclasses__()}, refusal


FIRST_START = """
import os, sys
from helpers import vllm_loading
from helpers.hub_server import Hub
from helpers.hub_server import REPO
with vllm_loading.world():
    for start in ("first", "second"):
        model = vllm_loading.load(REPO, download_dir=sys.argv[1])
        dtypes = sorted({str(p.dtype) for p in model.parameters()})
        print("RESULT", type(model).__module__, hash(tuple(vllm_loading.digest(model).items())), dtypes, flush=True)
"""


@pytest.mark.slow
def test_the_first_start_is_like_the_second(tmp_path: Path) -> None:
    """Nothing is in the cache, and the weights go to a download dir: experts are quantised both times, from a kind that
    only our layouts read.
    """
    folder = odd.kinds.write_kind(odd.BF16, "hf-defused", tmp_path / "model", shards=2)
    hub = Hub({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    environment = os.environ | engine.ENVIRONMENT
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONHASHSEED": "0",
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
        "GPTOSS_ADAPTERS_QUANTIZE": "mxfp4",
    }
    argv = [sys.executable, "-c", FIRST_START, str(tmp_path / "weights")]
    done = subprocess.run(argv, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=500)
    hub.server.shutdown()
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(results) == 2 and results[0] == results[1], done.stderr[-3000:] + done.stdout[-2000:]
    assert "gptoss_adapters.vllm_plugin.model" in results[0]
    assert "torch.uint8" in results[0], results
    assert sum("GET" in asked and asked.count(".safetensors") for asked in hub.requests) >= 2
    assert list((tmp_path / "weights").glob("models--*/snapshots/*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("row", odd.ROWS, ids=lambda row: row.name)
def test_in_a_real_engine(row: odd.Odd, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same greedy tokens, or the same refusal, as without the plugin; or, if it is better, the reference's."""
    model, options = row.build(tmp_path)
    found = {}
    for mode in ("off", "auto"):
        monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", mode)
        found[mode] = generate(model, **options)
    if row.expected == "same":
        assert row.blank or found["auto"] == found["off"]
        return
    ids, new = PROMPT, found["auto"]
    folder = tmp_path / "model"
    if "code" in row.name:
        odd.crafted.with_config(folder, lambda raw: raw.pop("auto_map"))
    assert isinstance(new, list), new
    if "KV" in row.name:  # the reference does not open it; without the scales it is the same model
        return
    expected = engine.reference(folder.resolve(), ids + new[:-1])[len(ids) - 1 :].argmax(-1).tolist()
    assert new == expected


PROMPT = [7, 102, 230, 3, 45, 9, 11, 200, 31, 8, 5, 77]


def generate(model: Path | str, **options: Any) -> list[int] | str:
    """Four greedy tokens, or the refusal."""
    from vllm import SamplingParams

    dtype = options.pop("dtype", "float32")
    try:
        llm = engine.load(model, dtype, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    sampling = SamplingParams(temperature=0, max_tokens=4, detokenize=False, ignore_eos=True)
    (out,) = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)
    engine.free(llm)
    return list(out.outputs[0].token_ids)
