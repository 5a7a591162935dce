"""Griffe extension: examples in docstrings (lines that begin with `>>>`) are shown as code."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and ">>>" in obj.docstring.value:
            obj.docstring.value = fence_examples(obj.docstring.value)


def fence_examples(text: str) -> str:
    """Each paragraph that begins with `>>>` stands between fences."""
    paragraphs = text.split("\n\n")
    for n, paragraph in enumerate(paragraphs):
        if paragraph.lstrip().startswith(">>>"):
            lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
            paragraphs[n] = "\n".join(["```pycon", *lines, "```"])
    return "\n\n".join(paragraphs)
