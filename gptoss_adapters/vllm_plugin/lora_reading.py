"""A LoRA adapter of gpt-oss, whoever made it, in the one form that vLLM's LoRA of gpt-oss takes.

`checkpoint.lora` reads it (PEFT, Unsloth, mlx-lm, GGUF, experts together or one by one) and says which canonical tensor
each pair belongs to; from there it is written as PEFT writes it, with every factor alpha / r multiplied into B:

    model.layers.N.self_attn.{q,k,v,o}_proj     A [r, in], B [out, r]
    model.layers.N.mlp.router                   A [r, H], B [E, r]
    model.layers.N.mlp.experts.base_layer       A [E r, H], B [2I, r E]     gate_up, the expert runs fastest in B
    model.layers.N.mlp.experts                  A [E r, I], B [H, r E]      down

vLLM needs both of the experts' parameters and one rank for all experts: what an adapter leaves out is zeros.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.adapters.deltas import F32, Deltas, Pair
from gptoss_adapters.checkpoint.adapters.finding import PEFT_PICKLES, PEFT_WEIGHTS
from gptoss_adapters.checkpoint.checkpoint import TensorInfo
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.layouts import canonical
from gptoss_adapters.checkpoint.lora import with_adapters
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.spec import GptOssConfig

PREFIX = "base_model.model."
ORDERS = ("peft", "unsloth")
ORDER_SWITCH = "GPTOSS_ADAPTERS_LORA_ORDER"
_LINEAR = re.compile(r"layers\.(\d+)\.(?:([qkvo])_proj|router)\.weight")
_EXPERTS = re.compile(r"layers\.(\d+)\.experts\.(gate_up|down)\.weight")
_MERGE = "merge it into the checkpoint: gptoss-convert to-hf BASE -o OUT --lora ADAPTER"


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as vLLM takes it. `rank`: the largest of its modules."""

    path: Path
    config: GptOssConfig
    deltas: dict[str, Deltas]
    rank: int

    @property
    def has_experts(self) -> bool:
        return any(_EXPERTS.fullmatch(name) for name in self.deltas)

    def tensors(self) -> Iterator[tuple[str, F32]]:
        """Name as PEFT has it -> matrix, float32, one after the other: whole adapters can be gigabytes."""
        layers = set()
        for name, deltas in self.deltas.items():
            if match := _EXPERTS.fullmatch(name):
                layers.add(int(match[1]))
            else:
                yield from _write(name_module(name), *combine(deltas.pairs[None], deltas.shape))
        for n in sorted(layers):
            at = f"model.layers.{n}.mlp.experts"
            for part, module in (("gate_up", f"{at}.base_layer"), ("down", at)):
                yield from _write(module, *self._stack(f"layers.{n}.experts.{part}.weight"))

    def _stack(self, name: str) -> tuple[F32, F32]:
        """A [E r, in] and B [out, r E] of one of the experts' parameters; zeros where the adapter has nothing."""
        experts, out, width = canonical(self.config)[name]
        deltas = self.deltas.get(name)
        pairs = {} if deltas is None else deltas.pairs
        rank = max([1, *(_sum_ranks(found) for found in pairs.values())])
        a, b = np.zeros((experts, rank, width), np.float32), np.zeros((out, rank, experts), np.float32)
        for expert, found in pairs.items():
            left, right = combine(found, (out, width))
            a[expert, : len(left)], b[:, : len(left), expert] = left, right
        return a.reshape(experts * rank, width), b.reshape(out, rank * experts)


def read_adapter(path: Path, config: GptOssConfig, base: Checkpoint | None = None) -> ServedAdapter:
    """The adapter in the folder `path` for a model with this config. `base`: the model's files where they are at hand,
    to see that modules saved whole are just copies.

    Raises BadInput naming file and tensor for what no pair of matrices says, for another model's adapter, and for what
    vLLM would leave out.
    """
    shapes = base or _make_base(config, path)
    with _without_pickle(path) as folder:
        try:
            view = with_adapters(shapes, [(folder, 1.0)], _read_order())
        except BadInput as error:
            raise _reword(error, folder, path) from None
        _refuse_replaced(view.base or view, base, shapes, path)
    deltas: dict[str, Deltas] = dict(view.deltas)  # type: ignore[arg-type]
    for name in deltas:
        if not (_LINEAR.fullmatch(name) or _EXPERTS.fullmatch(name)):
            raise BadInput(
                f"the adapter changes {name}, and vLLM serves no adapter of that in gpt-oss", file=path, hint=_MERGE
            )
    rank = max(_sum_ranks(pairs) for delta in deltas.values() for pairs in delta.pairs.values())
    return ServedAdapter(path, config, deltas, rank)


