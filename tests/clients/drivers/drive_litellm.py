"""LiteLLM: its Chat interface over an OpenAI-compatible server, by the names of two providers."""

from __future__ import annotations

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices
import litellm
from drivers.drive_openai import describe_chat, list_chat_options, run_tools
from drivers.tools import KEY, Calls


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
    return describe_chat(answer, calls, flow)
