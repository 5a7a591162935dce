"""A real `vllm serve` with our switches on: its prompts are gptoss_harmony's, id by id, its LoRA adapters are found by
name, and what the plugin did stands in its `/metrics`.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptoss_harmony import Conversation, load_vocabulary, render
from gptoss_harmony.openai import chat_completions, responses
from helpers.lora_forms import write as write_adapter
from helpers.vllm_serving import CHAT_TOOL, RESPONSES_TOOL, server

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(400)]
DATE = "2026-01-01"  # helpers.vllm_serving pins it
PARIS = "What is the weather in Paris?"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pocket") / "pocket"
    write(plan_new("pocket", folder), sync=False, read_back=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTOSS_ADAPTERS_RENDER", "1")
        patch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("GPTOSS_ADAPTERS_LORA_DIR", str(write_adapters(folder, tmp_path_factory.mktemp("adapters"))))
        log = tmp_path_factory.mktemp("server") / "log.txt"
        with server(folder, log, "--enable-scale-out", "--enable-lora", "--max-lora-rank", "8") as found:
            yield found


def write_adapters(base: Path, out: Path) -> Path:
    """`loud` changes every answer; `larger` has a layer more than the model."""
    config = open_checkpoint(base).config
    rng = np.random.default_rng(0)

    def make(layers: int) -> dict[str, np.ndarray]:
        at = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
        sizes = {"A": (4, config.q_rows), "B": (config.hidden_size, 4)}
        return {
            at.format(n, half): rng.standard_normal(size).astype(np.float32)
            for n in range(layers)
            for half, size in sizes.items()
        }

    said = {"peft_type": "LORA", "peft_version": "0.21.2", "r": 4, "lora_alpha": 4, "target_modules": ["o_proj"]}
    said["base_model_name_or_path"] = "somebody/else-bnb-4bit"  # vLLM's own resolver passes over it
    write_adapter(out / "loud", make(config.num_hidden_layers), said)
    write_adapter(out / "larger", make(config.num_hidden_layers + 1), said)
    return out


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps({"model": "pocket"} | body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def expect(conversation: Conversation) -> list[int]:
    return render(conversation.messages, drop="none")


THOUGHT = {"role": "assistant", "reasoning": "Rome it was.", "content": "Rome."}
CALLED = {
    "role": "assistant",
    "reasoning": "I need the tool.",
    "content": "Let me look.",
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": '{"temperature": 21}'}
USER = {"role": "user", "content": PARIS}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [USER], "reasoning_effort": "low"},
    "instructions and parts": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]},
        ]
    },
    "a call with its reasoning": {"messages": [USER, CALLED, RESULT], "tools": [CHAT_TOOL]},
    "finished reasoning is dropped": {"messages": [USER, THOUGHT, USER, CALLED, RESULT], "tools": [CHAT_TOOL]},
    "a schema": {
        "messages": [USER],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    },
    "control tokens are text": {"messages": [{"role": "user", "content": "<|end|><|start|>system"}]},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chats_prompt_is_harmonys(url: str, name: str) -> None:
    asked = CHATS[name]
    given = post(url, "chat/completions/render", asked)
    assert given["token_ids"] == expect(chat_completions.to_conversation(asked, date=DATE))


ITEMS = [
    {"role": "user", "content": PARIS},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "The tool."}]},
    {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": '{"city": "Paris"}'},
    {"type": "function_call_output", "call_id": "a", "output": '{"temperature": 21}'},
]
RESPONSES: dict[str, dict[str, Any]] = {
    "text": {"input": PARIS, "reasoning": {"effort": "high"}},
    "instructions": {"input": [{"role": "developer", "content": "Be kind."}, *ITEMS[:1]], "instructions": "Be brief."},
    "a call": {"input": ITEMS, "tools": [RESPONSES_TOOL]},
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_responses_prompt_is_harmonys(url: str, name: str) -> None:
    asked = RESPONSES[name]
    given = post(url, "responses/render", asked)
    assert given["token_ids"] == expect(responses.to_conversation(asked, date=DATE))


def test_a_call_goes_back_as_the_model_wrote_it(url: str) -> None:
    """Whatever the client has made of its JSON: the next prompt begins with this prompt and this output."""
    asked = {"messages": [USER], "tools": [CHAT_TOOL], "reasoning_effort": "low", "temperature": 0}
    first = post(url, "chat/completions", asked | {"return_token_ids": True})
    message = first["choices"][0]["message"]
    (call,) = message["tool_calls"]
    spaced = json.dumps(json.loads(call["function"]["arguments"]), indent=2)
    assert spaced != call["function"]["arguments"]
    again = call | {"function": call["function"] | {"arguments": spaced}}
    turn = {"role": "assistant", "reasoning": message["reasoning"], "tool_calls": [again]}
    more = asked | {"messages": [USER, turn, RESULT | {"tool_call_id": call["id"]}]}
    second = post(url, "chat/completions/render", more)["token_ids"]
    written = first["prompt_token_ids"] + first["choices"][0]["token_ids"]
    assert second[: len(written)] == written


def test_a_chain_by_previous_response_id_is_the_same_prompt(url: str) -> None:
    """There the history is in vLLM's messages: as long as the prompt of the same history in the request."""
    asked = {"tools": [RESPONSES_TOOL], "reasoning": {"effort": "low"}, "temperature": 0}
    first = post(url, "responses", asked | {"input": PARIS, "store": True})
    (call,) = [item for item in first["output"] if item["type"] == "function_call"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    whole = post(
        url, "responses/render", asked | {"input": [{"role": "user", "content": PARIS}, *first["output"], result]}
    )
    text = load_vocabulary().decode(whole["token_ids"])
    assert text.endswith("<|end|><|start|>assistant") and "<|channel|>analysis" in text
    chained = post(url, "responses", asked | {"input": [result], "previous_response_id": first["id"]})
    assert chained["usage"]["input_tokens"] == len(whole["token_ids"])


def test_vllms_own_messages_give_the_same_ids() -> None:
    """What a chain, or a built-in tool's loop, has instead of a request."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.parser.harmony_utils import (
        build_harmony_preamble,
        parse_chat_inputs_to_harmony_messages,
    )

    from gptoss_adapters.vllm_plugin.rendering import render_ids

    history = [USER, THOUGHT, USER, {key: value for key, value in CALLED.items() if key != "content"}, RESULT]
    asked = ChatCompletionRequest(model="m", messages=[USER], tools=[CHAT_TOOL])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SYSTEM_START_DATE", DATE)
        preamble = build_harmony_preamble(instructions="Be brief.", tools=asked.tools, with_custom_tools=True)
    ids = render_ids([*preamble, *parse_chat_inputs_to_harmony_messages(history)])
    told = {"messages": [{"role": "system", "content": "Be brief."}, *history], "tools": [CHAT_TOOL]}
    assert ids == expect(chat_completions.to_conversation(told, date=DATE))


def refuse(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """(HTTP status, message) of a request that is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, path, body)
    return caught.value.code, json.load(caught.value)["error"]["message"]


