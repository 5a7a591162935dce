"""`gptoss-convert check-modelfile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_adapters.errors import CheckFailed
from gptoss_converters.cli.console import Output
from gptoss_converters.cli.options import JsonOption


def check_modelfile(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Modelfile; paths in it are relative to its folder.")],
    as_json: JsonOption = False,
) -> None:
    """Check a Modelfile for gpt-oss, and the model files it names, against Ollama's grammar and its traps; exit 1 for
    an error.

    Examples:

        gptoss-convert check-modelfile ./my-tune/Modelfile

        gptoss-convert check-modelfile Modelfile --json
    """
    from gptoss_converters.ollama.rules import check

    found = check(file)
    errors = [f for f in found if not f.warning]
    lines = [f"{file}:{f.line}: {'warning' if f.warning else 'error'}: {f.rule}: {f.what}" for f in found]
    count = f"{len(errors)} errors, {len(found) - len(errors)} warnings"
    text = "\n".join(lines if errors else [*lines, f"{file}: {count}"])
    Output(as_json).show(text, file=str(file), findings=[f._asdict() for f in found])
    if errors:
        raise CheckFailed(count, file=file)
