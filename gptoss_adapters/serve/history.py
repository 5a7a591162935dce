"""The history in a request before it is read: references are followed to the store, and what gpt-oss cannot read in
what tools gave back becomes words, so that one picture or one foreign item does not end a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gptoss_harmony.openai.tool_calls import OUTPUT_TYPES

from gptoss_adapters.serve.arguments import Note, Reading
from gptoss_adapters.serve.errors import ApiError, Json

_FOREIGN = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "compaction",
        "compaction_trigger",
        "configuration_update",
        "program",
        "program_output",
    }
)
"""Items of tools that only OpenAI's servers run, and of a context that only they can read."""
_UNREADABLE = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "computer_screenshot": "image",
    "input_audio": "audio",
    "audio": "audio",
    "input_file": "file",
    "file": "file",
}
"""Types of content parts that are no text -> what the model is told is not there."""


Find = Callable[[str], Json | None]


def read_history(
    reading: Reading[Any], before: Iterable[Json], find: Find, unseal: Callable[[str], str | None]
) -> None:
    """Completes the input of a Responses request. `before`: the items of earlier responses in its chain. `find`: gives
    an item of the store by its id. `unseal`: the chain of thought in an encrypted content, None if it is not ours.
    Raises ApiError 404 for a reference to nothing.
    """
    items = reading.raw.get("input")
    if not isinstance(items, list):
        return
    known = {str(item["id"]): item for item in [*before, *items] if "id" in item and not _is_reference(item)}
    kept = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        if _is_reference(item):
            item = known.get(str(item.get("id"))) or _follow(item, where, find)
        kind = str(item.get("type"))
        if kind in _FOREIGN:
            reading.note(Note(where, f"an item of type {kind!r} means nothing to gpt-oss and is left out"))
            continue
        if kind == "reasoning":
            item = _complete_reasoning(reading, item, where, find, unseal)
        if field := OUTPUT_TYPES.get(kind):
            item = _replace_parts(reading, item, field, where)
        kept.append(item)
    reading.raw["input"] = kept


def read_tool_messages(reading: Reading[Any]) -> None:
    """The same for the tool messages of a Chat Completions request."""
    reading.raw["messages"] = [
        _replace_parts(reading, message, "content", f"messages[{i}]") if message.get("role") == "tool" else message
        for i, message in enumerate(reading.raw["messages"])
    ]


def _is_reference(item: Json) -> bool:
    """Some clients leave the type of a reference out: an id alone is one."""
    return item.get("type") == "item_reference" or set(item) == {"id"}


def _follow(item: Json, where: str, find: Callable[[str], Json | None]) -> Json:
    found = find(str(item.get("id")))
    if found is None:
        shown = str(item.get("id"))[:100]
        raise ApiError(404, f"no item with the id {shown!r} is stored here", code="item_not_found", param=f"{where}.id")
    return found


def _complete_reasoning(
    reading: Reading[Any], item: Json, where: str, find: Find, unseal: Callable[[str], str | None]
) -> Json:
    """A chain of thought whole: from its encrypted content or, where a client sends none of it, from the store."""
    blob = item.get("encrypted_content")
    if isinstance(blob, str) and blob:
        text = unseal(blob)
        if text is not None:
            return item | {"content": [{"type": "reasoning_text", "text": text}]}
        words = "ignored: this server cannot read it (it was made with another key, or changed)"
        reading.note(Note(f"{where}.encrypted_content", words, said=True))
    stored = None if item.get("content") or not isinstance(item.get("id"), str) else find(item["id"])
    return item | {"content": stored["content"]} if stored and stored.get("content") else item


def _replace_parts(reading: Reading[Any], item: Json, field: str, where: str) -> Json:
    parts = item.get(field)
    parts = [parts] if isinstance(parts, dict) and parts.get("type") in _UNREADABLE else parts
    if not isinstance(parts, list):
        return item
    out = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        lost = _UNREADABLE.get(kind) if isinstance(kind, str) else None
        if lost:
            reading.note(Note(f"{where}.{field}[{i}]", f"gpt-oss reads text only: the {lost} is left out"))
            part = {"type": "input_text", "text": f"[{lost} omitted: this model reads text only]"}
        out.append(part)
    return item | {field: out}
