"""openai: both APIs, with loops written by hand as the documentation has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from drivers.tool_types import answer_call, declare
from drivers.tools import KEY, MODEL, PENALTIES, PERSON, SAME, TOOLS, Calls, is_json, list_settings
from openai import OpenAI


def clients(url: str) -> dict[str, Any]:
    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
    return {
        "openai responses": lambda flow, stream: responses(client, flow, stream),
        "openai responses stored": lambda flow, stream: responses(client, flow, stream, "stored"),
        "openai responses stateless": lambda flow, stream: responses(client, flow, stream, "stateless"),
        "openai chat": lambda flow, stream: chat(client, flow, stream),
    }


def responses(client: OpenAI, flow: dict[str, Any], stream: bool, state: str = "") -> dict[str, Any]:
    """state: "stored", earlier turns are named by previous_response_id; else they are sent again, when "stateless" to
    a server that keeps nothing, with the chain of thought as encrypted content only.
    """
    calls = Calls()
    options = list_response_options(flow)
    if state == "stateless":
        options |= {"store": False, "include": ["reasoning.encrypted_content"]}
    history: list[Any] = []
    for question in flow["asks"]:
        turn: list[Any] = [{"role": "user", "content": question}]
        while turn:
            history = turn if state == "stored" else history + turn
            answer = respond(client, stream, input=history, **options)
            if state == "stored":
                options["previous_response_id"] = answer.id
            else:
                history += [dump(item, state == "stateless") for item in answer.output]
            turn = [answer_call(item, calls) for item in answer.output if item.type.endswith("_call")]
    return {
        "text": answer.output_text,
        "reasoning": "".join(c.text for item in answer.output if item.type == "reasoning" for c in item.content or []),
        "calls": calls,
        "data": json.loads(answer.output_text) if is_json(flow) else None,
        "finish": "length" if answer.status == "incomplete" else "stop",
        "output_tokens": answer.usage.output_tokens,
    }


def dump(item: Any, hides: bool) -> dict[str, Any]:
    return dict(item.model_dump(exclude_none=True, exclude={"content"} if hides and item.type == "reasoning" else None))


def list_response_options(flow: dict[str, Any]) -> dict[str, Any]:
    options = {
        "model": flow.get("model", MODEL),
        **list_settings(flow, **SAME, max_tokens="max_output_tokens", tool_choice="tool_choice"),
    }
    if "effort" in flow:
        options["reasoning"] = {"effort": flow["effort"]}
    if "system" in flow:
        options["instructions"] = flow["system"]
    if "tools" in flow:
        options["tools"] = declare(flow["tools"])
    if "schema" in flow:
        options["text"] = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    if "json_object" in flow:
        options["text"] = {"format": {"type": "json_object"}}
    return options


def respond(client: OpenAI, stream: bool, **arguments: Any) -> Any:
    if not stream:
        return client.responses.create(**arguments)
    said = ""
    answer: Any = None
    with client.responses.stream(**arguments) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                said += event.delta
            if event.type in ("response.completed", "response.incomplete"):
                answer = event.response
    assert answer.output_text == said
    return answer


def chat(client: OpenAI, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    calls = Calls()
    options = list_chat_options(flow)
    complete = complete_by_stream if stream else complete_at_once
    messages: list[Any] = [{"role": "system", "content": flow["system"]}] if "system" in flow else []
    for question in flow["asks"]:
        messages.append({"role": "user", "content": question})
        answer = run_tools(calls, messages, lambda: complete(client, messages=messages, **options))
    return describe_chat(answer, calls, flow) | {
        "texts": [choice.message.content for choice in answer.choices],
        "scored": join_tokens(answer.choices[0].logprobs),
    }


def join_tokens(logprobs: Any) -> str | None:
    """The text of the tokens that have log-probabilities."""
    return "".join(entry.token for entry in logprobs.content) if logprobs else None


def describe_chat(answer: Any, calls: Calls, flow: dict[str, Any]) -> dict[str, Any]:
    """What a flow's last completion comes to, as the table has it."""
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "reasoning": getattr(choice.message, "reasoning_content", None) or "",
        "calls": calls,
        "data": json.loads(choice.message.content) if is_json(flow) else None,
        "finish": choice.finish_reason,
        "output_tokens": answer.usage.completion_tokens,
    }


def run_tools(calls: Calls, messages: list[Any], ask: Callable[[], Any]) -> Any:
    """Asks until there is no more call; the answers and the results join the messages."""
    while True:
        answer = ask()
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or []:
            result = calls.run(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not message.tool_calls:
            return answer


def list_chat_options(flow: dict[str, Any]) -> dict[str, Any]:
    options = {
        "model": flow.get("model", MODEL),
        **list_settings(flow, **SAME, **PENALTIES, max_tokens="max_completion_tokens", effort="reasoning_effort"),
        **{name: flow[name] for name in ("stop", "tool_choice", "n", "logprobs", "top_logprobs") if name in flow},
    }
    if "tools" in flow:
        options["tools"] = [
            {"type": "function", "function": {"name": n, "description": d, "parameters": p}}
            for n, (d, p) in TOOLS.items()
        ]
    if "schema" in flow:
        schema = {"name": "person", "schema": PERSON, "strict": True}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    if "json_object" in flow:
        options["response_format"] = {"type": "json_object"}
    return options


def complete_at_once(client: OpenAI, **arguments: Any) -> Any:
    return client.chat.completions.create(**arguments)


def complete_by_stream(client: OpenAI, **arguments: Any) -> Any:
    try:
        with client.chat.completions.stream(stream_options={"include_usage": True}, **arguments) as events:
            for _ in events:
                pass
            return events.get_final_completion()
    except Exception as error:  # the helper raises at an answer that was cut, which it holds
        if hasattr(error, "completion"):
            return error.completion
        raise
