"""A LoRA adapter as llama.cpp's convert_lora_to_gguf.py writes it, read as llama.cpp applies it.

Each tensor of the model that is adapted has NAME.lora_a [.., r, in] and NAME.lora_b [.., out, r]; the embedding's
lora_a is [V, r], its lora_b [H, r]. What is added is alpha / r * B A, or B A where alpha is missing or zero; r is the
tensors' own. Norms in the file are left alone, as llama.cpp leaves them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.merging import Factors, Merging
from gptoss_adapters.checkpoint.adapters.targets import Target
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.spec import GptOssConfig

ARCHITECTURE = "gpt-oss"
KNOWN_KEYS = frozenset({"adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"})
_ALORA = "adapter.alora.invocation_tokens"
_HALVES = (".lora_a", ".lora_b")
_EMBEDDING = "token_embd.weight"


def put_gguf(files: AdapterFiles, merging: Merging, scale: float) -> None:
    """Adds an adapter to `merging`. Raises BadInput naming the file and the tensor or metadata key."""
    alpha = _check_metadata(files)
    targets = _list_targets(merging.config)
    found: dict[str, dict[str, Source]] = {}
    norms = 0
    for name, source in files.tensors.items():
        half = name[-len(_HALVES[0]) :]
        if half in _HALVES:
            found.setdefault(name.removesuffix(half), {})[half] = source
        elif name.endswith("_norm.weight"):
            norms += 1
        else:
            raise files.fail("the tensor is not a half of a pair", source, expected=" or ".join(_HALVES))
    for name, pair in found.items():
        one = next(iter(pair.values()))
        if len(pair) != 2:
            raise files.fail("the other half of the pair is missing", one, expected=" and ".join(_HALVES))
        if name not in targets:
            raise files.fail("a tensor of the adapter has no place in this model", one, hint="is it for another base?")
        sources = pair[".lora_a"], pair[".lora_b"]
        a, b = (files.read(source) for source in sources)
        rank = b.shape[-1]
        left, right = (b.T, a) if name == _EMBEDDING else (a, b)
        factor = scale * (alpha / rank if alpha else 1.0)
        merging.add(files, targets[name], Factors(left, right, factor, sources))
    notes = [f"{norms} norms are left as they were, as llama.cpp leaves them"] if norms else []
    merging.summarise(files, len(found), scale, notes)


def _check_metadata(files: AdapterFiles) -> float:
    """alpha, or 0 where there is none. Raises BadInput for anything but a LoRA of gpt-oss."""
    wanted = {"general.type": "adapter", "general.architecture": ARCHITECTURE, "adapter.type": "lora"}
    for key, value in wanted.items():
        got = files.values.get(key)
        if got != value:
            hint = "--lora names an adapter" if key == "general.type" else None
            raise files.fail(f"metadata key {key} is not that of a LoRA of gpt-oss", expected=value, got=got, hint=hint)
    if _ALORA in files.values:
        raise files.fail("the adapter is aLoRA, which acts from its invocation tokens on and cannot be merged")
    for key in files.values:
        if key.startswith("adapter.") and key not in KNOWN_KEYS:
            raise files.fail(f"metadata key {key} is unknown: it may change what the adapter means")
    alpha: Any = files.values.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not np.isfinite(alpha):
        raise files.fail("metadata key adapter.lora.alpha must be a number", got=alpha)
    return float(alpha)


def _list_targets(config: GptOssConfig) -> dict[str, Target]:
    """The weights of a GGUF by their names there."""
    return {
        part.name: Target(canonical, rows=part.rows)
        for canonical, parts in layouts.parts(Kind.GGUF, config).items()
        for part in parts
        if canonical.endswith("weight") and not canonical.endswith("norm.weight")
    }
