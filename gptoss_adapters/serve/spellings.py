"""What other servers call the arguments that this one has: llama.cpp's, vLLM's, Ollama's, OpenRouter's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptoss_adapters.serve.errors import Json, bad_request

_LIMITS = ("max_output_tokens", "max_completion_tokens", "max_tokens", "n_predict", "num_predict")
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "num_predict",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Ollama's `options` -> the argument that means the same."""
_HIDING = ("hidden", "omit")  # values of reasoning_format


def respell(raw: Json, responses: bool) -> tuple[Json, list[str]]:
    """The request with its other spellings as the API's own, and the paths of what is inside them and has no meaning
    here. What the request says in the API's own words wins. Raises ApiError for values of a wrong type.
    """
    out = dict(raw)
    odd: list[str] = []
    _spread_options(out, odd)
    _choose_limit(out, "max_output_tokens" if responses else "max_completion_tokens")
    _choose_effort(out, odd, responses)
    if not responses:
        _rename_functions(out)
        _choose_reasoning(out)
    return out, odd


def _spread_options(out: Json, odd: list[str]) -> None:
    options = _take_object(out, "options")
    for name, value in options.items():
        if name in _OPTIONS:
            out.setdefault(_OPTIONS[name], value)
        else:
            odd.append(f"options.{name}")


def _choose_limit(out: Json, name: str) -> None:
    """-1 is no limit, as llama.cpp, Ollama and LM Studio have it."""
    given = {key: out.pop(key) for key in (name, *_LIMITS) if out.get(key) is not None}
    for key, value in given.items():
        if value == -1 and not isinstance(value, bool):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**31:
            raise bad_request(f"{key}: expected an integer of 1..{2**31}, or -1 for no limit (got {value!r:.100})", key)
        out.setdefault(name, value)


def _choose_effort(out: Json, odd: list[str], responses: bool) -> None:
    found = _find_efforts(out, odd, responses)
    reasoning = out.get("reasoning")
    if not isinstance(reasoning, dict):
        reasoning = {}
    if (not responses and out.get("reasoning_effort") is not None) or reasoning.get("effort") is not None:
        return
    effort = next((value for value in found if value is not None), None)
    if effort is None:
        return
    if responses:
        out["reasoning"] = reasoning | {"effort": effort}
    else:
        out["reasoning_effort"] = effort


def _find_efforts(out: Json, odd: list[str], responses: bool) -> list[str | None]:
    found: list[str | None] = []
    if responses and "reasoning_effort" in out:
        found.append(_read_effort(out.pop("reasoning_effort"), "reasoning_effort"))
    template = _take_object(out, "chat_template_kwargs")
    readers: dict[str, Callable[[Any, str], str | None]] = {
        "reasoning_effort": _read_effort,
        "think": _read_thinking,
        "thinking": _read_thinking,
        "enable_thinking": _read_thinking,
    }
    for name, value in template.items():
        if name in readers:
            found.append(readers[name](value, f"chat_template_kwargs.{name}"))
        else:
            odd.append(f"chat_template_kwargs.{name}")
    for name in ("think", "thinking", "enable_thinking"):
        if name in out:
            found.append(_read_thinking(out.pop(name), name))
    reasoning = out.get("reasoning")
    if isinstance(reasoning, dict) and "enabled" in reasoning:
        found.append(_read_thinking(reasoning["enabled"], "reasoning.enabled"))
        out["reasoning"] = {key: value for key, value in reasoning.items() if key != "enabled"}
    return found


def _read_effort(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{where}: expected low, medium or high (got {value!r:.100})", where)
    return value


def _read_thinking(value: Any, where: str) -> str | None:
    """On (nothing to say), off (none), an effort, or Anthropic's object."""
    if isinstance(value, dict):
        value = value.get("type")
    if value is None or value is True or value in ("enabled", "adaptive"):
        return None
    if value is False or value == "disabled":
        return "none"
    if not isinstance(value, str):
        raise bad_request(f"{where}: expected true, false or an effort (got {value!r:.100})", where)
    return value


def _choose_reasoning(out: Json) -> None:
    """Whether the answer shows the chain of thought."""
    reasoning = out.get("reasoning")
    if isinstance(reasoning, dict) and "exclude" in reasoning:
        out["reasoning"] = {key: value for key, value in reasoning.items() if key != "exclude"}
        out.setdefault("include_reasoning", not reasoning["exclude"])
    if out.get("reasoning_format") in _HIDING:
        del out["reasoning_format"]
        out.setdefault("include_reasoning", False)


def _rename_functions(out: Json) -> None:
    """The functions of 2023 are tools; `LACKING` says that their calls come back as calls of tools."""
    functions = out.get("functions")
    if isinstance(functions, list) and functions and not out.get("tools"):
        out["tools"] = [{"type": "function", "function": function} for function in functions]
    choice = out.get("function_call")
    if choice is not None and out.get("tool_choice") is None and out.get("tools"):
        named = isinstance(choice, dict)
        out["tool_choice"] = {"type": "function", "function": choice} if named else choice


def _take_object(out: Json, name: str) -> Json:
    value = out.pop(name, None)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"{name}: expected an object (got {type(value).__name__})", name)
    return value
