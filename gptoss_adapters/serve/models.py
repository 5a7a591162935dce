"""GET /v1/models: what clients read there, each server's words for it beside OpenAI's; Anthropic's form for its own
clients, which say so by a header.
"""

from __future__ import annotations

from datetime import UTC, datetime

from gptoss_adapters.backends.protocol import Info
from gptoss_adapters.serve.errors import Json
from gptoss_adapters.serve.exchange import Exchange
from gptoss_adapters.serve.service import Service, refuse_model

OWNER = "gptoss-adapters"
_ALWAYS = (
    "include_reasoning",
    "max_tokens",
    "min_p",
    "parallel_tool_calls",
    "reasoning",
    "response_format",
    "seed",
    "stop",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
)
_PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")


async def list_models(service: Service, exchange: Exchange, _: dict[str, str]) -> None:
    names = service.settings.models
    data = [_describe(service, exchange, name) for name in names]
    if _is_for_anthropic(exchange):
        await exchange.json({"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})
    else:
        await exchange.json({"object": "list", "data": data})


async def retrieve_model(service: Service, exchange: Exchange, path: dict[str, str]) -> None:
    if path["model"] not in service.settings.models and not service.settings.any_model:
        raise refuse_model(service.settings.models)
    await exchange.json(_describe(service, exchange, path["model"]))


def _is_for_anthropic(exchange: Exchange) -> bool:
    return bool(exchange.header("anthropic-version"))


def _describe(service: Service, exchange: Exchange, name: str) -> Json:
    if _is_for_anthropic(exchange):
        return _describe_to_anthropic(name, service.created, service.info.n_ctx)
    return describe_model(name, service.created, service.info)


def describe_model(name: str, created: int, info: Info) -> Json:
    """OpenAI's four fields, then what vLLM, OpenRouter, Groq, LM Studio and llama.cpp call the context and what a model
    can do.
    """
    n_ctx = info.n_ctx
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "name": name,
        "max_model_len": n_ctx,
        "context_length": n_ctx,
        "context_window": n_ctx,
        "max_context_length": n_ctx,
        "capabilities": ["tool_use", "reasoning"],
        "architecture": {
            "modality": "text->text",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "tokenizer": "o200k_harmony",
            "instruct_type": "harmony",
        },
        "supported_parameters": sorted(_list_parameters(info)),
        "top_provider": {"context_length": n_ctx, "max_completion_tokens": n_ctx, "is_moderated": False},
        "meta": {"n_ctx": n_ctx, "n_vocab": info.vocab_size},
    }


def _list_parameters(info: Info) -> list[str]:
    """OpenRouter's names of what changes an answer, as far as the engine does it."""
    can = info.capabilities
    found = [*_ALWAYS]
    if can.grammar:
        found.append("structured_outputs")
    if can.penalties != "none":
        found += _PENALTIES
    if can.logit_bias:
        found.append("logit_bias")
    if can.output != "text":
        found += ["logprobs", "top_logprobs"]
    return found


def _describe_to_anthropic(name: str, created: int, n_ctx: int) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": n_ctx,
        "max_tokens": n_ctx,
    }
