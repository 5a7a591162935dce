"""What an adapter's `adapter_config.json` says: what is refused, factors by module, and who saved it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_adapters.errors import BadInput

CONFIG = "adapter_config.json"
PEFT, UNSLOTH = "peft", "unsloth"
MERGE_ELSEWHERE = "merge it with the tool that made it"
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own (lora_bias)",
    "fan_in_fan_out": "fan_in_fan_out",
    "use_qalora": "QALoRA",
}


@dataclass(frozen=True)
class AdapterConfig:
    """The values of the file in `folder`; `weights` is the file of tensors, which errors about a tensor name."""

    values: dict[str, Any]
    folder: Path
    weights: Path

    def fail(
        self, what: str, tensor: str | None = None, expected: object = None, got: object = None, hint: str | None = None
    ) -> BadInput:
        """What is wrong with a tensor, or else with the config."""
        file = self.weights if tensor else self.folder / CONFIG
        return BadInput(what, file=file, tensor=tensor, expected=expected, got=got, hint=hint)

    def check(self) -> None:
        """Raises BadInput for an adapter that is more, or other, than a sum with B A."""
        kind = self.values.get("peft_type", "LORA")
        if kind != "LORA":
            raise self.fail("peft_type is not LoRA", expected="LORA", got=kind, hint=MERGE_ELSEWHERE)
        for field, what in _REFUSED.items():
            if self.values.get(field):
                raise self.fail(f"the adapter uses {what}, which is not a sum with B A", hint=MERGE_ELSEWHERE)
        if self.values.get("bias", "none") != "none":
            raise self.fail(
                "the adapter trained biases of the base",
                expected="bias none",
                got=self.values["bias"],
                hint=MERGE_ELSEWHERE,
            )

    def factor(self, module: str, rank: int, tensor: str, scale: float) -> float:
        """scale * alpha / r (or / sqrt(r)) of a module, by the config's patterns. Raises BadInput when r is not
        `rank`.
        """
        r = self._match("rank_pattern", module, self.values.get("r"))
        alpha = self._match("alpha_pattern", module, self.values.get("lora_alpha"))
        if not isinstance(r, int) or isinstance(r, bool) or r < 1 or not isinstance(alpha, int | float):
            raise self.fail("r must be a positive integer and lora_alpha a number", got=f"{r}, {alpha}")
        if r != rank:
            raise self.fail("the rank is not the one that the config says", tensor=tensor, expected=r, got=rank)
        return float(scale * alpha / (math.sqrt(r) if self.values.get("use_rslora") else r))

    def _match(self, field: str, module: str, default: Any) -> Any:
        """The value of the first pattern that fits the module."""
        patterns = self.values.get(field) or {}
        if not isinstance(patterns, dict):
            raise self.fail(f"{field} must be an object", got=patterns)
        for pattern, value in patterns.items():
            try:
                if re.fullmatch(rf"(?:.*\.)?({pattern})", module):
                    return value
            except re.error:
                raise self.fail(f"{field} holds what is not a pattern", got=pattern) from None
        return default

    def tell_parameter(self, tensor: str) -> str:
        """gate_up or down: the one fused parameter that the config names. Raises BadInput unless there is one."""
        targets = self.values.get("target_parameters")
        said = {which for name in targets or () for which in ("gate_up", "down") if str(name).endswith(f"{which}_proj")}
        if len(said) != 1:
            raise self.fail(
                "which of the experts' parameters it is for is not said",
                tensor=tensor,
                expected="target_parameters with gate_up_proj or down_proj",
                got=targets,
            )
        return said.pop()

    def tell_order(self, tensor: str) -> str:
        """Who saved it: PEFT lets the expert run fastest in B's columns, Unsloth the rank; the shapes are the same.
        Raises BadInput when it does not say.
        """
        mapping = self.values.get("auto_mapping")
        if isinstance(mapping, dict) and mapping.get("unsloth_fixed"):
            return UNSLOTH
        hinted = "unsloth" in str(self.values.get("base_model_name_or_path", "")).lower()
        if self.values.get("peft_version") and not hinted:
            return PEFT
        raise self.fail(
            "PEFT and Unsloth order the columns of a fused expert adapter differently, and this one does not say "
            "who made it",
            tensor=tensor,
            hint="add --lora-order peft or --lora-order unsloth",
        )
