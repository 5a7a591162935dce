"""Chat templates: our own as text, and a renderer for any of them in the sandbox that transformers uses.

For engines that take nothing but a template. `render` is the better way wherever ids can be passed: a template's text
is tokenised with special tokens on, so text in a message that looks like one becomes one.

What our template cannot do, or does otherwise than ``render(chat_completions.to_conversation(request))``:

- tool names go in as they are, and ``python`` or ``browser.*`` always mean the built-in tools;
- python's code stays wrapped where the arguments are a JSON string ``{"code": ...}``: templates cannot parse JSON;
- floats of extreme size in a schema's defaults are spelled by the engine (``1e+20`` for ``1e20``);
- `tool_choice` and `response_format` are not known to it: leave out the tools, put the section into the instructions;
- with ``add_generation_prompt=False`` it keeps the reasoning of the last answer, to be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from gptoss_harmony.errors import RenderError


def chat_template() -> str:
    """The text of our template, for a GGUF's ``tokenizer.chat_template`` or a folder's ``chat_template.jinja``."""
    return (Path(__file__).parents[1] / "data" / "chat_template.jinja").read_text("utf-8")


def apply_template(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """Text of a template (ours if None) for Chat Completions messages; `variables` are what else it reads.

    Raises RenderError when the template refuses the messages. Needs jinja2.
    """
    variables = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt} | variables
    return _compile(chat_template() if template is None else template)(variables)


@cache
def _compile(template: str) -> Callable[[dict[str, Any]], str]:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise RenderError("rendering a chat template needs jinja2: pip install jinja2", "missing_jinja2") from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
    compiled = environment.from_string(template)

    def run(variables: dict[str, Any]) -> str:
        try:
            return compiled.render(**variables)
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
        ) as error:  # what a template meets in a message that it does not expect
            raise RenderError(f"the chat template failed: {error}", "template") from error

    return run


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise RenderError(message, "template")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
