"""The `gptoss-harmony` program: render, parse, tokens, validate."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gptoss_harmony.errors import HarmonyError, LayoutError
from gptoss_harmony.messages import Conversation, Message, Role
from gptoss_harmony.parsing.events import Delta, MessageEnd, MessageStart
from gptoss_harmony.parsing.parser import Parser
from gptoss_harmony.rendering.renderer import render
from gptoss_harmony.rendering.training import check_training_line, checked_to_json
from gptoss_harmony.tokens import SPECIAL_TOKENS
from gptoss_harmony.view import colour_tokens, printable, show_tokens
from gptoss_harmony.vocabulary import load_vocabulary

app = typer.Typer(
    name="gptoss-harmony",
    help="Harmony, the chat format of gpt-oss: conversations to tokens, tokens to messages.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class ModeName(StrEnum):
    completion = "completion"
    training = "training"
    plain = "plain"


class DropName(StrEnum):
    upstream = "upstream"
    documented = "documented"
    none = "none"


class FormName(StrEnum):
    role = "role"
    channel = "channel"


FileArgument = Annotated[str, typer.Argument(metavar="FILE|-", help="A file, or - for standard input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IdsOption = Annotated[bool, typer.Option("--ids", help="Token ids.")]
TextOption = Annotated[bool, typer.Option("--text", help="Text, special tokens as their names.")]
ColourOption = Annotated[
    bool, typer.Option("--colour", "--color", help="Coloured text: roles, channels, and where tokens end.")
]
DropOption = Annotated[
    DropName,
    typer.Option(help="Which analysis to leave out: as openai-harmony does, as its documentation says, or none."),
]


@app.callback()
def _program() -> None:
    """Exit codes: 0 ok, 1 a check said no, 2 usage, 3 bad input, 4 I/O, 130 interrupted. GPTOSS_DEBUG=1 shows
    tracebacks.
    """


@app.command("render")
def render_command(
    file: FileArgument,
    ids: IdsOption = False,
    text: TextOption = False,
    colour: ColourOption = False,
    as_json: JsonOption = False,
    mode: Annotated[
        ModeName, typer.Option(help="completion: ready for the next role; training: ends with <|return|>.")
    ] = ModeName.completion,
    next_role: Annotated[Role, typer.Option(help="Who speaks next (mode completion).")] = Role.ASSISTANT,
    drop: DropOption = DropName.upstream,
    form: Annotated[
        FormName, typer.Option(help="Where a call names its tool: channel as gpt-oss writes, role as openai-harmony.")
    ] = FormName.channel,
) -> None:
    """Render a conversation ({"messages": [...]}) as token ids or text.

    Examples: `gptoss-harmony render chat.json`, `gptoss-harmony render - --ids < chat.json`,
    `gptoss-harmony render chat.json --colour --mode training --drop none`.
    """
    if ids + text + colour + as_json > 1:
        raise typer.BadParameter("choose one of --ids, --text, --colour, --json")
    tokens = render(_read_conversation(_read(file), file), next_role, mode.value, drop=drop.value, form=form.value)
    if ids:
        typer.echo(" ".join(map(str, tokens)))
    elif colour:
        typer.echo(colour_tokens(tokens), color=True)
    elif as_json:
        _print_json({"ids": tokens, "text": load_vocabulary().decode(tokens), "count": len(tokens)})
    else:
        typer.echo(load_vocabulary().decode(tokens))


@app.command("parse")
def parse_command(
    file: FileArgument,
    ids: Annotated[bool, typer.Option("--ids", help="The input is token ids (default: seen from the input).")] = False,
    text: Annotated[bool, typer.Option("--text", help="The input is text with the names of special tokens.")] = False,
    role: Annotated[
        str, typer.Option(help="Role that the prompt ended with; none: the input begins with <|start|>.")
    ] = "assistant",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what openai-harmony 0.0.8 refuses.")] = False,
    tool: Annotated[
        list[str], typer.Option("--tool", help="Full name of a declared tool, e.g. functions.f; can be repeated.")
    ] = [],  # noqa: B006
    events: Annotated[bool, typer.Option("--events", help="Show the events as they come.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Parse model output, given as token ids or as text, and show messages and repairs.

    Examples: `gptoss-harmony parse output.txt`, `echo '200005 17196 200008 3686 200002' | gptoss-harmony parse -`,
    `gptoss-harmony parse ids.json --strict --json`.
    """
    if ids and text:
        raise typer.BadParameter("choose one of --ids, --text")
    source = _read(file)
    stream = None if text else _read_ids(source, file, sure=ids)
    parser = Parser(None if role == "none" else _read_role(role), strict, tool)
    if stream is None:
        seen = parser.feed_text(source)
    elif events:
        seen = _feed_singly(parser, stream)
    else:
        seen = parser.feed(stream)
    seen = [*seen, *parser.finish()]
    if as_json:
        _print_json(
            {"messages": [message.to_dict() for message in parser.messages]}
            | ({"events": [*map(_event_to_dict, seen)]} if events else {})
        )
    elif events:
        for event in seen:
            typer.echo(json.dumps(_event_to_dict(event), ensure_ascii=False))
    else:
        for message in parser.messages:
            typer.echo(_describe_message(message))


