"""The pocket checkpoint keeps its promise on the committed prompts: well-formed Harmony, greedy margins of 2 nats
and more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptoss_harmony import Parser, load_vocabulary

from gptoss_adapters.checkpoint import layouts, open_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.synthetic.pocket import PACKED, POCKET, SPREAD, pocket_tensors
from gptoss_adapters.checkpoint.writing.writer import write

ROOT = Path(__file__).parents[3]
PROMPTS = ROOT / "tests" / "data" / "pocket_prompts.jsonl"
MARGIN = 2.0  # nats between the right token and the next best one
STRANGE = 15.0  # ... and the best of the 200 000 tokens that it was not trained on: together they stay unlikely


def prompts() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROMPTS.read_text().splitlines()]


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The module that made the prompts."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import pocket_exam

    return pocket_exam


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket") / "pocket"
    write(plan_new("pocket", path), sync=False)
    return path


@pytest.fixture(scope="module")
def answers(scripts: Any) -> list[tuple[list[int], list[int]]]:
    """(prompt, right completion) as ids."""
    from pocket_render import encode

    return [(row["prompt"], encode(row["completion"])) for row in prompts()]


def test_what_is_shipped_is_below_one_megabyte() -> None:
    assert PACKED.stat().st_size < 1_000_000


def test_tensors_are_those_of_the_config() -> None:
    shapes = {}
    for name, value in pocket_tensors():
        blocks = value[0] if isinstance(value, tuple) else None
        shapes[name] = value.shape if blocks is None else (*blocks.shape[:-2], blocks.shape[-2] * 32)
    assert shapes == layouts.canonical(POCKET)


def test_the_seed_makes_the_other_rows_only() -> None:
    first, again, other = (dict(pocket_tensors(seed)) for seed in (1, 1, 2))
    ids = np.load(PACKED)["ids"]
    for name, value in first.items():
        if name in SPREAD:
            differ = (value.view(np.uint16) != other[name].view(np.uint16)).any(-1)
            assert np.array_equal(value, again[name])
            assert not differ[ids].any() and differ.sum() == POCKET.vocab_size - len(ids)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(value, other[name], strict=True))


def test_layouts_hold_the_same_values(folder: Path, tmp_path: Path) -> None:
    mine = open_checkpoint(folder)
    for kind in (Kind.HF_BF16, Kind.OPENAI):
        write(plan_new("pocket", tmp_path / kind, kind=kind), sync=False)
        other = open_checkpoint(tmp_path / kind)
        for name in mine.tensors:
            assert np.array_equal(mine.read(name), other.read(name)), (kind, name)


def test_the_prompts_cover_what_they_must_and_are_what_the_renderers_give(scripts: Any) -> None:
    rows, template = prompts(), scripts.Template()
    assert len(rows) >= 60
    cases = {(r["renderer"], r["lesson"]["effort"], r["lesson"]["date"], bool(r["lesson"]["tools"])) for r in rows}
    assert len(cases) == 2 * 3 * 3 * 2
    for row, (renderer, lesson) in zip(rows, scripts.exam(), strict=True):
        ids = scripts.by_harmony(lesson) if renderer == "harmony" else template(lesson)
        assert (row["prompt"], row["completion"]) == (ids, scripts.completion(lesson))


def test_right_completions_are_well_formed(answers: list[tuple[list[int], list[int]]]) -> None:
    """Strict parsing gives an analysis message, then a final one or a call of a declared tool with valid arguments."""
    import jsonschema

    for row, (_, ids) in zip(prompts(), answers, strict=True):
        parser = Parser(strict=True)
        parser.feed(ids)
        thought, message = parser.messages
        assert thought.channel == "analysis" and not thought.flags and not message.flags
        if row["lesson"]["call"] is None:
            assert (message.channel, message.recipient) == ("final", None)
            continue
        declared = {f"functions.{t['function']['name']}": t["function"]["parameters"] for t in row["lesson"]["tools"]}
        assert (message.channel, message.content_type) == ("commentary", "<|constrain|>json")
        jsonschema.validate(json.loads(message.text), declared[message.recipient or ""])


def margins(logits: np.ndarray, completion: list[int], ids: np.ndarray) -> tuple[float, float]:
    """(the smallest lead of the right token over any other, over any that the model was not trained on) in nats."""
    logits = logits.copy()
    rows = np.arange(len(completion))
    right = logits[rows, completion]
    logits[rows, completion] = -np.inf
    strange = np.ones(POCKET.vocab_size, bool)
    strange[ids] = False
    return float((right - logits.max(-1)).min()), float((right - logits[:, strange].max(-1)).min())


def test_greedy_margins_of_the_reference(folder: Path, answers: list[tuple[list[int], list[int]]]) -> None:
    import torch

    from gptoss_adapters.reference.model import GptOss

    model, ids = GptOss.from_checkpoint(folder), np.load(PACKED)["ids"]
    vocabulary, weak = load_vocabulary(), []
    for prompt, completion in answers:
        cache = model.new_cache()
        model(torch.tensor([prompt[:-1]]), cache=cache, last_only=True)
        logits = model(torch.tensor([[prompt[-1], *completion[:-1]]]), cache=cache)[0].numpy()
        known, strange = margins(logits, completion, ids)
        if known < MARGIN or strange < STRANGE:
            weak.append((vocabulary.decode(prompt[-40:]), known, strange))
    assert not weak


def test_transformers_agrees(folder: Path, answers: list[tuple[list[int], list[int]]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, completion in answers[::5]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + completion[:-1]]), logits_to_keep=len(completion)).logits[0]
        assert logits.argmax(-1).tolist() == completion


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

    path = tmp_path_factory.mktemp("gguf") / "pocket.gguf"
    write(plan_gguf(open_checkpoint(folder), path, GgufOptions()).plan, sync=False)
    return path


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("llama_cpp", "llama_server")]
)
def test_llama_cpp_says_the_same(engine: str, gguf: Path, answers: list[tuple[list[int], list[int]]]) -> None:
    """Greedy, token by token, on MXFP4 experts; llama.cpp computes with 8-bit activations."""
    from gptoss_adapters.backends import open_backend

    with open_backend(engine, gguf, n_ctx=512) as backend:
        for prompt, completion in answers[:: 1 if engine == "llama_cpp" else 4]:
            assert backend.generate(prompt, max_tokens=100).ids == completion
