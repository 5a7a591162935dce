"""What a request demands, as a structural tag of ours: a call (tool_choice), or an answer of a JSON schema."""

from __future__ import annotations

import json
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars import grammar as harmony_grammar
from gptoss_harmony.openai.chat_completions import to_turn as chat_to_turn
from gptoss_harmony.openai.responses import to_turn as responses_to_turn
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest


def make_structural_tag(request: Any) -> dict[str, Any] | None:
    """The structural tag of a request, or None if it demands nothing, or something that our grammars cannot say."""
    responses = isinstance(request, ResponsesRequest)
    plain = request.model_dump(
        mode="json", by_alias=True, exclude_none=True, include={"tools", "tool_choice", "response_format", "text"}
    )
    choice = plain.get("tool_choice")
    form = (plain.get("text") or {}).get("format") if responses else plain.get("response_format")
    forced = choice == "required" or isinstance(choice, dict)
    formatted = (form or {}).get("type") in ("json_object", "json_schema")
    if not (forced or formatted) or getattr(request, "structured_outputs", None) is not None:
        return None
    if formatted and not forced and plain.get("tools") and choice != "none":
        return None  # an answer or a call: vLLM has its own rule for what of both is held to the grammar
    try:
        turn = responses_to_turn(plain) if responses else chat_to_turn(plain)
    except LayoutError:
        return None
    tag = harmony_grammar.structural_tag(turn)
    return tag if _compiles(tag) else None


def _compiles(tag: dict[str, Any]) -> bool:
    import xgrammar

    try:
        xgrammar.Grammar.from_structural_tag(json.dumps(tag))
    except Exception:  # a schema that xgrammar does not know
        return False
    return True