@app.command("tokens")
def tokens_command(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="Text, or - for standard input.")],
    special: Annotated[
        bool, typer.Option("--special", help="Names like <|start|> are special tokens, not text.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens of a text, one per line: id and text.

    Examples: `gptoss-harmony tokens 'Hello world'`, `gptoss-harmony tokens --special '<|start|>user<|message|>'`.
    """
    source = sys.stdin.read() if text == "-" else text
    ids = _encode_special(source) if special else load_vocabulary().encode(source)
    rows = list(zip(ids, show_tokens(ids), strict=True))
    if as_json:
        _print_json([{"id": token, "text": shown} for token, shown in rows])
    else:
        for token, shown in rows:
            typer.echo(f"{token}\t{json.dumps(shown, ensure_ascii=False)}")


@app.command("validate")
def validate_command(
    file: FileArgument,
    colour: ColourOption = False,
    drop: DropOption = DropName.none,
    as_json: JsonOption = False,
) -> None:
    """Check training data: one conversation, or one per line (JSONL). Exit code 1 if a message is off.

    Prints each problem, and how many tokens would be trained; --colour shows them underlined, --json one object per
    conversation with the span of every message. Examples: `gptoss-harmony validate train.jsonl`,
    `gptoss-harmony validate train.jsonl --json > report.jsonl`.
    """
    total = trained = bad = count = 0
    for number, line in _split_conversations(_read(file)):
        checked = check_training_line(line, drop.value)
        count += 1
        bad += bool(checked.problems)
        total += len(checked.rendering.ids) if checked.rendering else 0
        trained += checked.trained
        if as_json:
            typer.echo(checked_to_json(checked, number))
            continue
        for problem in checked.problems:
            said = problem.where == "" or problem.what.startswith(problem.where)
            typer.echo(f"line {number}: {'' if said else f'{problem.where}: '}{problem.what}")
        if colour and checked.rendering:
            typer.echo(colour_tokens(checked.rendering.ids, checked.rendering.loss_mask), color=True)
    summary = f"{count} conversations, {bad} with problems; {total} tokens, {trained} trained"
    typer.echo(summary, err=as_json)
    if bad or not count:
        raise typer.Exit(1 if count else 3)


def main() -> None:
    """Entry point of the console script: errors become one line on stderr and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say nothing at exit either
    except HarmonyError as error:
        _fail(str(error), 3)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 4)


def _fail(line: str, code: int) -> NoReturn:
    if os.environ.get("GPTOSS_DEBUG") == "1":
        raise
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(code)


def _read(file: str) -> str:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LayoutError(file, f"not UTF-8 (byte {error.start}): expected JSON, text or token ids") from None


def _read_conversation(text: str, file: str) -> Conversation:
    try:
        return Conversation.from_json(text)
    except LayoutError as error:
        raise LayoutError(file, str(error)) from None


def _split_conversations(text: str) -> Iterator[tuple[int, str]]:
    """Line number and JSON of each conversation: the whole input if it is one JSON value, else its lines."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    else:
        yield 1, text


def _read_ids(text: str, file: str, sure: bool) -> list[int] | None:
    """Numbers in any of the usual notations; None if the input is text."""
    if not re.fullmatch(r"[\s\d,\[\]]+", text):
        if sure:
            raise LayoutError(file, "not token ids (expected numbers between spaces or commas)")
        return None
    numbers = re.findall(r"\d+", text)
    bad = next((number for number in numbers if len(number) > 10 or int(number) >= 2**32), None)
    if bad is not None:
        raise LayoutError(file, f"not a token id: {bad[:20]} (expected less than 2**32)")
    return [int(number) for number in numbers]


def _read_role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise typer.BadParameter(f"unknown role {name!r} (expected none, {', '.join(Role)})") from None


def _feed_singly(parser: Parser, ids: list[int]) -> list[Any]:
    return [event for token in ids for event in parser.feed([token])]


def _encode_special(text: str) -> list[int]:
    encode = load_vocabulary().encode
    ids: list[int] = []
    for part in re.split(r"(<\|[a-z_0-9]+\|>)", text):
        ids += [SPECIAL_TOKENS[part]] if part in SPECIAL_TOKENS else encode(part)
    return ids


def _event_to_dict(event: Any) -> dict[str, Any]:
    if isinstance(event, Delta):
        return {"type": "delta", "text": event.text}
    if isinstance(event, MessageStart):
        header = event.header
        fields = {key: getattr(header, key) for key in ("name", "channel", "recipient", "content_type")}
        return {"type": "message_start", "role": header.role.value, **fields, "flags": event.flags}
    assert isinstance(event, MessageEnd)
    return {"type": "message_end", "reason": event.reason, "flags": event.flags}


def _describe_message(message: Message) -> str:
    """A line for the header, one per repair, and the content, indented."""
    head = message.role.value + (f":{message.name}" if message.name is not None else "")
    fields = {"channel": message.channel, "to": message.recipient, "type": message.content_type}
    lines = [head + "".join(f" {key}={value}" for key, value in fields.items() if value is not None)]
    lines += [f"  ! {flag}".replace("\n", "␊") for flag in message.flags]
    lines += [f"  | {line}" for line in message.text.split("\n")]
    return printable("\n".join(lines))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
