"""From a request to what a backend is asked: prompt ids, sampling, limits, a grammar where one is needed and
possible.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from gptoss_harmony.grammars.grammar import Turn, gbnf
from gptoss_harmony.grammars.headers import list_headers
from gptoss_harmony.grammars.inputs import explain_input

from gptoss_adapters.backends.protocol import Info
from gptoss_adapters.serve.bodies import ChatBody, ResponsesBody
from gptoss_adapters.serve.errors import bad_request
from gptoss_adapters.serve.messages_body import MessagesBody

Json = dict[str, Any]
SamplingBody: TypeAlias = ChatBody | ResponsesBody | MessagesBody
_SMALLEST_TOP_P = 1e-6  # the APIs allow 0, which leaves the best token


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request comes to. `settings`: keyword arguments of `Backend.stream`. `schema` and `must_call`: what the
    answer has to be. `enforced`: by a grammar, but for the parts of the schema that `notes` names.
    """

    tokens: list[int]
    settings: Json
    schema: Json | None
    must_call: bool
    enforced: bool
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of what the request asks and does not get


class Holding(NamedTuple):
    """How headers are held: by the engine's own means, by a grammar over the whole answer, or not; and why so."""

    by: Literal["headers", "grammar"] | None
    why: str


def choose_holding(asked: bool | None, info: Info) -> Holding:
    """`asked`: of the server's user; None leaves it to what the engine can."""
    if asked is False:
        return Holding(None, "--no-hold-headers")
    if info.capabilities.headers:
        return Holding("headers", f"{info.engine} holds headers, and nothing else of an answer")
    if not info.capabilities.grammar:
        return Holding(None, f"{info.engine} takes no grammar")
    if asked:
        return Holding("grammar", "--hold-headers, where tools are declared")
    words = f"under a grammar {info.engine} gives an answer in one piece and takes no penalties"
    return Holding(None, words)


def make_ask(
    body: SamplingBody,
    turn: Turn,
    tokens: list[int],
    info: Info,
    logprobs: int | None,
    strict_tools: bool,
    holding: Holding,
) -> Ask:
    """Raises ApiError where the prompt does not fit or the backend cannot give what is wanted."""
    room = info.n_ctx - len(tokens)
    if room < 1:
        message = (
            f"the prompt has {len(tokens)} tokens, the context holds {info.n_ctx}: nothing is left for an answer; "
            "shorten it, or start the server with a larger --context"
        )
        raise bad_request(
            message, "input" if isinstance(body, ResponsesBody) else "messages", "context_length_exceeded"
        )
    schema = turn.final if isinstance(turn.final, dict) else None
    must_call = turn.final is None
    by_schemas = schema is not None or must_call or strict_tools
    tools = bool(turn.functions or turn.namespaces or turn.builtins)
    wanted = by_schemas or (tools and holding.by == "grammar")
    wanted = wanted or any(explain_input(grammar) is None for grammar in turn.inputs.values())
    held = turn if by_schemas else replace(turn, free_arguments=True)
    grammar = gbnf(held) if wanted and info.capabilities.grammar else None
    settings = {
        "max_tokens": min(room, body.limit or room),
        **choose_sampling(body),
        "seed": (secrets.randbits(32) if body.seed is None else body.seed) % 2**32,
        "logprobs": logprobs,
        "grammar": grammar and grammar.text,
    }
    biased = getattr(body, "logit_bias", None) and not tools  # it may be about headers, and no call is at stake
    if grammar is None and holding.by == "headers" and not biased:
        settings["headers"] = list_headers(turn)
    return Ask(tokens, settings, schema, must_call, grammar is not None, grammar.notes if grammar else ())


def choose_sampling(body: Any) -> Json:
    """How tokens are drawn: keyword arguments of `Backend.stream`."""
    return {
        "temperature": 1.0 if body.temperature is None else float(body.temperature),
        "top_p": 1.0 if body.top_p is None else max(float(body.top_p), _SMALLEST_TOP_P),
        "top_k": body.top_k or 0,
        "min_p": float(body.min_p or 0),
    }


def check_tools(tools: Any, limit: int) -> bool:
    """Is a schema of a declared function to be kept to (`strict`)? Raises ApiError for too many tools."""
    if not isinstance(tools, list):
        return False
    found = [*tools, *(inner for tool in tools for inner in _list_inner(tool))]
    if len(found) > limit:
        raise bad_request(
            f"too many tools (expected at most {limit} / got {len(found)})", "tools", "array_above_max_length"
        )
    return any(isinstance(tool, Mapping) and _is_strict(tool) for tool in found)


def _list_inner(tool: Any) -> list[Any]:
    """The tools of a namespace or an MCP server."""
    inner = tool.get("tools") if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, list) else []


def _is_strict(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    return tool.get("strict") is True or (isinstance(function, Mapping) and function.get("strict") is True)
