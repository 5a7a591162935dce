"""The `gptoss-convert` program: each command lives in a module of its own and is added here."""

from __future__ import annotations

from collections.abc import Callable

import typer

from gptoss_adapters import console
from gptoss_converters.cli.check_modelfile import check_modelfile
from gptoss_converters.cli.inspect import inspect
from gptoss_converters.cli.new import new
from gptoss_converters.cli.to_gguf import to_gguf
from gptoss_converters.cli.to_hf import to_hf
from gptoss_converters.cli.to_metal import to_metal
from gptoss_converters.cli.to_mlx import to_mlx
from gptoss_converters.cli.to_ollama import to_ollama
from gptoss_converters.cli.to_openai import to_openai
from gptoss_converters.cli.verify import verify

app = typer.Typer(
    name="gptoss-convert",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "to-gguf": to_gguf,
    "to-ollama": to_ollama,
    "to-hf": to_hf,
    "to-openai": to_openai,
    "to-metal": to_metal,
    "to-mlx": to_mlx,
    "check-modelfile": check_modelfile,
    "verify": verify,
    "new": new,
}


def _summarise(command: Callable[..., None]) -> str:
    """The first paragraph of a command's text, in one line: the list of commands cuts it after 45 letters by itself."""
    paragraph, _, _ = (command.__doc__ or "").partition("\n\n")
    return " ".join(paragraph.split())


for name, command in COMMANDS.items():
    app.command(name, short_help=_summarise(command))(command)


@app.callback()
def _program() -> None:
    """Carry gpt-oss checkpoints between formats, and prove that nothing changed on the way.

    Exit codes: 0 ok, 1 a check said no, 2 usage, 3 bad input, 4 I/O or space, 130 interrupted. GPTOSS_DEBUG=1 shows
    tracebacks.
    """


def main() -> None:
    """Entry point of the console script."""
    with console.loading():
        from gptoss_adapters.checkpoint.files import end_when_a_mapped_file_shrinks

    end_when_a_mapped_file_shrinks()
    console.run(app)
