"""What PEFT's `adapter_config.json` says: what is refused, which modules are meant, their factors, who saved it.

Every key is on a list of peft_keys.py; one that is on none is refused unless it says nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.patterns import Patterns, TooSlow
from gptoss_adapters.checkpoint.adapters.peft_keys import (
    CHANGED_BASE,
    HARMLESS,
    KINDLY_INITIALISED,
    METHODS,
    REFUSED,
    USED,
)
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.errors import BadInput

PEFT, UNSLOTH = "peft", "unsloth"
MERGE_ELSEWHERE = "merge it with the tool that made it"
ALL_LINEAR = "all-linear"
EXPERT_PARAMETERS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""In the order in which transformers' module lists them, and PEFT therefore wraps them: the first is the innermost."""


class AdapterConfig:
    """The values of the config of `files`, checked. Raises BadInput for an adapter that is more, or other, than a sum
    with B A and whole tensors.
    """

    def __init__(self, files: AdapterFiles) -> None:
        self.files = files
        self.values = files.values
        self.patterns = Patterns()
        self._check_method()
        self._check_keys()
        self._check_start()
        self._check_types()

    def _check_method(self) -> None:
        kind = self.values.get("peft_type") or "LORA"
        if kind != "LORA":
            name = METHODS.get(str(kind), "unknown to us")
            raise self.files.fail(f"peft_type is not LoRA, but {name}", expected="LORA", got=kind, hint=MERGE_ELSEWHERE)

    def _check_keys(self) -> None:
        for key, value in self.values.items():
            if key in USED or key in HARMLESS or _says_nothing(value):
                continue
            if key in REFUSED:
                raise self.files.fail(f"the adapter uses {REFUSED[key]}: not a sum with B A", hint=MERGE_ELSEWHERE)
            raise self.files.fail(
                f"{key} is a key that we do not know: it may change what the adapter means",
                got=value,
                hint=MERGE_ELSEWHERE,
            )

    def _check_start(self) -> None:
        """How A and B began: some ways take the first B A out of the base, which the file does not hold."""
        start = self.values.get("init_lora_weights", True)
        word = str(start).lower()
        if start in (None, True, False) or word in KINDLY_INITIALISED:
            return
        changed = next((name for prefix, name in CHANGED_BASE.items() if word.startswith(prefix)), None)
        if changed is None:
            raise self.files.fail("init_lora_weights is a start that we do not know", got=start, hint=MERGE_ELSEWHERE)
        raise self.files.fail(
            f"init_lora_weights is {start}: {changed} changed the base first, and the adapter belongs to that one",
            hint="convert it by save_pretrained(path_initial_model_for_weight_conversion=...), or merge it in PEFT",
        )

    def _check_types(self) -> None:
        for key, (fits, what) in _TYPES.items():
            value = self.values.get(key)
            if value is not None and not fits(value):
                raise self.files.fail(f"{key} must be {what}", got=value)
        bias = self.values.get("bias") or "none"
        if bias not in ("none", "all", "lora_only"):
            raise self.files.fail("bias is a value that we do not know", expected="none, all or lora_only", got=bias)

    def factor(self, key: str, rank: int, source: Source, scale: float, *, any_rank: bool = False) -> float:
        """scale * alpha / r (or / sqrt(r)) of a module or parameter, by the config's patterns. Raises BadInput when r
        is not `rank`, unless `any_rank`.
        """
        r = self._find_pattern("rank_pattern", key, self.values.get("r"))
        alpha = self._find_pattern("alpha_pattern", key, self.values.get("lora_alpha"))
        if not _is_count(r) or not _is_number(alpha):
            raise self.files.fail("r must be a positive integer and lora_alpha a number", got=f"{r}, {alpha}")
        if r != rank and not any_rank:
            raise self.files.fail("the rank is not the one that the config says", source, expected=r, got=rank)
        return float(scale * alpha / (math.sqrt(r) if self.values.get("use_rslora") else r))

    def _find_pattern(self, field: str, key: str, default: Any) -> Any:
        """The value of the first pattern that fits the name."""
        for pattern, value in (self.values.get(field) or {}).items():
            if self._ask(field, pattern, lambda p: self.patterns.fits_suffix(p, key)):
                return value
        return default

    def _ask(self, field: str, pattern: str, fits: Callable[[str], bool]) -> bool:
        try:
            return fits(pattern)
        except re.error:
            raise self.files.fail(f"{field} holds what is not a pattern", got=pattern) from None
        except TooSlow:
            raise self.files.fail(f"{field} holds a pattern that takes too long to match", got=pattern) from None

    # Which modules PEFT would load -----------------------------------------------------------------------------------

    def choose_key(self, module: str) -> str | None:
        """The name by which rank_pattern and alpha_pattern mean a linear layer; None when PEFT would not adapt it."""
        parameter = f"{module}.weight"
        if self._targets_parameter(parameter):
            return parameter
        return module if self._targets_module(module) else None

    def _targets_parameter(self, parameter: str) -> bool:
        named = self.values.get("target_parameters") or []
        return any(parameter == name or parameter.endswith(f".{name}") for name in named)

    def _targets_module(self, module: str) -> bool:
        targets = self.values.get("target_modules")
        if targets is None or targets == ALL_LINEAR:
            return not (targets is None and self.values.get("target_parameters")) and not self._is_excluded(module)
        if self._is_excluded(module):
            return False
        if isinstance(targets, str):
            return self._ask("target_modules", targets, lambda p: self.patterns.fits(p, module))
        return module in targets or (_ends_with_one(module, targets) and self._is_chosen_layer(module))

    def _is_excluded(self, module: str) -> bool:
        excluded = self.values.get("exclude_modules") or []
        if isinstance(excluded, str):
            if self._ask("exclude_modules", excluded, lambda p: self.patterns.fits(p, module)):
                return True
        elif module in excluded or _ends_with_one(module, excluded):
            return True
        saved = self.values.get("modules_to_save") or []
        return any(self._ask("modules_to_save", m, lambda p: self.patterns.fits_part(p, module)) for m in saved)

    def _is_chosen_layer(self, module: str) -> bool:
        """layers_to_transform, which PEFT asks for names that a list of targets matches by their end."""
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        named = self.values.get("layers_pattern") or []
        words = [named] if isinstance(named, str) else list(named)
        try:
            layer = self.patterns.find_layer(module, words)
        except re.error:
            raise self.files.fail("layers_pattern holds what is not a pattern", got=named) from None
        except TooSlow:
            raise self.files.fail("layers_pattern holds a pattern that takes too long to match", got=named) from None
        return layer is not None and layer in ([layers] if isinstance(layers, int) else layers)

    def list_wrapped(self, layer: int) -> list[str]:
        """The experts' parameters that target_parameters names in a layer, the innermost wrapper first."""
        at = f"model.layers.{layer}.mlp.experts"
        return [name for name in EXPERT_PARAMETERS if self._targets_parameter(f"{at}.{name}")]

    def tell_tokens(self, module: str) -> list[int]:
        """trainable_token_indices of an embedding: a list is the input embedding's."""
        said = self.values.get("trainable_token_indices")
        named: dict[str, list[int]] = said if isinstance(said, dict) else {"embed_tokens": said or []}
        return next((tokens for name, tokens in named.items() if module.endswith(name)), [])

    def tell_order(self, source: Source) -> str:
        """Who saved it: PEFT lets the expert run fastest in B's columns, Unsloth the rank; the shapes are the same.
        Raises BadInput when it does not say.
        """
        mapping = self.values.get("auto_mapping")
        if isinstance(mapping, dict) and mapping.get("unsloth_fixed"):
            return UNSLOTH
        hinted = "unsloth" in str(self.values.get("base_model_name_or_path", "")).lower()
        if self.values.get("peft_version") and not hinted:
            return PEFT
        raise self.files.fail(
            "PEFT and Unsloth order the columns of a fused expert adapter differently, and this one does not say "
            "who made it",
            source,
            hint="add --lora-order peft or --lora-order unsloth",
        )


