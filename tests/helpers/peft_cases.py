"""Adapters that PEFT makes from a seed, on a base of a few kilobytes, and what PEFT itself merges them to."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import ODD_SHAPE, SeedMade
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.spec import GptOssConfig

TINY = dataclasses.replace(
    ODD_SHAPE,
    num_hidden_layers=2,
    layer_types=(),
    num_experts=3,
    experts_per_token=2,
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=80,
    pad_token_id=81,
    eos_token_id=82,
)
STARTS_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")
STARTS_THAT_PEFT_RUNS = ("pissa", "pissa_niter_2", "olora", "OLoRA")
STARTS_TOLD = ("corda", "loftq", "lora_ga")  # they need data or a quantiser: PEFT's config is edited to say so
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj")
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_PARAMETERS: tuple[list[str], ...] = (
    [*_EXPERTS],
    [*_EXPERTS[::-1]],
    [_EXPERTS[0]],
    [_EXPERTS[1]],
    ["experts.gate_up_proj", "experts.gate_up_proj_bias", "experts.down_proj"],
    ["0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"],
    ["0.mlp.experts.gate_up_proj", "0.mlp.experts.down_proj", "1.mlp.experts.gate_up_proj"],
    ["mlp.router.weight"],
    ["router.weight", *_EXPERTS],
    ["down_proj_bias"],
)
_RANKS: tuple[dict[str, int], ...] = (
    {"q_proj": 4},
    {r".*0\.self_attn\.(q|v)_proj": 2, "v_proj": 4},
    {r"^model\.layers\.1\.self_attn\.[kqv]_proj": 6},
    {"gate_up_proj": 2, "experts.down_proj": 4},
    {r"layers\.(?:0|1)\.mlp\.experts\.(gate_up|down)_proj": 2},
    {"router": 4, "router.weight": 2},
    {r"(q)_proj": 2, r"self_attn\..+": 4},
    {"model.layers.0.self_attn.q_proj": 2, "lm_head": 4},
)
_ALPHAS: tuple[dict[str, float], ...] = (
    {"v_proj": 11},
    {r"layers\.1\..*": 3.5},
    {"embed_tokens": 9, "lm_head": 1},
    {r"experts\.down_proj$": 7},
    {r"^.*\.(?P<which>[qo])_proj": 2},
)
_SAVED: tuple[list[str], ...] = (
    ["router"],
    ["o_proj"],
    ["norm"],
    ["lm_head"],
    ["embed_tokens", "lm_head"],
    ["1.mlp"],
    ["0.self_attn"],
    ["experts"],
    ["input_layernorm", "router"],
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What LoraConfig is given, and what is done around it. `refused`: a word of the error, for what no sum can say."""

    options: dict[str, Any]
    vocabulary: int = TINY.vocab_size
    told: str | None = None
    refused: str | None = None


def write_tiny(folder: Path, config: GptOssConfig = TINY) -> Path:
    folder.mkdir(parents=True)
    write(plan_checkpoint(SeedMade(config, 0), "hf-bf16", folder, {}, "tiny"), sync=False, read_back=False)
    return folder


def load_tiny(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_case(seed: int) -> Case:
    """One combination; every eighth starts from a changed base."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"r": rng.choice((2, 4, 8)), "lora_alpha": rng.choice((1, 8, 12.5))}
    options["use_rslora"] = rng.random() < 0.3
    if seed % 8 == 7:
        start = rng.choice((*STARTS_THAT_PEFT_RUNS, *STARTS_TOLD))
        told = start if start in STARTS_TOLD else None
        options |= {"target_modules": ["q_proj", "v_proj"]} | ({} if told else {"init_lora_weights": start})
        return Case(options, told=told, refused="init_lora_weights")
    if seed % 3 == 1:
        options |= {"target_modules": [], "target_parameters": rng.choice(_PARAMETERS)}
    else:
        options |= _choose_modules(rng)
    if rng.random() < 0.5:
        options["rank_pattern"] = rng.choice(_RANKS)
    if rng.random() < 0.5:
        options["alpha_pattern"] = rng.choice(_ALPHAS)
    if seed % 4 == 2:
        options |= _choose_saved(rng, options)
    elif seed % 4 == 3:
        options["trainable_token_indices"] = rng.choice(([5, 2, 87], {"embed_tokens": [1], "lm_head": [0, 87]}))
        options["target_modules"] = ["q_proj", "o_proj"]
        options.pop("target_parameters", None)
    elif rng.random() < 0.5 and not options.get("target_parameters"):
        options["bias"] = rng.choice(("all", "lora_only"))
    vocabulary = rng.choice((TINY.vocab_size, TINY.vocab_size, 104, 88))
    lonely = len({"lm_head", "embed_tokens"} & set(options["target_modules"])) == 1
    # PEFT then saves the resized table of the one that it adapts, and leaves the other one out
    return Case(options, vocabulary, refused="resizes the vocabulary" if lonely and vocabulary != 96 else None)


def _choose_saved(rng: random.Random, options: dict[str, Any]) -> dict[str, Any]:
    """modules_to_save, beside which PEFT adapts no part of the same module."""
    if options.get("target_parameters"):
        return {"modules_to_save": rng.choice((["o_proj"], ["norm"], ["lm_head"]))}
    saved = rng.choice(_SAVED)
    linear = [m for m in options["target_modules"] if m in LINEAR and m not in saved]
    return {"modules_to_save": saved, "target_modules": linear or ["k_proj"]}


def _choose_modules(rng: random.Random) -> dict[str, Any]:
    start = rng.choice(STARTS_KEPT)
    chosen = rng.sample(LINEAR, rng.randint(1, 4))
    if start in (True, False, "gaussian"):
        chosen += rng.sample(("lm_head", "embed_tokens"), rng.randint(0, 2))
    out: dict[str, Any] = {"init_lora_weights": start, "target_modules": chosen}
    kind = rng.randrange(6)
    if kind == 1:
        out["target_modules"] = r".*\.(?:q|o)_proj"
    elif kind == 2:
        out |= {"target_modules": "all-linear"}
    elif kind == 3:
        out |= {"target_modules": [*LINEAR], "layers_to_transform": rng.choice(([1], 0))}
        out |= rng.choice(({}, {"layers_pattern": "layers"}, {"layers_pattern": ["blocks", "lay.rs"]}))
    elif kind == 4:
        out |= {"target_modules": [*LINEAR], "exclude_modules": rng.choice((["0.self_attn.q_proj"], r".*1.*\.v_proj"))}
    return out


def make_adapter(model: Any, case: Case, seed: int, out: Path) -> None:
    """Trains nothing: every parameter that training would move is moved at random, and PEFT saves."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _resize(base, case, seed)
        peft = get_peft_model(base, LoraConfig(**case.options))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in peft.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.1
        peft.save_pretrained(out)
    if case.told:
        config = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": case.told}))


def merge_by_peft(model: Any, case: Case, seed: int, adapter: Path) -> dict[str, np.ndarray]:
    """What PEFT loads from the files and merges, float32, by transformers' names."""
    from peft import PeftModel

    base = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _resize(base, case, seed)
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    return {name: tensor.detach().float().numpy() for name, tensor in merged.state_dict().items()}


def _resize(model: Any, case: Case, seed: int) -> None:
    import torch

    if case.vocabulary != TINY.vocab_size:
        torch.manual_seed(seed)
        model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
