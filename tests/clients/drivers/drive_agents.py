"""openai-agents: its runner over both APIs."""

from __future__ import annotations

from typing import Any

from agents import (
    Agent,
    ApplyPatchTool,
    CustomTool,
    LocalShellTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    ShellTool,
    function_tool,
    set_tracing_disabled,
)
from drivers.tool_types import RESULTS
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
            return await run(kind(model=flow.get("model", MODEL), openai_client=client), flow, stream, stored)

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
        model_settings=choose_settings(flow, isinstance(model, OpenAIChatCompletionsModel)),
        tools=make_tools(flow.get("tools"), calls),
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


def make_tools(tools: Any, calls: Calls) -> list[Any]:
    """Tools of a flow's type, each run by the SDK as it runs its users' own."""

    def note(name: str, given: Any, kind: str) -> str:
        calls.append((name, given))
        return RESULTS[kind]

    async def query(_: Any, text: str) -> str:
        return note("run_sql", text, "custom")

    if tools == "custom":
        return [CustomTool("run_sql", "Runs SQL.", query)]
    if tools == "local_shell":
        return [LocalShellTool(lambda request: note(tools, request.data.action.command, tools))]
    if tools == "shell":
        return [ShellTool(lambda request: note(tools, request.data.action.commands, tools))]
    if tools == "apply_patch":
        return [ApplyPatchTool(Editor(note))]
    return [function_tool(calls.get_weather), function_tool(calls.get_time)] if tools else []


class Editor:
    """Takes every patch."""

    def __init__(self, note: Any) -> None:
        self._note = note

    def create_file(self, operation: Any) -> str:
        given = {"type": operation.type, "path": operation.path, "diff": operation.diff}
        return str(self._note("apply_patch", given, "apply_patch"))

    update_file = delete_file = create_file


def choose_settings(flow: dict[str, Any], chat: bool) -> ModelSettings:
    return ModelSettings(
        temperature=flow.get("temperature", 0),
        top_p=flow.get("top_p"),
        max_tokens=flow.get("max_tokens"),
        tool_choice=flow.get("tool_choice"),
        reasoning=Reasoning(effort=flow["effort"]) if "effort" in flow else None,
        include_usage=True,
        presence_penalty=flow.get("presence_penalty") if chat else None,
        frequency_penalty=flow.get("frequency_penalty") if chat else None,
        extra_args={"stop": flow["stop"]} if "stop" in flow else None,
    )


def list_thoughts(result: Any) -> str:
    """Responses gives them as content, Chat as a summary."""
    items = [item.raw_item for item in result.new_items if item.type == "reasoning_item"]
    return "".join(part.text for item in items for part in (item.content or item.summary))
