"""openai-agents: its runner over both APIs."""

from __future__ import annotations

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from drivers.tools import KEY, MODEL, Calls
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def clients(url: str) -> dict[str, Any]:
    set_tracing_disabled(True)

    async def ask(kind: Any, flow: dict[str, Any], stream: bool, stored: bool = False) -> dict[str, Any]:
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await run(kind(model=MODEL, openai_client=client), flow, stream, stored)

    return {
        "agents responses": lambda flow, stream: ask(OpenAIResponsesModel, flow, stream),
        "agents responses stored": lambda flow, stream: ask(OpenAIResponsesModel, flow, stream, stored=True),
        "agents chat": lambda flow, stream: ask(OpenAIChatCompletionsModel, flow, stream),
    }


async def run(model: Any, flow: dict[str, Any], stream: bool, stored: bool) -> dict[str, Any]:
    """stored: the runner names earlier turns by previous_response_id; else it sends them again."""
    calls = Calls()
    agent = Agent(
        name="helper",
        model=model,
        instructions=flow.get("system"),
        model_settings=choose_settings(flow),
        tools=[function_tool(calls.get_weather), function_tool(calls.get_time)] if "tools" in flow else [],
        output_type=Person if "schema" in flow else None,
    )
    options: dict[str, Any] = {"auto_previous_response_id": True} if stored else {}
    history: list[Any] = []
    for question in flow["asks"]:
        turn = [*([] if stored else history), {"role": "user", "content": question}]
        if stream:
            result: Any = Runner.run_streamed(agent, turn, **options)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, turn, **options)
        history = result.to_input_list()
        if stored:
            options["previous_response_id"] = result.last_response_id
    out = result.final_output
    return {
        "text": out if isinstance(out, str) else None,
        "data": None if isinstance(out, str) else out.model_dump(),
        "calls": calls,
        "reasoning": list_thoughts(result),
        "output_tokens": result.context_wrapper.usage.output_tokens,
    }


def choose_settings(flow: dict[str, Any]) -> ModelSettings:
    return ModelSettings(
        temperature=flow.get("temperature", 0),
        max_tokens=flow.get("max_tokens"),
        reasoning=Reasoning(effort=flow["effort"]) if "effort" in flow else None,
        include_usage=True,
        extra_args={"stop": flow["stop"]} if "stop" in flow else None,
    )


def list_thoughts(result: Any) -> str:
    """Responses gives them as content, Chat as a summary."""
    items = [item.raw_item for item in result.new_items if item.type == "reasoning_item"]
    return "".join(part.text for item in items for part in (item.content or item.summary))
