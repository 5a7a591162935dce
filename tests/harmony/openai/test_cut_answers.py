"""No call before its ``<|message|>``: answers cut after every token, headers given up, and what is no call at all."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from gptoss_harmony import parse
from gptoss_harmony.openai import chat_completions, responses
from gptoss_harmony.openai.chat_completions import ChatStream
from gptoss_harmony.openai.messages_api import MessagesRequest
from gptoss_harmony.openai.messages_stream import MessagesStream, to_usage
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.parsing.flags import is_json
from helpers.tool_answers import TOOLS, check_seen, ids_of_parts, make_answer, show_cut, to_ids

Shown = tuple[str | None, str | None, list[tuple[str, str]]]
NAMES = ToolTable(TOOLS).namespaces()
FOR_MESSAGES = [{"name": tool["function"]["name"], "input_schema": {"type": "object"}} for tool in TOOLS]
BASH = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]


def of_chat(message: dict[str, Any]) -> Shown:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    return message["reasoning_content"], message["content"], calls


def of_responses(items: list[dict[str, Any]]) -> Shown:
    texts = {
        kind: "\n".join(part["text"] for item in items if item["type"] == kind for part in item["content"]) or None
        for kind in ("reasoning", "message")
    }
    calls = [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]
    return texts["reasoning"], texts["message"], calls


def stream_chat(ids: list[int], tools: Any, may_call: bool = True) -> dict[str, Any]:
    stream = ChatStream("m", 1, tools, may_call=may_call)
    chunks = [chunk for token in ids for chunk in stream.feed([token])] + stream.finish()
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) or None
    assert content == stream.message["content"]
    return stream.message


def stream_responses(ids: list[int], tools: Any, may_call: bool = True) -> list[dict[str, Any]]:
    stream = ResponseStream({"output": []}, tools, may_call=may_call)
    for token in ids:
        stream.feed([token])
    stream.finish()
    return list(stream.response["output"])


def of_messages(ids: list[int], request: MessagesRequest) -> Shown:
    stream = MessagesStream(request, "m")
    stream.feed(ids)
    stream.finish(None, to_usage(1, len(ids)))
    blocks = stream.message["content"]
    reasoning, content = (
        "\n".join(block[kind] for block in blocks if block["type"] == kind) or None for kind in ("thinking", "text")
    )
    return reasoning, content, [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]


def with_objects(shown: Shown) -> Shown:
    """Messages shows the calls whose arguments are whole, and these as objects."""
    return shown[0], shown[1], [(name, json.loads(given)) for name, given in shown[2] if is_json(given)]


def test_every_cut_of_500_answers() -> None:
    """An empty body that was closed is ``{}`` for a call; everything else is just what was written."""
    rng = Random(17)
    request = MessagesRequest({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "tools": FOR_MESSAGES})
    for _ in range(500):
        parts = make_answer(rng)
        ids = ids_of_parts(parts)
        for cut in range(len(ids) + 1):
            messages = parse(ids[:cut], tools=NAMES)
            expected = show_cut(parts, cut)
            whole = chat_completions.from_messages(messages, TOOLS)
            assert of_chat(whole) == expected, (cut, ids)
            items = responses.from_messages(messages, TOOLS)
            assert of_responses(items) == expected, (cut, ids)
            assert of_messages(ids[:cut], request) == with_objects(expected), (cut, ids)
            if cut in (rng.randrange(len(ids)), len(ids)):
                assert of_chat(stream_chat(ids[:cut], TOOLS)) == expected
                assert of_responses(stream_responses(ids[:cut], TOOLS)) == expected
            if cut < len(ids) and not (cut and ids[cut - 1] == parts[-1].end):
                assert whole["finish_reason"] in ("length", "tool_calls")


class ChatClient:
    """Adds up what a client is told, as it comes."""

    def __init__(self) -> None:
        self.stream = ChatStream("m", 1, TOOLS)
        self.texts = {"reasoning_content": "", "content": ""}
        self.calls: list[list[str]] = []

    def feed(self, token: int) -> None:
        for chunk in self.stream.feed([token]):
            delta = chunk["choices"][0]["delta"]
            for kind in self.texts:
                self.texts[kind] += delta.get(kind) or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(self.calls):
                    self.calls.append([call["function"]["name"], ""])
                self.calls[call["index"]][1] += call["function"].get("arguments", "")

    @property
    def seen(self) -> Shown:
        return (*self.texts.values(), [(name, given) for name, given in self.calls])  # type: ignore[return-value]


class ResponsesClient:
    def __init__(self) -> None:
        self.stream = ResponseStream({"output": []}, TOOLS)
        self.items: list[list[str]] = []

    def feed(self, token: int) -> None:
        for event in self.stream.feed([token]):
            if event["type"] == "response.output_item.added":
                self.items.append([event["item"]["type"], event["item"].get("name", ""), ""])
            elif event["type"].endswith(".delta"):
                self.items[-1][2] += event["delta"]

    @property
    def seen(self) -> Shown:
        reasoning, content = (
            "\n".join(text for kind, _, text in self.items if kind == wanted and text)
            for wanted in ("reasoning", "message")
        )
        return reasoning, content, [(name, text) for kind, name, text in self.items if kind == "function_call"]


class MessagesClient:
    def __init__(self) -> None:
        request = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "tools": FOR_MESSAGES}
        self.stream = MessagesStream(MessagesRequest(request), "m")
        self.blocks: list[list[str]] = []

    def feed(self, token: int) -> None:
        for event in self.stream.feed([token]):
            if event["type"] == "content_block_start":
                self.blocks.append([event["content_block"]["type"], event["content_block"].get("name", ""), ""])
            elif event["type"] == "content_block_delta":
                delta = {key: text for key, text in event["delta"].items() if key not in ("type", "signature")}
                self.blocks[-1][2] += "".join(delta.values())

    @property
    def seen(self) -> Shown:
        reasoning, content = (
            "\n".join(text for kind, _, text in self.blocks if kind == wanted and text)
            for wanted in ("thinking", "text")
        )
        return reasoning, content, [(name, text) for kind, name, text in self.blocks if kind == "tool_use"]


@pytest.mark.parametrize("client", [ChatClient, ResponsesClient, MessagesClient])
def test_no_stream_of_500_answers_says_too_much_after_any_token(client: Any) -> None:
    rng = Random(18)
    for _ in range(500):
        parts = make_answer(rng)
        told = client()
        for cut, token in enumerate(ids_of_parts(parts), 1):
            told.feed(token)
            check_seen(parts, cut, *told.seen)
        reasoning, content, calls = told.seen
        assert (reasoning or None, content or None, calls) == show_cut(parts, cut)


CALL = '<|channel|>commentary to=functions.bash <|constrain|>json<|message|>{"cmd":"ls"}<|call|>'
LS = ("bash", '{"cmd":"ls"}')
FINAL = "<|start|>assistant<|channel|>final<|message|>Done<|return|>"
GIVEN_UP = {  # output: (reasoning, content, calls), finish_reason
    f"<|channel|>commentary to=functions.bash <|constrain|>control<|end|><|start|>assistant{CALL}": (None, None, [LS]),
    f"<|channel|>commentary to=functions.bash <|constrain|>json<|start|>assistant{CALL}": (None, None, [LS]),
    f"<|channel|>commentary to=functions.bash<|call|><|start|>assistant{CALL}": (None, None, [LS]),
    f" to=functions.bash<|start|>assistant{CALL}": (None, None, [LS]),
    f" to=functions.bash<|channel|>commentary json<|start|>assistant<|channel|>final<|message|>hi{CALL[-8:]}": (
        None,
        "hi",
        [],
    ),
    f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant commentary{FINAL}": ("hm", "Done", []),
    f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final json{FINAL}": ("hm", "Done", []),
    f"<|channel|>commentary to=functions.bash I will not do this.<|end|>{FINAL}": (
        None,
        "I will not do this.\nDone",
        [],
    ),
    '<|channel|>commentary to=functions.bash {"cmd":"ls"}<|call|>': (None, None, [LS]),
    '<|channel|>commentary to=functions.bash {"cmd":"ls"}': (None, None, []),
    " to=functions.bash": (None, None, []),
    " to": (None, None, []),
    "<|channel|>commentary to": (None, None, []),
    "<|channel|>commentary to=functions.bash co": (None, None, []),
    "<|channel|>commentary to=functions.bash<|call|>": (None, None, []),
    "<|channel|>commentary to=functions.bash <|constrain|>json<|end|>": (None, None, []),
    "<|channel|>analysis to=functions.bash<|channel|>commentary json<|end|>": (None, None, []),
    "<|channel|>commentary to= functions.functions.bashjson<|end|>": (None, None, []),
    "<|channel|>commentary to= function. ba": (None, None, []),
    "<|channel|>commentary jsoncommentary<|call|>": (None, None, []),
    "<|channel|>bas": (None, None, []),
    "<|channel|>bash": (None, None, []),
    "<|channel|>bash json": (None, None, []),
    "<|channel|>commentary bas": (None, None, []),
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant ba": ("hm", None, []),
    "<|channel|>analysis<|message|>hm<|end|><|start|>functions.ba": ("hm", None, []),
    '<|channel|>bash {"cmd":"ls"}<|call|>': (None, None, [LS]),
    '<|channel|>commentary bash {"cmd":"ls"}<|call|>': (None, None, [LS]),
    'commentary to=functions.bash json{"cmd":"ls"}': (None, None, [LS]),
    'commentary to=functions.bash json{"cmd":"l': (None, None, []),
}


@pytest.mark.parametrize("text", GIVEN_UP)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_header_that_is_given_up_is_nothing(text: str, parallel: bool) -> None:
    ids = to_ids(text)
    messages = parse(ids, tools=ToolTable(BASH).namespaces())
    expected = GIVEN_UP[text]
    whole = chat_completions.from_messages(messages, BASH, parallel=parallel)
    assert of_chat(whole) == of_chat(stream_chat(ids, BASH)) == expected
    assert of_responses(stream_responses(ids, BASH)) == expected
    if not expected[1] and not expected[2]:
        for told in (None, "stop"):
            assert chat_completions.from_messages(messages, BASH, finish_reason=told)["finish_reason"] == "length"


FILLER = [
    f"{CALL}commentary{FINAL}",
    f"<|channel|>analysis<|message|>hm<|end|>commentary{FINAL}",
    f"<|channel|>analysis<|message|>hm<|end|>assistant analysis{FINAL}",
    f"<|channel|>analysis<|message|>hm<|end|>commentary to=functions.bash json{FINAL}",
    f"<|channel|>analysis<|message|>hm<|end|>\nCommentary{FINAL}",
    f"<|channel|>analysis<|message|>hm<|end|>assistantcommentary<|end|>{FINAL}",
    f"commentary{FINAL}",
    f"assistant{FINAL}",
    f"<|channel|>final<|message|>Done<|return|>{'commentary'}",
    "<|channel|>final<|message|>Done<|end|>anal",
    f"{CALL}functions.bash{FINAL}",
    f"{CALL}analysisanalysis{FINAL}",
    "<|channel|>final to=final<|message|>Done<|return|>",
    f"<|channel|>commentary to=Assistant<|message|>A result<|end|>{FINAL}",
    f"<|channel|>commentary to=assistant<|message|>A result<|end|>{FINAL}",
    f" to=assistant<|channel|>commentary json<|message|>A result<|end|>{FINAL}",
]


@pytest.mark.parametrize("text", FILLER)
def test_words_of_the_markup_are_not_shown(text: str) -> None:
    ids = to_ids(text)
    messages = parse(ids, tools=ToolTable(BASH).namespaces())
    for tools in (BASH, []):
        _, content, calls = of_chat(chat_completions.from_messages(messages, tools))
        assert content == "Done"
        assert calls == ([LS] if CALL in text else [])
        assert of_chat(stream_chat(ids, tools))[1] == of_responses(stream_responses(ids, tools))[1] == "Done"


def test_words_of_the_markup_that_are_the_answer_are_shown() -> None:
    answers = {
        "final<|return|>": "final",
        "<|channel|>final<|message|>commentary<|return|>": "commentary",
        "<|channel|>final<|message|>to": "to",
        "<|channel|>final json<|return|>": "json",
    }
    for text, answer in answers.items():
        assert of_chat(stream_chat(to_ids(text), BASH))[1] == answer


@pytest.mark.parametrize("text", [CALL, CALL.replace("functions.bash", "python"), CALL.replace("commentary", "final")])
def test_where_no_call_is_allowed_its_body_is_the_answer(text: str) -> None:
    ids = to_ids(f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{text}")
    expected: Shown = ("hm", LS[1], [])
    whole = chat_completions.from_messages(parse(ids), may_call=False)
    assert of_chat(whole) == of_chat(stream_chat(ids, None, may_call=False)) == expected
    assert whole["finish_reason"] == "stop"
    assert of_responses(responses.from_messages(parse(ids), may_call=False)) == expected
    assert of_responses(stream_responses(ids, None, may_call=False)) == expected
    stream = ChatStream("m", 1, may_call=False)
    stream.feed(ids)
    assert stream.uncalled == ["python" if "python" in text else "bash"]
