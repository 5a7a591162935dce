"""Stored tensors -> canonical ones: names, shapes and dtypes are checked before a byte is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import TensorInfo
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import Part
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

USE_LORA = "name the model that it is for, and the adapter by --lora"
_HINTS = (
    (
        (".absmax", ".quant_state", ".quant_map", "bitsandbytes"),
        "bitsandbytes' 4-bit values are not MXFP4: save the model merged to 16 bits",
    ),
    ((".lora_",), "an adapter's tensor: name the adapter by --lora, beside the model that it is for"),
)
_NVFP4 = "NVFP4, not MXFP4: save the model in 16 bits or as MXFP4"


def resolve(
    kind: Kind, path: Path, config: GptOssConfig, sources: Mapping[str, Source], dense: tuple[str, ...]
) -> dict[str, TensorInfo]:
    """The canonical tensors of a checkpoint of this kind out of its stored ones, in forward order.

    Every name, shape and dtype is checked; `dense` lists the dtypes that unquantised parts may have. Raises BadInput
    naming file and tensor: a missing or left-over tensor, a wrong shape or dtype.
    """
    if config.hidden_size % MXFP4_BLOCK or config.intermediate_size % MXFP4_BLOCK:
        raise BadInput(
            f"hidden_size and intermediate_size must be multiples of {MXFP4_BLOCK}",
            file=path,
            got=f"{config.hidden_size}, {config.intermediate_size}",
        )
    _check_expert_count(kind, config, sources)
    wanted = layouts.stored(kind, config, sources)
    for name, source in sources.items():
        if name not in wanted:
            raise _explain_unexpected(kind, config, source)
    for name, spec in wanted.items():
        if name not in sources:
            raise BadInput("the tensor is missing", file=path, tensor=name)
        _check_source(sources[name], spec, dense)
    shapes = layouts.canonical(config)
    return {
        name: _describe(name, shapes[name], parts, sources)
        for name, parts in layouts.parts(kind, config, sources).items()
    }


def _check_expert_count(kind: Kind, config: GptOssConfig, sources: Mapping[str, Source]) -> None:
    """Pruned checkpoints have fewer experts; what the config says must be what the router has."""
    names = layouts.parts(kind, config, sources)
    for n in range(config.num_hidden_layers):
        router = sources.get(names[f"layers.{n}.router.weight"][0].name)
        if router is None or len(router.shape) != 2 or router.shape[1] != config.hidden_size:
            continue
        if router.shape[0] != config.experts_of(n):
            raise BadInput(
                "the router has another number of experts than the config",
                file=router.file,
                tensor=router.name,
                expected=f"{config.experts_of(n)} rows",
                got=router.shape[0],
                hint="layers that differ are said by a list as num_local_experts, or by per_layer_config",
            )


def _explain_unexpected(kind: Kind, config: GptOssConfig, source: Source) -> BadInput:
    what = f"unexpected tensor in a checkpoint of kind {kind} with {config.num_hidden_layers} layers"
    hint = next((hint for marks, hint in _HINTS if any(mark in source.name for mark in marks)), None)
    if hint is None and source.name.endswith("_global_scale"):
        hint = _NVFP4
    return BadInput(what, file=source.file, tensor=source.name, hint=hint)


def _check_source(source: Source, spec: layouts.Stored, dense: tuple[str, ...]) -> None:
    allowed = spec.storage.dtypes or dense
    if source.dtype not in allowed:
        raise BadInput(
            "wrong dtype", file=source.file, tensor=source.name, expected=" or ".join(allowed), got=source.dtype
        )
    if source.shape != spec.shape:
        raise BadInput(
            "the shape does not fit the config",
            file=source.file,
            tensor=source.name,
            expected=list(spec.shape),
            got=list(source.shape),
        )


def _describe(name: str, shape: tuple[int, ...], parts: tuple[Part, ...], sources: Mapping[str, Source]) -> TensorInfo:
    found = tuple(sources[p.name] for p in parts)
    encodings = {part.storage.encoding(source.dtype) for part, source in zip(parts, found, strict=True)}
    if len(encodings) > 1:
        what = "the experts are" if parts[0].expert is not None else "gate and up are"
        raise BadInput(
            f"{what} stored in different types",
            file=found[0].file,
            tensor=found[0].name,
            got=", ".join(sorted(encodings)),
        )
    nbytes = sum(s.nbytes for s in found)
    if parts[0].storage.fused:
        nbytes = math.prod(shape) * found[0].nbytes // math.prod(found[0].shape)
    return TensorInfo(name, shape, encodings.pop(), nbytes, found, parts)
