"""LiteLLM: its Chat interface over an OpenAI-compatible server, by the names of two providers."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices
import litellm
from drivers.drive_openai import list_chat_options, run_tools
from drivers.tools import KEY, Calls, is_json


def clients(url: str) -> dict[str, Any]:
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return {
        f"litellm {provider}": lambda flow, stream, provider=provider: chat(provider, url, flow, stream)
        for provider in ("openai", "hosted_vllm")
    }


def chat(provider: str, url: str, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    calls = Calls()
    options = list_chat_options(flow)
    options |= {"model": f"{provider}/{options['model']}", "api_base": url, "api_key": KEY, "num_retries": 0}
    if stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    messages: list[Any] = [{"role": "system", "content": flow["system"]}] if "system" in flow else []

    def ask() -> Any:
        answer: Any = litellm.completion(messages=messages, **options)
        return litellm.stream_chunk_builder(list(answer), messages=messages) if stream else answer

    for question in flow["asks"]:
        messages.append({"role": "user", "content": question})
        answer = run_tools(calls, messages, ask)
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "reasoning": getattr(choice.message, "reasoning_content", None) or "",
        "calls": calls,
        "data": json.loads(choice.message.content) if is_json(flow) else None,
        "finish": choice.finish_reason,
        "output_tokens": answer.usage.completion_tokens,
    }