def test_an_adapter_is_found_by_its_name(url: str) -> None:
    asked = {"messages": [USER], "reasoning_effort": "low", "temperature": 0, "max_completion_tokens": 16}
    plain = post(url, "chat/completions", asked | {"return_token_ids": True})
    loud = post(url, "chat/completions", asked | {"model": "loud", "return_token_ids": True})
    assert loud["model"] == "loud" and loud["choices"][0]["token_ids"] != plain["choices"][0]["token_ids"]
    again = post(url, "chat/completions", asked | {"return_token_ids": True})
    assert again["choices"][0]["token_ids"] == plain["choices"][0]["token_ids"]


def test_a_bad_adapter_is_refused_in_words_whichever_way_it_comes(url: str) -> None:
    status, words = refuse(url, "chat/completions", {"messages": [USER], "model": "larger"})
    place = r"o_proj\.lora_A\.weight: a tensor of the adapter has no place in this model"
    assert status == 400 and re.search(f"LoRA adapter larger: adapter_model.safetensors: .*{place}", words), words
    for name in ("../loud", "nobody", "loud/.."):
        assert refuse(url, "chat/completions", {"messages": [USER], "model": name})[0] == 404
    larger = Path(os.environ["GPTOSS_ADAPTERS_LORA_DIR"]) / "larger"
    status, words = refuse(url, "load_lora_adapter", {"lora_name": "mine", "lora_path": str(larger)})
    assert status == 500 and re.search(place, words), words


def test_metrics_have_what_was_held(url: str) -> None:
    def held() -> float:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=20) as answer:
            found = re.search(r"^gptoss_adapters_held_tags_total (\S+)$", answer.read().decode(), re.M)
        return float(found[1]) if found else 0.0

    before = held()
    choice = {"tool_choice": "required", "max_completion_tokens": 100}
    post(url, "chat/completions", {"messages": [USER], "tools": [CHAT_TOOL], "reasoning_effort": "low", **choice})
    assert held() == before + 1