def _says_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {}, 0)


def _ends_with_one(module: str, names: list[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_tokens(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
        return False
    return min(value, default=0) >= 0 and len(set(value)) == len(value)


def _is_token_table(value: object) -> bool:
    return _is_tokens(value) or (isinstance(value, dict) and all(_is_tokens(v) for v in value.values()))


_NAMES = (_is_names, "a list of names")
_NAMES_OR_PATTERN = (lambda v: isinstance(v, str) or _is_names(v), "a list of names or a pattern")
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_rslora": (lambda v: isinstance(v, bool), "true or false"),
    "rank_pattern": (
        lambda v: isinstance(v, dict) and all(_is_count(r) for r in v.values()),
        "an object of positive integers",
    ),
    "alpha_pattern": (
        lambda v: isinstance(v, dict) and all(_is_number(a) for a in v.values()),
        "an object of numbers",
    ),
    "target_modules": _NAMES_OR_PATTERN,
    "exclude_modules": _NAMES_OR_PATTERN,
    "layers_pattern": _NAMES_OR_PATTERN,
    "target_parameters": _NAMES,
    "modules_to_save": _NAMES,
    "layers_to_transform": (
        lambda v: all(isinstance(n, int) and not isinstance(n, bool) for n in (v if isinstance(v, list) else [v])),
        "a layer's number or a list of them",
    ),
    "trainable_token_indices": (_is_token_table, "a list of different token ids, or such a list per embedding"),
}


def explain_left_out(files: AdapterFiles, source: Source) -> BadInput:
    """For a tensor that the file holds and the config does not ask for."""
    return files.fail(
        "the config does not target this module: PEFT would load the adapter without the tensor",
        source,
        got=f"target_modules {files.values.get('target_modules')}",
        hint=f"correct target_modules in {files.config.name}, or take the tensor out",
    )
