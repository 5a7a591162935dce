"""What other engines' own parsers are known to make of an output: the same as ours, or there is a reason."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from gptoss_harmony import parse
from gptoss_harmony.openai.chat_completions import from_messages
from gptoss_harmony.openai.tool_table import ToolTable
from helpers.outputs import DATA
from helpers.tool_answers import to_ids

FACTS = [json.loads(line) for line in (DATA / "engine_facts.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact['engine']}: {fact['fact']}")
def test_facts(fact: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in fact["tools"]]
    messages = parse(to_ids(fact["output"]), tools=ToolTable(tools).namespaces())
    message = from_messages(messages, tools, may_call=bool(tools))
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    ours = [message["reasoning_content"], message["content"], calls]
    assert ours == [fact["reasoning"], fact["content"], fact["calls"]]
    assert ("differs" in fact) == ("engine_says" in fact)
    assert fact.get("engine_says") != ours
    assert fact["from"].startswith(("run: ", "read: "))


def test_there_are_enough() -> None:
    assert len(FACTS) >= 60
    assert min(Counter(fact["engine"] for fact in FACTS).values()) >= 10
    assert sum("differs" in fact for fact in FACTS) <= 15