def combine(pairs: Sequence[Pair], shape: Sequence[int]) -> tuple[F32, F32]:
    """Several pairs of one matrix [out, in] as one: A [r, in] and B [out, r] with the factors in B."""
    a = np.concatenate([pair.a.astype(np.float32) for pair in pairs])
    b = np.zeros((shape[-2], len(a)), np.float32)
    at = 0
    for pair in pairs:
        rank = len(pair.a)
        b[pair.rows.every, at : at + rank] = pair.factor * pair.b.astype(np.float64)
        at += rank
    return a, b


def name_module(name: str) -> str:
    """canonical name of a linear layer -> its module in transformers' model."""
    match = _LINEAR.fullmatch(name)
    assert match is not None
    at = f"model.layers.{match[1]}"
    return f"{at}.self_attn.{match[2]}_proj" if match[2] else f"{at}.mlp.router"


def _sum_ranks(pairs: Sequence[Pair]) -> int:
    return sum(len(pair.a) for pair in pairs)


def _write(module: str, a: F32, b: F32) -> Iterator[tuple[str, F32]]:
    yield f"{PREFIX}{module}.lora_A.weight", a
    yield f"{PREFIX}{module}.lora_B.weight", b


def _read_order() -> str | None:
    order = os.environ.get(ORDER_SWITCH, "").strip().lower()
    if order and order not in ORDERS:
        raise UsageError(f"{ORDER_SWITCH} must be one of {', '.join(ORDERS)}", got=order)
    return order or None


def _make_base(config: GptOssConfig, path: Path) -> Checkpoint:
    """The model by its shapes alone."""
    tensors = {name: TensorInfo(name, shape, "bf16", 0, (), ()) for name, shape in canonical(config).items()}
    return Checkpoint(Kind.HF_BF16, path, config, {}, tensors)


def _refuse_replaced(view: Checkpoint, base: Checkpoint | None, shapes: Checkpoint, path: Path) -> None:
    """Modules saved whole. PEFT saves the table of an embedding that it thinks was resized; often it is the base's."""
    for name, info in view.tensors.items():
        if info is shapes.tensors[name]:
            continue
        if base is None or not np.array_equal(view.array(name), base.array(name)):
            raise BadInput(
                f"the adapter replaces the whole {name}, and vLLM serves no adapter of that",
                file=path,
                tensor=info.sources[0].name if info.sources else None,
                hint=_MERGE,
            )


def _reword(error: BadInput, folder: Path, path: Path) -> BadInput:
    """The converter's words for somebody who serves: its option is our switch, a copied file the one it is of."""
    file = None if error.file is None else error.file.replace(str(folder), str(path))
    hint = error.hint
    if hint and "--lora-order" in hint:
        hint = f"set {ORDER_SWITCH} to {' or '.join(ORDERS)}"
    return BadInput(error.what, file=file, tensor=error.tensor, expected=error.expected, got=error.got, hint=hint)


@contextmanager
def _without_pickle(path: Path) -> Iterator[Path]:
    """The folder itself, or a copy of it with its pickle's tensors as safetensors: vLLM reads pickles too, without
    running what is in them.
    """
    pickle = next((path / name for name in PEFT_PICKLES if (path / name).is_file()), None)
    if pickle is None or (path / PEFT_WEIGHTS).exists():
        yield path
        return
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="gptoss-adapters-") as folder:
        tensors = torch.load(pickle, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / PEFT_WEIGHTS)
        shutil.copy(path / "adapter_config.json", folder)
        yield Path(folder)
