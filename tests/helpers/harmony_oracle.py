"""The installed openai_harmony (openai-harmony 0.0.8, or vLLM's fork of the same name), fed with our vocabulary
file.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_harmony.vocabulary import published_file


@cache
def oracle() -> Any:
    """The reference's HarmonyEncoding; nothing is downloaded."""
    import openai_harmony

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "o200k_base.tiktoken").write_bytes(published_file())
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        try:
            return openai_harmony.load_harmony_encoding("HarmonyGptOss")
        finally:
            del os.environ["TIKTOKEN_ENCODINGS_BASE"]


def oracle_renderings(conversation: dict[str, Any], next_role: str, drop: bool) -> dict[str, list[int] | str]:
    """Ids of the three entry points, or the error's text. The compiled part is asked directly: its Python shell
    drops nulls.
    """
    inner, text, config = oracle()._inner, json.dumps(conversation), {"auto_drop_analysis": drop}
    return {
        "completion": _ids(
            inner.render_conversation_for_completion, conversation_json=text, next_turn_role=next_role, config=config
        ),
        "plain": _ids(inner.render_conversation, conversation_json=text, config=config),
        "training": _ids(inner.render_conversation_for_training, conversation_json=text, config=config),
    }


def oracle_typescript(schema: Any) -> str:
    """The TypeScript of a tool's parameters (any JSON value but null)."""
    tool = {"name": "f", "description": "", "parameters": schema}
    content = {"type": "developer_content", "tools": {"n": {"name": "n", "description": None, "tools": [tool]}}}
    message = json.dumps({"role": "developer", "content": [content]})
    ids = oracle()._inner.render(message_json=message, render_options={"conversation_has_function_tools": False})
    text: str = oracle().decode(ids)
    return text[text.index("type f = (_: ") + len("type f = (_: ") : text.rindex(") => any;")]


def _ids(entry: Any, **arguments: Any) -> list[int] | str:
    try:
        return list(entry(**arguments))
    except (RuntimeError, ValueError) as error:
        return str(error)
