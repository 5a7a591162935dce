"""LoRA adapters that PEFT made, and its merged models' log-probabilities: `python -m helpers.lora_gold` in tests/.

PEFT and vLLM do not share an environment here, so the truth for vLLM's tests is kept in tests/data/adapters; a test in
PEFT's environment computes it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parents[1] / "data"
ADAPTERS = DATA / "adapters"
BASE = DATA / "checkpoints" / "tiny" / "hf-bf16"
LOGPROBS = "logprobs.npz"
PROMPT = [7, 19, 3, 250, 118, 42, 42, 9, 301, 77, 5, 160, 212, 33, 8, 91]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MADE: dict[str, dict[str, Any]] = {
    "attention": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": ["mlp.router.weight"],
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"o_proj": 9},
    },
    "experts": {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "use_rslora": True},
    "down_alone": {"target_modules": [], "target_parameters": EXPERTS[1:]},
}


def load_base() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")


def read_logprobs(adapter: Path) -> npt.NDArray[np.float64]:
    """[T, V] of PEFT's merged model in float32, after each token of the prompt."""
    import torch
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_base(), adapter).merge_and_unload().eval()
    with torch.no_grad():
        logits = merged(torch.tensor([PROMPT])).logits[0]
    return torch.log_softmax(logits.double(), -1).numpy()


def make(name: str, out: Path) -> None:
    """An adapter of random numbers, large enough to be seen."""
    import torch
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(load_base(), LoraConfig(**{"r": 2, "lora_alpha": 4, **MADE[name]}))
    generator = torch.Generator().manual_seed(len(name))
    for parameter_name, parameter in peft.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    peft.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny"  # not where this machine has it
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def main() -> None:
    for name in MADE:
        make(name, ADAPTERS / name)
        np.savez_compressed(ADAPTERS / name / LOGPROBS, logprobs=read_logprobs(ADAPTERS / name).astype(np.float32))


if __name__ == "__main__":
    main()
