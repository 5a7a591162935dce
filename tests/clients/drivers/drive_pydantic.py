"""pydantic-ai: an agent over both APIs."""

from __future__ import annotations

from typing import Any

from drivers.tools import KEY, MODEL, PENALTIES, SAME, Calls, list_settings
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResultEvent, NativeOutput, PromptedOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


def clients(url: str) -> dict[str, Any]:
    async def ask(kind: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await run(
                kind(flow.get("model", MODEL), provider=OpenAIProvider(openai_client=client)), flow, stream
            )

    return {
        "pydantic-ai responses": lambda flow, stream: ask(OpenAIResponsesModel, flow, stream),
        "pydantic-ai chat": lambda flow, stream: ask(OpenAIChatModel, flow, stream),
    }


async def run(model: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    calls = Calls()
    agent: Any = Agent(
        model,
        instructions=flow.get("system"),
        output_type=choose_output(flow),
        tools=[calls.get_weather, calls.get_time] if "tools" in flow else [],
        model_settings=list_settings(
            flow,
            **SAME,
            **PENALTIES,
            max_tokens="max_tokens",
            stop="stop_sequences",
            effort="openai_reasoning_effort",
        ),
    )
    history: list[Any] = []
    for question in flow["asks"]:
        if stream:
            # run_stream ends at the first text, a preamble too; this goes on to the answer.
            async with agent.run_stream_events(question, message_history=history) as events:
                found = [event.result async for event in events if isinstance(event, AgentRunResultEvent)]
            result = found[0]
        else:
            result = await agent.run(question, message_history=history)
        history = result.all_messages()
    out = result.output
    return {
        "text": out if isinstance(out, str) else None,
        "data": None if isinstance(out, str) else out.model_dump(),
        "calls": calls,
        "reasoning": list_thoughts(history[-1]),
        "finish": history[-1].finish_reason,
        "output_tokens": result.usage.output_tokens,
    }


def choose_output(flow: dict[str, Any]) -> Any:
    if "schema" in flow:
        return NativeOutput(Person)
    return PromptedOutput(Person) if "json_object" in flow else str


def list_thoughts(message: Any) -> str:
    """Of Responses they stand among the details, as a part's content is the summary."""
    parts = [part for part in message.parts if part.part_kind == "thinking"]
    return "".join(part.content + "".join((part.provider_details or {}).get("raw_content", [])) for part in parts)
