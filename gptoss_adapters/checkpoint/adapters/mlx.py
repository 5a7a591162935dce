"""A LoRA adapter as mlx-lm trains it: `adapters.safetensors`, with lora_a [in, r] and lora_b [r, out], and of the
experts lora_a [E, r, in] and lora_b [E, out, r]; what is added is scale * B A, whatever the rank.

Source: mlx-lm's tuner, whose loader asks the config for `fine_tune_type`, `num_layers` and `lora_parameters` only; all
else in it is how the training ran.
"""

from __future__ import annotations

import math
import re
from typing import Any

from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.merging import Factors, Merging
from gptoss_adapters.checkpoint.adapters.targets import list_targets, name_module
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.errors import BadInput

FUSE_IT = "fuse it with mlx_lm.fuse, and convert the model"
LORA_PARAMETERS = frozenset({"dropout", "keys", "rank", "scale"})
_LORA = re.compile(r"(.+)\.lora_([ab])")


def put_mlx(files: AdapterFiles, merging: Merging, scale: float) -> None:
    """Adds an adapter to `merging`. Raises BadInput naming the file and the tensor or key."""
    rank, factor = _read_parameters(files)
    targets = list_targets(merging.config)
    found: dict[str, dict[str, Source]] = {}
    for name, source in files.tensors.items():
        match = _LORA.fullmatch(name)
        if not match:
            raise _explain_other(files, source)
        found.setdefault(match[1], {})[match[2]] = source
    for module, pair in found.items():
        one = next(iter(pair.values()))
        if pair.keys() != {"a", "b"}:
            raise files.fail("the other half of the pair is missing", one, expected="lora_a and lora_b")
        named = targets.get(name_module(module))
        if named is None:
            raise files.fail("a tensor of the adapter has no place in this model", one, hint="is it for another base?")
        a, b = files.read(pair["a"]), files.read(pair["b"])
        if a.ndim == b.ndim == 2:
            left, right = a.T, b.T
            if module.endswith("embed_tokens"):  # [V, r] and [r, H]: the table is not transposed
                left, right = b, a
        else:
            left, right = a, b
        if left.ndim < 2 or left.shape[-2] != rank:
            raise files.fail("the rank is not the one that the config says", one, expected=rank, got=list(one.shape))
        for target in named:
            merging.add(files, target, Factors(left, right, factor * scale, (pair["a"], pair["b"])))
    merging.summarise(files, len(found), scale, [])


def _read_parameters(files: AdapterFiles) -> tuple[Any, float]:
    """(rank, scale) of lora_parameters. Raises BadInput for an adapter that is no LoRA, and for other keys."""
    kind = files.values.get("fine_tune_type", "lora")
    if kind != "lora":
        what = {"dora": "DoRA, which rescales the base's rows", "full": "whole layers, not an adapter"}.get(kind)
        raise files.fail(f"fine_tune_type is {kind}: {what or 'unknown to us'}", expected="lora", hint=FUSE_IT)
    parameters = files.values.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise files.fail("lora_parameters must be an object", got=parameters)
    if unknown := sorted(parameters.keys() - LORA_PARAMETERS):
        raise files.fail(
            f"lora_parameters holds {unknown[0]}, which mlx-lm no longer knows: it may change the scale", hint=FUSE_IT
        )
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        raise files.fail("lora_parameters.scale must be a number", got=scale)
    return rank, float(scale)


def _explain_other(files: AdapterFiles, source: Source) -> BadInput:
    what = "DoRA's magnitudes" if source.name.endswith(".m") else "not a half of a pair"
    return files.fail(f"the tensor is {what}", source, expected="lora_a or lora_b", hint=FUSE_IT)
