"""LangChain: an agent over both APIs of langchain-openai."""

from __future__ import annotations

from typing import Any

from drivers.tools import KEY, MODEL, PENALTIES, PERSON, SAME, Calls, is_json, list_settings
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI


def clients(url: str) -> dict[str, Any]:
    def ask(**options: Any) -> Any:
        def asked(flow: dict[str, Any], stream: bool) -> dict[str, Any]:
            model = ChatOpenAI(
                model=flow.get("model", MODEL),
                base_url=url,
                api_key=KEY,
                max_retries=0,
                streaming=stream,
                stream_usage=True,
                **list_settings(flow, **SAME, max_tokens="max_tokens", stop="stop", effort="reasoning_effort"),
                **({} if options["use_responses_api"] else list_settings(flow, **PENALTIES)),
                **options,
            )
            return shape(model, flow, stream) if is_json(flow) else run(model, flow, stream)

        return asked

    return {
        "langchain responses": ask(use_responses_api=True, output_version="responses/v1"),
        "langchain responses stored": ask(use_responses_api=True, use_previous_response_id=True),
        "langchain chat": ask(use_responses_api=False),
    }


def shape(model: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"method": "json_schema", "strict": True} if "schema" in flow else {"method": "json_mode"}
    shaped = model.with_structured_output({"title": "person", **PERSON}, **options)
    question = flow["asks"][0]
    return {"data": list(shaped.stream(question))[-1] if stream else shaped.invoke(question), "calls": []}


def run(model: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    calls = Calls()
    messages: list[Any] = [SystemMessage(flow["system"])] if "system" in flow else []
    agent = create_agent(model, tools=[calls.get_weather, calls.get_time]) if "tools" in flow else None
    for question in flow["asks"]:
        messages.append(HumanMessage(question))
        if agent is not None:
            messages = list(agent.stream({"messages": messages}, stream_mode="values"))[-1]["messages"]
        elif stream:
            pieces = list(model.stream(messages))
            messages.append(sum(pieces[1:], pieces[0]))
        else:
            messages.append(model.invoke(messages))
    last = messages[-1]
    metadata = last.response_metadata
    cut = metadata.get("finish_reason") == "length" or metadata.get("status") == "incomplete"
    return {
        "text": last.text,
        "reasoning": list_thoughts(last),
        "calls": calls,
        "finish": "length" if cut else "stop",
        "output_tokens": last.usage_metadata["output_tokens"],
    }


def list_thoughts(message: Any) -> str:
    """Of Responses they stand among the extras, as LangChain's own block has room for a summary only."""
    blocks = [block for block in message.content_blocks if block["type"] == "reasoning"]
    parts = [part for block in blocks for part in block.get("extras", {}).get("content", [])]
    return "".join(block.get("reasoning", "") for block in blocks) + "".join(part["text"] for part in parts)
