"""`gptoss-chat`: ask any gpt-oss checkpoint a question, on the reference model or on an engine, through Harmony.

The prompt is rendered to ids by `gptoss_harmony`, the answer's ids are parsed as they come: analysis, answer and tool
calls in colours of their own on stdout, speed on stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_adapters.console import run
from gptoss_adapters.errors import BadInput, UsageError

if TYPE_CHECKING:
    from gptoss_harmony.messages import Conversation, Message

HELP = """Ask a gpt-oss checkpoint a question; without one, chat.

\b
Examples:
  gptoss-chat ./gpt-oss-20b "Why is the sky blue?" --effort high
  gptoss-chat pocket.gguf --backend llama_server "Hello"
  gptoss-chat 120b-shape --plan
  gptoss-chat ./gpt-oss-20b --tools tools.json "How is the weather in Paris?"
"""
STYLES = {"analysis": "2;3", "final": "1", "commentary": "33"}  # ANSI: dim italic, bold, yellow

app = typer.Typer(add_completion=True, rich_markup_mode=None)


@app.command(help=HELP)
def chat(
    path: Annotated[
        str, typer.Argument(help="Checkpoint: file, folder or Hub repo id; with --plan also 20b-shape or 120b-shape.")
    ],
    question: Annotated[str | None, typer.Argument(help="What to ask. Without it: a chat, ended by Ctrl-D.")] = None,
    effort: Annotated[str, typer.Option(help="Reasoning effort: low, medium or high.")] = "medium",
    instructions: Annotated[str | None, typer.Option(help="Developer instructions.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON list of tools, as in the Chat Completions API.")] = None,
    backend: Annotated[str, typer.Option(help="torch (the reference), llama_cpp or llama_server.")] = "torch",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperature above 0.")] = 0,
    day: Annotated[
        str | None, typer.Option("--date", help="The prompt's current date, YYYY-MM-DD. Default: today.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what the model takes in memory, and load nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as a Chat Completions message, whole.")] = False,
) -> None:
    from gptoss_harmony import Conversation

    if plan:
        return _print_plan(path)
    start = _opening(effort, instructions, _read_tools(tools), day or date.today().isoformat())
    stream = _open(path, backend, max_tokens, temperature, seed)
    conversation = Conversation(start)
    for text in [question] if question is not None else _ask():
        _turn(conversation, text, stream, as_json)


def main() -> None:
    """Entry point of `gptoss-chat`."""
    run(app)


def _print_plan(path: str) -> None:
    """Bytes of weights and KV cache at several context lengths, one row each."""
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.checkpoint.synthetic.checkpoints import SHAPES
    from gptoss_adapters.reference.loading import plan_memory

    config = SHAPES[path] if path in SHAPES and not Path(path).exists() else open_checkpoint(path).config
    print(f"{'context':>8} {'experts':>9} {'dense':>9} {'kv cache':>9} {'total':>9}  GB")
    for context in (4096, 32768, config.max_position_embeddings):
        plan = plan_memory(config, context)
        print(
            f"{context:>8}"
            + "".join(f" {plan[part] / 1e9:>9.3f}" for part in ("experts", "dense", "kv_cache", "total"))
        )


def _opening(effort: str, instructions: str | None, tools: list[dict[str, Any]], day: str) -> list[Message]:
    from gptoss_harmony.openai.chat_completions import to_conversation

    if effort.lower() not in ("low", "medium", "high"):
        raise UsageError("--effort must be low, medium or high", got=effort)
    messages = [{"role": "developer", "content": instructions}] if instructions else []
    return to_conversation(
        {"messages": messages, "tools": tools, "reasoning_effort": effort.lower()}, date=day
    ).messages


def _read_tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput("cannot read the tools", file=path, got=error) from error
    if not isinstance(tools, list):
        raise BadInput("tools must be a JSON list", file=path, got=type(tools).__name__)
    return tools


def _ask() -> Iterator[str]:
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            return


def _turn(conversation: Conversation, text: str, stream: Any, as_json: bool) -> None:
    """One question and its answer, which is appended to the conversation as the model wrote it."""
    from gptoss_harmony import Message, Parser, render
    from gptoss_harmony.openai.chat_completions import from_messages

    conversation.messages.append(Message.user(text))
    parser, show, seen = Parser(role="assistant"), _Show(enabled=not as_json), [time.perf_counter()]
    for token in stream(render(conversation, headers="as_parsed")):
        seen.append(time.perf_counter())
        for event in parser.feed([token]):
            show(event)
    for event in parser.finish():
        show(event)
    conversation.messages += parser.messages
    if as_json:
        print(json.dumps(from_messages(parser.messages), ensure_ascii=False))
    if len(seen) > 1:
        speed = (len(seen) - 2) / max(seen[-1] - seen[1], 1e-9)
        print(
            f"{len(seen) - 1} tokens: the first after {seen[1] - seen[0]:.1f} s, then {speed:.1f} tokens/s",
            file=sys.stderr,
        )


class _Show:
    """Prints events as they come; colours only on a terminal."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.colour = enabled, sys.stdout.isatty()

    def __call__(self, event: Any) -> None:
        if not self.enabled:
            return
        from gptoss_harmony.view import printable  # what a model writes must not drive the terminal

        name = type(event).__name__
        if name == "MessageStart":
            header = event.header
            label = printable(f"{header.channel or 'answer'}{' to ' + header.recipient if header.recipient else ''}")
            style = STYLES.get(header.channel or "final", "")
            print(f"\033[{style}m[{label}] " if self.colour else f"[{label}] ", end="", flush=True)
        elif name == "Delta":
            print(printable(event.text), end="", flush=True)
        else:
            print("\033[0m" if self.colour else "")


def _open(path: str, backend: str, max_tokens: int, temperature: float, seed: int) -> Any:
    """ids -> iterator of the answer's ids, on the chosen engine."""
    if backend == "torch":
        return _torch(path, max_tokens, temperature, seed)
    from gptoss_adapters.backends import open_backend

    engine = open_backend(f"{backend}={path}")
    return lambda ids: (
        token.id for token in engine.stream(ids, max_tokens=max_tokens, temperature=temperature, seed=seed, reuse=True)
    )


def _torch(path: str, max_tokens: int, temperature: float, seed: int) -> Any:
    from gptoss_adapters.reference.generate import KeptCache, stream
    from gptoss_adapters.reference.model import GptOss
    from gptoss_adapters.reference.sampling import Sampling

    model = GptOss.from_checkpoint(path, dense="packed")
    sampling, kept = Sampling(temperature=temperature, seed=seed), KeptCache(model)

    def ids_of(ids: list[int]) -> Iterator[int]:
        return (step.token for step in stream(model, ids, max_tokens=max_tokens, sampling=sampling, kept=kept))

    return ids_of
