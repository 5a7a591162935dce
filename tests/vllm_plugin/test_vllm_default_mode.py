"""`vllm serve` as operators start it, without `--enforce-eager`: it starts, answers a chat and a tool call, and gives
the reference's numbers; and the recipes run as they are written, on cut-down weights in the place of the real ones.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from helpers.vllm_serving import CHAT_TOOL, environment, free_port, started

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.reference.model import GptOss

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(900), pytest.mark.slow]
RECIPES = Path(__file__).parents[2] / "recipes" / "vllm"
VLLM = str(Path(sys.executable).with_name("vllm"))
PARIS = "What is the weather in Paris?"
IDS = [200006, 17360, 200008, 3575, 553, 22372, 11, 261, 4410, 6439, 2359, 200007]
SECONDS = 600  # a loaded machine compiles for minutes
VARIANTS: dict[str, dict[str, Any]] = {
    "pocket": {},
    "eps, layer_types and swiglu": {"rms_norm_eps": 1e-3, "swiglu_limit": 3.0, "swiglu_alpha": 1.5},
}


def make(folder: Path, kind: str = "hf-mxfp4", **changes: Any) -> Path:
    write(plan_new("pocket", folder, kind=kind), sync=False, read_back=False)
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    if "swiglu_limit" in changes:
        raw["layer_types"] = raw["layer_types"][::-1]
    file.write_text(json.dumps(raw | changes))
    return folder


def ask(client: openai.OpenAI, model: str, **more: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": PARIS}]
    return client.chat.completions.create(
        model=model, messages=messages, temperature=0, reasoning_effort="low", max_completion_tokens=200, **more
    ).choices[0]


def check_answers(url: str, model: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert ask(client, model).finish_reason in ("stop", "length")
        (call,) = ask(client, model, tools=[CHAT_TOOL], tool_choice="required").message.tool_calls
        assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}


def check_numbers(url: str, model: str, path: Path) -> None:
    """Of each position the 20 likeliest tokens, and all others as one: the KL of those is at most that of all."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model=model, prompt=IDS, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 20}
        )
    logits = GptOss.from_checkpoint(str(path))(torch.tensor([IDS]))[0]
    truth = torch.log_softmax(logits.double(), -1)
    given = answer.choices[0].model_extra["prompt_logprobs"][1:]
    assert len(given) == len(IDS) - 1
    kl = 0.0
    for position, entries in enumerate(given):
        theirs = {int(token): entry["logprob"] for token, entry in entries.items()}
        ours = {token: float(truth[position, token]) for token in theirs}
        assert max(abs(theirs[token] - ours[token]) for token in theirs) <= 0.02
        rest = [max(1 - sum(map(math.exp, side.values())), 1e-12) for side in (ours, theirs)]
        kl += sum(math.exp(ours[t]) * (ours[t] - theirs[t]) for t in theirs) + rest[0] * math.log(rest[0] / rest[1])
    assert kl / len(given) <= 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_served_in_float32(name: str, tmp_path: Path) -> None:
    path, port = make(tmp_path / "pocket", **VARIANTS[name]), free_port()
    argv = [VLLM, "serve", str(path), "--served-model-name", "pocket", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4"]
    argv += ["--enable-auto-tool-choice", "--tool-call-parser", "openai"]
    with started(argv, port, tmp_path / "log.txt", environment(), SECONDS) as url:
        check_answers(url, "pocket")
        check_numbers(url, "pocket", path)
    log = (tmp_path / "log.txt").read_text(errors="replace")
    assert "Warming up model for the compilation" in log
    assert ("its own model class" in log) == bool(VARIANTS[name])


def serve_recipe(name: str, folder: Path, **variables: str) -> str:
    """Runs a recipe from `folder` as its first line says; the server's log."""
    port = free_port()
    argv = [VLLM, "serve", "--config", str(RECIPES / f"{name}.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    with started(argv, port, folder / "log.txt", environment(**variables), SECONDS) as url:
        check_answers(url, "gpt-oss-20b" if name == "cpu" else "my-fine-tune")
    return (folder / "log.txt").read_text(errors="replace")


def test_the_recipe_for_cpus(tmp_path: Path) -> None:
    """Its model is openai/gpt-oss-20b: what lies in the Hub's cache under that name is cut down."""
    repository = tmp_path / "hub" / "models--openai--gpt-oss-20b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    make(repository / "snapshots" / ("0" * 40), max_position_embeddings=131072)
    log = serve_recipe("cpu", tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert "Warming up model for the compilation" in log


def test_the_recipe_for_fine_tunes(tmp_path: Path) -> None:
    make(tmp_path / "my-fine-tune", kind="hf-bf16", max_position_embeddings=131072)
    log = serve_recipe(
        "fine_tune",
        tmp_path,
        GPTOSS_ADAPTERS_QUANTIZE="mxfp4",
        GPTOSS_ADAPTERS_SELFCHECK="1",
        VLLM_CACHE_ROOT=str(tmp_path / "cache"),
    )
    assert "Warming up model for the compilation" in log and "self-check passed" in log
    shutil.rmtree(tmp_path / "my-fine-tune")
