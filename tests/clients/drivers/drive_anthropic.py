"""anthropic: the Messages API, with a loop written by hand."""

from __future__ import annotations

import json
from typing import Any

from anthropic import Anthropic
from drivers.tools import KEY, MODEL, PERSON, SAME, TOOLS, Calls, list_settings


def clients(url: str) -> dict[str, Any]:
    client = Anthropic(base_url=url.removesuffix("/v1"), api_key=KEY, max_retries=0)
    return {"anthropic": lambda flow, stream: ask(client, flow, stream)}


def ask(client: Anthropic, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    calls = Calls()
    options = list_options(flow)
    messages: list[Any] = []
    for question in flow["asks"]:
        turn: Any = question
        while turn:
            messages.append({"role": "user", "content": turn})
            answer = send(client, stream, messages=messages, **options)
            messages.append({"role": "assistant", "content": answer.content})
            turn = [
                {"type": "tool_result", "tool_use_id": block.id, "content": calls.run(block.name, block.input)}
                for block in answer.content
                if block.type == "tool_use"
            ]
    text = "".join(block.text for block in answer.content if block.type == "text")
    return {
        "text": text,
        "reasoning": "".join(block.thinking for block in answer.content if block.type == "thinking"),
        "calls": calls,
        "data": json.loads(text) if "schema" in flow else None,
        "finish": {"max_tokens": "length"}.get(answer.stop_reason, answer.stop_reason),
        "output_tokens": answer.usage.output_tokens,
    }


def list_options(flow: dict[str, Any]) -> dict[str, Any]:
    """The SDK has no sampling settings of its own any more; the API has."""
    options: dict[str, Any] = {
        "model": flow.get("model", MODEL),
        "max_tokens": flow.get("max_tokens", 1000),
        "extra_body": list_settings(flow, **SAME),
        **list_settings(flow, system="system", stop="stop_sequences"),
    }
    output: dict[str, Any] = {}
    if "effort" in flow:
        output["effort"] = flow["effort"]
    if "schema" in flow:
        output["format"] = {"type": "json_schema", "schema": PERSON}
    if output:
        options["output_config"] = output
    if "tools" in flow:
        options["tools"] = [{"name": n, "description": d, "input_schema": p} for n, (d, p) in TOOLS.items()]
    if "tool_choice" in flow:
        options["tool_choice"] = {"type": flow["tool_choice"]}
    return options


def send(client: Anthropic, stream: bool, **arguments: Any) -> Any:
    if not stream:
        return client.messages.create(**arguments)
    with client.messages.stream(**arguments) as events:
        said = "".join(events.text_stream)
        answer = events.get_final_message()
    assert said == "".join(block.text for block in answer.content if block.type == "text")
    return answer
