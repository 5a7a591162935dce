"""The prompts, by family: each family is there to show something. The same config and seed give the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.spec import GPT_OSS_20B, MAX_POSITIONS, GptOssConfig

FAMILIES = {
    "single": "one token: sinks, biases, experts and norms without any attention history",
    "window": "lengths around the sliding window's edge",
    "long": "past the window, and past the original context where that is short",
    "far": "three times the original context: YaRN's factor, far positions",
    "same": "one token repeated: the handling of positions alone",
    "tiny": "tokens of tiny norm: RMSNorm's eps",
    "harmony": "conversations as they are rendered for the model",
}
SHORT_CONTEXT = 512  # an original context up to here is crossed by the prompts
SINGLES, SMALL_WINDOW = 48, 32
LIGHT = {"single": 8, "window": 1, "harmony": 2}  # family -> prompts for engines that are asked token by token
LIGHT_TOKENS = 40


@dataclass(frozen=True)
class Prompt:
    """family: see FAMILIES. index: within its family."""

    family: str
    index: int
    ids: tuple[int, ...]


def make_prompts(
    config: GptOssConfig, norms: np.ndarray, seed: int = 0, extra: Sequence[Sequence[int]] = ()
) -> list[Prompt]:
    """norms: of the embedding's rows, [V]. extra: rendered conversations, for a checkpoint with the real vocabulary."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found: dict[str, list[list[int]]] = {family: [] for family in FAMILIES}
    for family, prompt in _random(config, norms, rng):
        found[family].append(prompt)
    found["harmony"] = [list(ids) for ids in extra]
    limit = config.max_position_embeddings
    return [Prompt(f, i, tuple(ids[:limit])) for f, prompts in found.items() for i, ids in enumerate(prompts)]


def _random(config: GptOssConfig, norms: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, list[int]]]:
    def draw(n: int) -> list[int]:
        return [int(i) for i in rng.integers(0, config.vocab_size, n)]

    small = np.argsort(norms, kind="stable")[: max(config.vocab_size // 16, 8)]
    for ident in [*draw(SINGLES - 8), *(int(i) for i in rng.choice(small, 8))]:
        yield "single", [ident]
    w, original = config.sliding_window, config.initial_context_length
    for length in (w - 1, w, w + 1, 2 * w + 1) if w <= SMALL_WINDOW else (w + 1,):
        yield "window", draw(max(length, 1))
    short = original <= SHORT_CONTEXT
    yield "long", draw(original + 32 if short else min(2 * w + 32, MAX_POSITIONS))
    if short and config.num_hidden_layers <= 2:
        yield "far", draw(3 * original)
    yield "same", draw(1) * 24
    yield "tiny", [int(i) for i in rng.choice(small, 24)]


def lighten_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """What an engine is asked that answers token by token: a few prompts, cut short."""
    return [Prompt(p.family, p.index, p.ids[:LIGHT_TOKENS]) for p in prompts if p.index < LIGHT.get(p.family, 0)]


def read_embedding_norms(checkpoint: Checkpoint) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(checkpoint.read("embedding.weight"), axis=1)
    return norms


def render_conversations(checkpoint: Checkpoint) -> Sequence[Sequence[int]]:
    """Rendered conversations, where the checkpoint has the published vocabulary."""
    from gptoss_harmony import Conversation, Message, SystemContent, render

    if checkpoint.config.vocab_size != GPT_OSS_20B.vocab_size:
        return ()
    date = Message.system(SystemContent(conversation_start_date="2026-01-01"))
    questions = ("What is 12 times 12?", "Wie spät ist es in Zürich? Antworte kurz.")
    return [render(Conversation([date, Message.user(q)])) for q in questions]
