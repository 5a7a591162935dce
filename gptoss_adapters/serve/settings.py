"""What a server is told when it starts; times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STOPS = 16  # stop strings in a request
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20  # as the APIs say
MAX_CHOICES = 16  # answers to one request (`n`)

OWN_TOOLS = ("browser", "python")
"""Built-in tools by gpt-oss' names: who asks for them so runs them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """model: the name that clients see. aliases: others for the same model. any_model: every name will do.
    queue: requests that wait beyond those that run; more get a 429.
    request_seconds: a request, waiting included; an answer that is not complete then is given as far as it got.
    date: shown to the model as today's (YYYY-MM-DD; None: today). log_contents: prompts and answers in the log.
    strict_arguments: what is not done as a request asks refuses it; else the answer's warnings name it.
    hold_headers: headers are held to what a request allows, its tools above all; None: where the engine can and loses
    nothing by it.
    builtin_tools: of "browser" and "python", those that the caller runs for a web search or a code interpreter.
    encryption_key_file: keys for chains of thought that clients keep; None: a key in the store.
    cors_origins: whose web pages may ask, or "*"."""

    model: str
    aliases: tuple[str, ...] = ()
    any_model: bool = False
    api_key: str | None = None
    queue: int = 64
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    body_bytes: int = 16 * 2**20
    max_tools: int = 128
    date: str | None = None
    log_contents: bool = False
    strict_arguments: bool = False
    hold_headers: bool | None = None
    builtin_tools: frozenset[str] = frozenset()
    encryption_key_file: str | None = None
    cors_origins: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)
