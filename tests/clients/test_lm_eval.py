"""recipes/serve/lm_eval.md with the real harness on two engines: equal accuracy, log-likelihoods within the noise."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.documents import ROOT, blocks
from helpers.serve_fakes import Served
from helpers.tool_answers import to_ids

from gptoss_adapters.backends import open_backend
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.parity.noise.arithmetic import noise_of
from gptoss_adapters.parity.noise.nulls import realisations
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.sampling import log_softmax

HARNESS = ROOT / ".venv-lm" / "bin"
BACKENDS = {"torch": "torch=pocket", "llama_server": "llama_server=pocket.gguf"}
Json = dict[str, Any]


def evaluate(spec: str, folder: Path, out: Path) -> tuple[Json, dict[str, list[Json]]]:
    """The harness' figures of each task, and its samples, by the commands of the recipe."""
    lines = blocks(ROOT / "recipes" / "serve" / "lm_eval.md", "bash")[1]
    with Served(spec, folder, "--model", "pocket") as server:
        lines = lines.replace("http://127.0.0.1:8000/v1", server.url).replace(
            "--output_path results", f"--output_path {out}"
        )
        environment = {
            "PATH": f"{HARNESS}:{os.environ['PATH']}",
            "HOME": str(out.parent),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }
        done = subprocess.run(
            ["bash", "-ec", lines],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert {line["status"] for line in server.lines() if "status" in line and "completions" in line["route"]} == {
            200
        }
    (results,) = out.rglob("results_*.json")
    samples = {path.name.split("_2")[0]: read_lines(path) for path in out.rglob("samples_*.jsonl")}
    return json.loads(results.read_text())["results"], samples


def read_lines(path: Path) -> list[Json]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


@pytest.fixture(scope="module")
def evaluated(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Json, dict[str, list[Json]]]]:
    out = tmp_path_factory.mktemp("lm_eval")
    return {name: evaluate(spec, pocket, out / name) for name, spec in BACKENDS.items()}


def test_the_same_accuracy(evaluated: dict[str, tuple[Json, dict[str, list[Json]]]]) -> None:
    (ours, samples), (theirs, others) = evaluated.values()
    assert ours["pocket_choice"]["acc,none"] == theirs["pocket_choice"]["acc,none"]
    assert ours["pocket_answer"]["exact_match,none"] == theirs["pocket_answer"]["exact_match,none"]
    assert ours["pocket_choice"]["acc,none"] > 0.3 and ours["pocket_answer"]["exact_match,none"] > 0.3
    for task, metric in (("samples_pocket_choice", "acc"), ("samples_pocket_answer", "exact_match")):
        assert [row[metric] for row in samples[task]] == [row[metric] for row in others[task]]


def test_log_likelihoods_differ_by_noise_alone(
    evaluated: dict[str, tuple[Json, dict[str, list[Json]]]], pocket: Path
) -> None:
    """The noise is parity's: what implementations differ by that round as this engine does, on the same texts."""
    rows = {name: samples["samples_pocket_choice"] for name, (_, samples) in evaluated.items()}
    found = {
        name: np.array([float(score) for row in own for score, _ in row["filtered_resps"]])
        for name, own in rows.items()
    }
    asked = [
        (to_ids(pair["arg_0"]), to_ids(pair["arg_0"] + pair["arg_1"]))
        for row in rows["torch"]
        for pair in row["arguments"].values()
    ]
    weights = open_checkpoint(pocket / "pocket.gguf")
    model = GptOss.from_checkpoint(weights, torch.float64)
    exact = score_all(model, asked)
    with open_backend("llama_server", pocket / "pocket.gguf") as backend:
        info = backend.info
    noise = noise_of(info.arithmetic, info.settings, weights)
    floor = [rms(score_all(null.apply(model), asked) - exact) for null in realisations(noise)]
    assert rms(found["llama_server"] - exact) <= 2 * max(floor), floor
    assert rms(found["torch"] - exact) <= min(floor) / 10, "the reference itself has float32's noise alone"


def score_all(model: GptOss, asked: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """The log-likelihood of what follows each context."""
    out = []
    for context, whole in asked:
        logprobs = log_softmax(model(torch.tensor([whole]))[0].double().numpy())
        out.append(sum(logprobs[i - 1, whole[i]] for i in range(len(context), len(whole))))
    return np.array(out)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
