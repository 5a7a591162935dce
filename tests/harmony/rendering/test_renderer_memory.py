"""Rendering again: only new text is encoded, and calls come back as the model wrote them."""

import copy

import pytest
from gptoss_harmony import (
    DeveloperContent,
    HeaderForm,
    Message,
    Renderer,
    Text,
    Tool,
    ToolNamespace,
    load_vocabulary,
    render,
)
from gptoss_harmony.errors import LayoutError
from gptoss_harmony.tokens import CALL, END, MESSAGE, START

VOCABULARY = load_vocabulary()


def encode_pieces(pieces) -> list[int]:
    return [i for piece in pieces for i in (VOCABULARY.encode(piece) if isinstance(piece, str) else [piece])]


U, A1, F1 = Message.user("u"), Message.assistant("a1", "analysis"), Message.assistant("f1", "final")


class Counting:
    """A tokenizer that counts what it is asked to encode."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_ordinary(self, text: str) -> list[int]:
        self.texts.append(text)
        return VOCABULARY.encode(text)

    def decode_bytes(self, ids) -> bytes:
        return VOCABULARY.decode_bytes(ids)


def counting_renderer(cache_tokens: int = 10**6) -> tuple[Counting, Renderer]:
    tokenizer = Counting()
    return tokenizer, Renderer(type(VOCABULARY)(tokenizer), cache_tokens)


def test_append_only_chat_encodes_only_new_text() -> None:
    tokenizer, renderer = counting_renderer()
    messages = [Message.system(), Message.developer("be brief"), U]
    render(messages, renderer=renderer)
    tokenizer.texts.clear()
    render([*messages, Message.assistant("new text", "final")], renderer=renderer)
    assert set(tokenizer.texts) <= {"assistant", "final", "new text"}


def test_changing_a_message_in_place_is_seen() -> None:
    _, renderer = counting_renderer()
    tool = Tool("f", "d", {"type": "object", "properties": {"a": {"type": "number", "default": 1}}})
    messages = [
        Message.developer(DeveloperContent("x", {"functions": ToolNamespace.functions([tool])})),
        Message.user("u"),
    ]
    for change in (True, 1.0, 2):
        tool.parameters["properties"]["a"]["default"] = change
        messages[1].content[0].text += "!"
        assert render(messages, renderer=renderer) == render(copy.deepcopy(messages))


def test_system_message_follows_the_function_tools() -> None:
    _, renderer = counting_renderer()
    functions = Message.developer(DeveloperContent(None, {"functions": ToolNamespace.functions([Tool("f")])}))
    for messages in ([Message.system()], [Message.system(), functions], [Message.system()]):
        assert render(messages, renderer=renderer) == render(messages)


def test_cache_is_bounded_and_keeps_what_is_used() -> None:
    tokenizer, renderer = counting_renderer(cache_tokens=2000)
    kept = Message.user("kept")
    for i in range(500):
        render([kept, Message.user(f"text number {i} of many")], renderer=renderer)
    held = [*renderer._new.values(), *renderer._old.values()]
    assert sum(map(len, held)) <= 2000
    assert tokenizer.texts.count("kept") == 1


def test_returned_ids_may_be_changed() -> None:
    _, renderer = counting_renderer()
    first = render([U], mode="plain", renderer=renderer)
    first.clear()
    assert render([U], mode="plain", renderer=renderer) == render([U], mode="plain")


def test_as_parsed_gives_the_models_ids_back() -> None:
    header = encode_pieces(["assistant", 200005, "commentary to=functions.f ", 200003, "json"])
    content = encode_pieces(["{", "}"])  # not how the text is encoded: "{}" is one token
    message = Message.assistant("{}", "commentary", "functions.f", "<|constrain|>json")
    message.header, message.end = HeaderForm(tuple(header), tuple(content)), END
    assert render([message], mode="plain", headers="as_parsed") == [START, *header, MESSAGE, *content, END]
    assert render([message], mode="plain")[-1] == CALL


def test_as_parsed_does_not_bring_back_text_that_was_edited() -> None:
    message = Message.assistant("old", "final")
    message.header = HeaderForm(tuple(VOCABULARY.encode("assistant")), tuple(VOCABULARY.encode("old")))
    message.content = [Text("new")]
    assert (
        VOCABULARY.decode(render([message], mode="plain", headers="as_parsed"))
        == "<|start|>assistant<|message|>new<|end|>"
    )


def test_as_parsed_without_a_form_is_canonical() -> None:
    assert render([U, F1], headers="as_parsed") == render([U, F1])


@pytest.mark.parametrize("cache_tokens", [0, 1_000_000])
def test_a_schema_nested_too_deeply_is_bad_input_with_and_without_a_memory(cache_tokens: int) -> None:
    schema: dict = {"type": "string"}
    for _ in range(100_000):
        schema = {"type": "array", "items": schema}
    content = DeveloperContent(tools={"functions": ToolNamespace.functions([Tool("f", "", schema)])})
    with pytest.raises(LayoutError, match="not a JSON schema that can be written"):
        render([Message.developer(content)], renderer=Renderer(cache_tokens=cache_tokens))
