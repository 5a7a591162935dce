"""Models that are like gpt-oss and are not it: known by what their config states, with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput

OURS = ("gpt_oss", "gpt_oss_puzzle")  # the latter, whose layers differ, by its block_configs
_RELATIVES = {  # part of model_type, of a class, or of the base that a draft is for -> (what it is, what to do)
    "openai_privacy_filter": (
        "is OpenAI's privacy filter, which labels tokens and writes none",
        "use transformers' OpenAIPrivacyFilterForTokenClassification",
    ),
    "eagle": (
        "is an EAGLE draft, which guesses for another model",
        "give it to an engine beside its model: vLLM's --speculative-config, llama-server's --model-draft",
    ),
    "speculator": (
        "is a draft of the speculators library, which guesses for another model",
        "give it to an engine beside its model: vLLM's --speculative-config",
    ),
    "medusa": ("is a set of Medusa heads, which guess for another model", "give it to an engine beside its model"),
    "forsequenceclassification": ("is a classifier, without an output head over the vocabulary", "use transformers"),
    "fortokenclassification": ("is a classifier, without an output head over the vocabulary", "use transformers"),
    "forquestionanswering": ("marks answers in a text, and has no output head", "use transformers"),
}


def refuse_relatives(raw: Mapping[str, Any], file: str) -> None:
    """Raises BadInput for the config of any model but gpt-oss; for one that people take for it, with a way on."""
    model_type = raw.get("model_type", "gpt_oss")
    classes = raw.get("architectures")
    stated = [raw.get("speculators_model_type"), raw.get("speculators_config") and "speculator", model_type]
    words = [str(word).lower() for word in (*stated, *(classes if isinstance(classes, list) else ())) if word]
    for mark, (what, way) in _RELATIVES.items():
        if any(mark in word for word in words):
            raise BadInput(f"the model {what}", file=file, expected="gpt_oss", got=_name(raw), hint=way)
    if "draft_vocab_size" in raw:
        what, way = _RELATIVES["eagle"]
        raise BadInput(f"the model {what}", file=file, expected="gpt_oss", got=_name(raw), hint=way)
    if model_type not in OURS:
        raise BadInput("config field model_type is not one of gpt-oss", file=file, expected="gpt_oss", got=model_type)
    if model_type == "gpt_oss_puzzle" and not raw.get("block_configs"):
        raise BadInput("a gpt_oss_puzzle config without block_configs does not say what its layers are", file=file)


def _name(raw: Mapping[str, Any]) -> str:
    classes = raw.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else str(raw.get("model_type"))
