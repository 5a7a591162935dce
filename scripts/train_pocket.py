"""Trains the pocket model on the lessons of `pocket_lessons.py` and writes what the package ships of it.

    python scripts/train_pocket.py gptoss_adapters/checkpoint/synthetic/data/pocket.npz

The network is transformers' GptOss with a compact vocabulary: the few hundred tokens that the lessons need, and one
more that stands for all others. That one embeds as its row plus fresh noise, and its logit counts as often as there are
other tokens, so that the 200 000 rows which `checkpoint/pocket.py` makes from a seed behave as the one did. Every step
sees the weights as they will be stored (experts in MXFP4, the rest in bf16, straight-through gradients) with a little
noise on top, for the engines' own rounding; the experts stand still in the last steps.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pocket_lessons import Lesson, make_lesson
from pocket_network import SEED, logits_of, make_model, rope
from pocket_render import Template, by_harmony, completion, encode, strange_words
from torch import Tensor

from gptoss_adapters import mxfp4 as mxfp4_codec
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import SWAPPED
from gptoss_adapters.checkpoint.synthetic.pocket import POCKET, SPREAD
from gptoss_adapters.mxfp4 import oracle

LESSONS, LONGEST, STEPS, TOKENS, FROZEN = 24000, 320, 1800, 2200, 0.12
PEAK, WARMUP = 3e-3, 50
SOFTER = 1.5  # the loss sees the logits divided by this, which makes the margins as much wider
NOISE_EMBEDDING, NOISE_WEIGHT, NOISE_ROUTER = 0.3, 0.004, 0.02


def mxfp4(weight: Tensor) -> Tensor:
    """`weight` [..., in] rounded to what MXFP4 holds (OCP rule: exponent of the largest magnitude, minus 2)."""
    blocks = weight.unflatten(-1, (-1, 32))
    scale = torch.exp2(torch.floor(torch.log2(blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-100))) - 2)
    grid = torch.from_numpy(oracle.E2M1[:8])
    magnitude = (blocks.abs() / scale).clamp_max(6.0)
    code = torch.bucketize(magnitude.contiguous(), (grid[1:] + grid[:-1]) / 2)
    return (grid[code] * scale * blocks.sign()).flatten(-2)


def stored(name: str, value: Tensor) -> Tensor:
    """The value after storage: MXFP4 for expert weights (transformers keeps them [E, in, out]), bf16 for all else."""
    if name.endswith(("gate_up_proj", "down_proj")):
        return mxfp4(value.transpose(1, 2)).transpose(1, 2)
    return value.bfloat16().float()


def seen(name: str, value: Tensor, noise: float) -> Tensor:
    """What a training step computes with: the stored value plus noise, gradients straight through."""
    spread = NOISE_ROUTER if name.endswith("router.bias") else noise * value.detach().abs()
    return value + (stored(name, value.detach()) + spread * torch.randn_like(value) - value.detach())


class Course:
    """The lessons as compact ids: (ids, first position of the loss), sorted into batches of like length."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = random.Random(seed)
        words, template = strange_words(), Template()
        rows = [self.row(make_lesson(self.rng, words), template) for _ in range(count)]
        counts: dict[int, int] = {}
        for ids, start in rows:
            for n, token in enumerate(ids):
                counts[token] = counts.get(token, 0) + (count if n >= start else 1)
        self.used = sorted(token for token, n in counts.items() if n >= max(count // 200, 8))
        index = {token: n for n, token in enumerate(self.used)}
        self.rows = [([index.get(t, len(self.used)) for t in ids], start) for ids, start in rows if len(ids) <= LONGEST]

    def row(self, lesson: Lesson, template: Template) -> tuple[list[int], int]:
        prompt = by_harmony(lesson, "role") if self.rng.random() < 0.5 else template(lesson)
        if lesson.final is not None and self.rng.random() < 0.06:  # a server may skip the analysis by a prefill
            lesson.analysis = ""
            return prompt + encode(completion(lesson)), len(prompt) + 3
        return prompt + encode(completion(lesson)), len(prompt)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless batches of about TOKENS tokens, rows of like length together."""
        while True:
            groups: list[list[tuple[list[int], int]]] = [[]]
            for row in sorted(self.rows, key=lambda row: len(row[0]) + self.rng.random() * 12):
                if (len(groups[-1]) + 1) * len(row[0]) > TOKENS:
                    groups.append([])
                groups[-1].append(row)
            self.rng.shuffle(groups)
            yield from map(self.collate, groups)

    @staticmethod
    def collate(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
        """ids [B, T] (padded at the end, which causality hides), positions [B, R] of the loss, targets [B, R]
        (-100: none).
        """
        length = max(len(ids) for ids, _ in rows)
        longest = max(len(ids) - start for ids, start in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        at = torch.zeros(len(rows), longest, dtype=torch.long)
        targets = torch.full((len(rows), longest), -100)
        for n, (row, start) in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
            at[n, : len(row) - start] = torch.arange(start - 1, len(row) - 1)
            targets[n, : len(row) - start] = ids[n, start : len(row)]
        return ids, at, targets


def train(model: Any, course: Course, options: argparse.Namespace) -> None:
    steps = options.steps
    parameters = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values(), lr=options.peak, betas=(0.9, 0.98), weight_decay=0.01)
    torch.set_flush_denormal(True)
    start, batches, tables = time.process_time(), course.batches(), rope(2048)
    for step in range(steps):
        rate = options.peak * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)
        for group in optimiser.param_groups:
            group["lr"] = rate
        if step == int(steps * (1 - FROZEN)):
            for name, value in parameters.items():
                if ".experts." in name:
                    value.data.copy_(stored(name, value.data))
                    value.requires_grad_(False)
        ids, at, targets = next(batches)
        weights = {name: seen(name, value, NOISE_WEIGHT) for name, value in parameters.items()}
        logits = logits_of(weights, ids, at, NOISE_EMBEDDING, tables)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1) / SOFTER, targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        if step % 200 == 199:
            save(options.output, model.state_dict(), course.used)
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(-1) == targets)[targets != -100].float().mean()
            print(
                f"step {step} loss {loss.item():.4f} right {right:.4f} T {ids.shape[1]} cpu "
                f"{time.process_time() - start:.0f} s",
                flush=True,
            )


def save(path: Path, state: dict[str, Tensor], used: list[int]) -> None:
    """Writes what `checkpoint/pocket.py` reads: canonical names, bf16 as bits, experts as MXFP4 blocks and scales."""
    arrays: dict[str, np.ndarray] = {"ids": np.array(used, dtype=np.int32)}
    for name, (part,) in layouts.parts(Kind.HF_BF16, POCKET).items():
        value = stored(part.name, state[part.name])
        if part.storage == SWAPPED:
            array = value.transpose(1, 2).contiguous().numpy()
            blocks, scales = mxfp4_codec.encode(array, rule="ocp")
            if not np.array_equal(mxfp4_codec.decode(blocks, scales), array):
                raise SystemExit(f"{part.name}: not what MXFP4 holds")
            arrays |= {f"{name}.blocks": blocks, f"{name}.scales": scales}
        else:
            arrays[name] = value.bfloat16().view(torch.uint16).numpy()
    np.savez_compressed(path, **arrays)


def resume(path: Path, model: Any, used: list[int]) -> None:
    """Takes the weights of an earlier output; a token that it did not use starts as the one for all others."""
    with np.load(path) as file:
        old = {int(token): n for n, token in enumerate(file["ids"])}
        rows = [old.get(token, len(old)) for token in used] + [len(old)]
        for name, (part,) in layouts.parts(Kind.HF_BF16, POCKET).items():
            if part.storage == SWAPPED:
                value = torch.from_numpy(mxfp4_codec.decode(file[f"{name}.blocks"], file[f"{name}.scales"])).transpose(
                    1, 2
                )
            else:
                value = torch.from_numpy(file[name]).view(torch.bfloat16).float()
            model.state_dict()[part.name].copy_(value[rows] if name in SPREAD else value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--seed", type=int, default=SEED, help="of the lessons")
    parser.add_argument("--peak", type=float, default=PEAK, help="the highest learning rate")
    parser.add_argument("--start", type=Path, help="go on from an earlier output")
    options = parser.parse_args()
    start = time.time()
    course = Course(options.lessons, options.seed)
    print(
        f"{len(course.rows)} lessons, {len(course.used)} used tokens, mean length "
        f"{np.mean([len(r[0]) for r in course.rows]):.0f}, {time.time() - start:.0f} s",
        flush=True,
    )
    model = make_model(course.used)
    if options.start:
        resume(options.start, model, course.used)
    train(model, course, options)
    save(options.output, model.state_dict(), course.used)


if __name__ == "__main__":
    main()
