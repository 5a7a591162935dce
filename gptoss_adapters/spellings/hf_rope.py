"""Rotary embedding as an HF `config.json` says it, read as transformers reads it.

`rope_scaling` (4.x) is taken whole before `rope_parameters` (5.x); `rope_theta` inside either wins over the one beside
them, and `original_max_position_embeddings` beside them over the one inside. A config with neither has the published
YaRN. An empty `rope_parameters` is plain RoPE, and an empty `rope_scaling` says nothing.

Source: transformers' `modeling_rope_utils` and GptOssConfig (5.24); a test compares the two on generated configs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.json_fields import JsonFields
from gptoss_adapters.spec import FULL, SLIDING
from gptoss_adapters.spec import GPT_OSS_20B as PUBLISHED

ROPE_KEYS = (
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
OTHER_TYPES = {  # of transformers, and what they do to the angles
    "linear": "divides every frequency",
    "dynamic": "changes with the length of the text",
    "longrope": "has a factor for each frequency",
    "llama3": "scales by Llama 3's rule",
    "proportional": "turns some of the pairs only",
    "axial": "is for images",
}
_PUBLISHED_YARN = {  # of transformers' GptOssConfig for a config that says nothing
    "rope_type": "yarn",
    "factor": PUBLISHED.rope_scaling_factor,
    "beta_fast": PUBLISHED.yarn_beta_fast,
    "beta_slow": PUBLISHED.yarn_beta_slow,
    "truncate": False,
    "original_max_position_embeddings": PUBLISHED.initial_context_length,
}


def take_rope(take: JsonFields) -> dict[str, Any]:
    """The fields of rotary embedding and context. Raises BadInput for a kind of RoPE that gpt-oss does not have."""
    rope = _choose(take)
    inner = JsonFields(rope, take.file)
    max_positions = take.integer("max_position_embeddings", PUBLISHED.max_position_embeddings)
    values: dict[str, Any] = {"max_position_embeddings": max_positions}
    values["rope_theta"] = inner.number("rope_theta") if "rope_theta" in rope else _number_beside(take, "rope_theta")
    if _tell_type(rope, take.file) == "default":
        return values | {"rope_scaling_factor": 1.0, "initial_context_length": max_positions}
    return values | _take_yarn(take, inner, max_positions)


def name_odd_rope(raw: Mapping[str, Any]) -> list[str]:
    """What of it has no effect, in words; `raw` is a config that `take_rope` took."""
    odd = []
    if raw.get("rope_scaling") and raw.get("rope_parameters"):
        odd.append("has both rope_scaling and rope_parameters: rope_scaling is taken whole, as transformers does")
    rope = _choose(JsonFields(raw, None))
    kind = _tell_type(rope, None)
    used = {*COMMON_KEYS, *(YARN_KEYS if kind == "yarn" else ())}
    unused = [key for key in rope if key not in used]
    if kind == "yarn" and bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")):
        unused += [key for key in ("mscale", "mscale_all_dim") if rope.get(key)]
    if kind == "default" and _partial(raw, rope) != 1:
        unused.append("partial_rotary_factor")
    if unused:
        odd.append(f"RoPE of type {kind} does not use {', '.join(unused)}: without effect, as in transformers")
    context = rope.get("original_max_position_embeddings")
    stated = raw.get("initial_context_length")
    if kind == "yarn" and stated is not None and stated != (context or raw.get("max_position_embeddings")):
        odd.append(f"initial_context_length {stated} is not what YaRN is computed with; transformers does not read it")
    return odd


def to_hf_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The object that says it, without theta; `values` are the fields of a config."""
    if not values["rope_scaling_factor"] > 1.0:
        return {"rope_type": "default"}
    rope = {
        "beta_fast": float(values["yarn_beta_fast"]),
        "beta_slow": float(values["yarn_beta_slow"]),
        "factor": float(values["rope_scaling_factor"]),
        "original_max_position_embeddings": values["initial_context_length"],
        "rope_type": "yarn",
        "truncate": values["yarn_truncate"],
    }
    factor = values["attention_factor"]
    return rope if factor is None else rope | {"attention_factor": factor}


def _choose(take: JsonFields) -> dict[str, Any]:
    """The one object that counts."""
    scaling, parameters = take.mapping("rope_scaling"), take.mapping("rope_parameters")
    rope = scaling or (dict(_PUBLISHED_YARN) if parameters is None else parameters)
    nested = next((key for key in (SLIDING, FULL) if key in rope), None)
    if nested:
        raise BadInput(
            f"config field rope_parameters says RoPE by the type of layer ({nested})",
            file=take.file,
            hint="all layers of gpt-oss share one: give that",
        )
    return rope


def _tell_type(rope: Mapping[str, Any], file: str | None) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("yarn", "default"):
        return str(kind)
    why = OTHER_TYPES.get(kind) if isinstance(kind, str) else None
    raise BadInput(
        "config field rope_type is not one of gpt-oss" + (f": {kind} {why}" if why else ""),
        file=file,
        expected="yarn or default",
        got=kind,
    )


def _number_beside(take: JsonFields, key: str) -> float:
    """theta at the top level. A null is an error, as it is in transformers."""
    return take.number(key) if key in take.raw else take.number(key, getattr(PUBLISHED, key))


def _partial(raw: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    key = "partial_rotary_factor"
    return rope[key] if key in rope else 1 if raw.get(key) is None else raw[key]


def _take_yarn(take: JsonFields, inner: JsonFields, max_positions: int) -> dict[str, Any]:
    if (partial := _partial(take.raw, inner.raw)) != 1:
        line = "config field partial_rotary_factor is not 1: gpt-oss turns whole heads, and transformers fails on it"
        raise BadInput(line, file=take.file, expected=1, got=partial)
    context = _take_context(take, inner, max_positions)
    if "factor" not in inner.raw:
        raise BadInput("config field factor must be a number", file=take.file, got="nothing")
    factor = inner.number("factor", max_positions / max(context, 1))  # null is the ratio of the lengths
    return {
        "rope_scaling_factor": factor,
        "initial_context_length": context,
        "yarn_beta_fast": inner.number("beta_fast", PUBLISHED.yarn_beta_fast) or PUBLISHED.yarn_beta_fast,
        "yarn_beta_slow": inner.number("beta_slow", PUBLISHED.yarn_beta_slow) or PUBLISHED.yarn_beta_slow,
        "yarn_truncate": inner.boolean("truncate", "truncate" not in inner.raw),  # absent: rounded; null: not
        "attention_factor": inner("attention_factor", _mscale_factor(inner, factor)),
    }


def _take_context(take: JsonFields, inner: JsonFields, max_positions: int) -> int:
    """What the model was trained with before YaRN; unsaid, transformers takes the whole context."""
    key = "original_max_position_embeddings"
    return (take if key in take.raw else inner).integer(key, None if key in (*take.raw, *inner.raw) else max_positions)


def _mscale_factor(inner: JsonFields, factor: float) -> float | None:
    """DeepSeek's spelling of the attention factor; it counts where both keys are given and not 0."""
    above, below = inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
    if not above or not below:
        return None
    grown = math.log(max(factor, 1.0))
    return (0.1 * above * grown + 1.0) / (0.1 * below * grown + 1.0)
