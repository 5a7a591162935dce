"""What may differ from layer to layer, as an HF `config.json` says it: the number of experts, and the window.

Three spellings: `block_configs` (gpt_oss_puzzle: an object a layer), `per_layer_config` (transformers: what differs, by
the layer's number) and a list as `num_local_experts` (pruned models).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields
from gptoss_adapters.spec import FULL, MAX_LAYERS, SLIDING, GptOssConfig, alternating
from gptoss_adapters.spec import GPT_OSS_20B as PUBLISHED

_COUNT, _WINDOW = "num_local_experts", "sliding_window"


def take_layers(take: JsonFields) -> dict[str, Any]:
    """num_experts, experts_per_layer, layer_types, sliding_window and windows. Raises BadInput naming the key."""
    layers = take.integer("num_hidden_layers")
    if not 0 < layers <= MAX_LAYERS:
        return {"num_experts": 1}  # which is refused by its field
    if take.raw.get("block_configs") is not None:
        return _from_blocks(take, layers)
    types = _take_types(take, layers)
    counts = _take_counts(take, layers)
    windows = _take_windows(take, types)
    for layer, changes in _take_changes(take, layers).items():
        if _COUNT in changes.raw:
            counts[layer] = changes.integer(_COUNT)
        if _WINDOW in changes.raw and types[layer] == SLIDING:
            windows[layer] = changes.integer(_WINDOW)
    return _describe(counts, windows, types, take.integer(_WINDOW, PUBLISHED.sliding_window))


def to_hf_layers(config: GptOssConfig) -> dict[str, Any]:
    """`per_layer_config`, for a config whose layers differ."""
    changes: dict[str, dict[str, int]] = {}
    for layer in range(config.num_hidden_layers):
        window = config.window_of(layer)
        own: dict[str, int] = {}
        if config.experts_of(layer) != config.num_experts:
            own[_COUNT] = config.experts_of(layer)
        if window is not None and window != config.sliding_window:
            own[_WINDOW] = window
        if own:
            changes[str(layer)] = own
    return {"per_layer_config": changes} if changes else {}


def _take_types(take: JsonFields, layers: int) -> list[str]:
    types = take("layer_types")
    if types is not None and not isinstance(types, list | tuple):
        raise BadInput("config field layer_types must be a list", file=take.file, got=types)
    if types and len(types) != layers:
        raise BadInput(f"config field layer_types must have {layers} entries", file=take.file, got=len(types))
    return list(types or alternating(layers))


def _take_counts(take: JsonFields, layers: int) -> list[int]:
    key = _COUNT if _COUNT in take.raw else "num_experts"
    value = take.raw.get(key)
    if not isinstance(value, list):
        return [take.integer(key)] * layers
    if len(value) != layers:
        raise BadInput(f"config field {key} must be a number, or one for each of {layers} layers", file=take.file)
    return [JsonFields({key: one}, take.file).integer(key) for one in value]


def _take_windows(take: JsonFields, types: list[str]) -> list[int]:
    """Of each layer, 0 for one that sees everything."""
    usual = take.integer(_WINDOW, PUBLISHED.sliding_window)
    return [usual if kind == SLIDING else 0 for kind in types]


def _take_changes(take: JsonFields, layers: int) -> dict[int, JsonFields]:
    """`per_layer_config` by layer, with no other key than the two that we know."""
    changes = {}
    for name, given in (take.mapping("per_layer_config") or {}).items():
        where = f"per_layer_config.{name}"
        if not name.isdecimal() or not int(name) < layers:
            raise BadInput(f"config field {where} is no layer", file=take.file, expected=f"0 to {layers - 1}")
        changes[int(name)] = _check_block(given, where, take.file)
    return changes


def _from_blocks(take: JsonFields, layers: int) -> dict[str, Any]:
    blocks = take("block_configs")
    if not isinstance(blocks, list) or len(blocks) != layers:
        what = f"config field block_configs must have {layers} entries, one for each layer"
        raise BadInput(what, file=take.file, got=len(blocks) if isinstance(blocks, list) else blocks)
    given = [_check_block(block, f"block_configs[{n}]", take.file) for n, block in enumerate(blocks)]
    counts = [block.integer(_COUNT) for block in given]
    windows = [0 if block(_WINDOW) is None else block.integer(_WINDOW) for block in given]
    if any(block(_WINDOW) == 0 for block in given):
        raise BadInput("config field block_configs: a window must be positive, or null for all keys", file=take.file)
    types = [SLIDING if window else FULL for window in windows]
    stated = take("layer_types")
    if stated is not None and list(stated) != types:
        raise BadInput("config fields layer_types and block_configs disagree about which layers slide", file=take.file)
    usual = min((w for w in windows if w), default=PUBLISHED.sliding_window)
    return _describe(counts, windows, types, usual)


def _check_block(given: Any, where: str, file: str | None) -> JsonFields:
    if not isinstance(given, Mapping):
        raise BadInput(f"config field {where} must be an object", file=file, got=given)
    other = next((key for key in given if key not in (_COUNT, _WINDOW)), None)
    if other is not None:
        raise BadInput(
            f"config field {where}.{other} is not known: the layers may differ in {_COUNT} and {_WINDOW} only",
            file=file,
        )
    return JsonFields(given, file)


def _describe(counts: list[int], windows: list[int], types: list[str], usual: int) -> dict[str, Any]:
    differ = any(window not in (0, usual) for window in windows)
    return {
        "num_experts": max(counts),
        "experts_per_layer": tuple(counts) if len(set(counts)) > 1 else (),
        "layer_types": tuple(types),
        "sliding_window": usual,
        "windows": tuple(windows) if differ else (),
    }
