"""What every command-line tool here shares: one table from exceptions to exit codes, one line per error.

0 ok, 1 a check said no, 2 usage, 3 bad input or not comparable, 4 I/O or space, 130 interrupted (143 by SIGTERM).
GPTOSS_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gptoss_adapters.errors import GptOssError

INTERRUPTED, TERMINATED = 130, 143


def run(app: Any) -> None:
    """Run a typer app and exit with its code. Errors become one line on stderr; typer itself explains usage errors."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt as interrupt:
        sys.exit(_say(str(interrupt) or "interrupted", INTERRUPTED))
    except SystemExit as end:
        behind = _interrupt_behind(end)
        if behind is None:
            raise
        sys.exit(_say(str(behind) or "interrupted", INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say nothing at exit either
    except GptOssError as error:
        sys.exit(_say(str(error), error.exit_code))
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        sys.exit(_say(where, 4))


@contextmanager
def loading() -> Iterator[None]:
    """While packages are imported, of which some print tracebacks of their own when they are interrupted: Ctrl-C
    ends the program at once.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not ignored, as in a shell's background jobs
        signal.signal(signal.SIGINT, lambda *_: os._exit(_say("interrupted", INTERRUPTED)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_behind(end: SystemExit) -> KeyboardInterrupt | None:
    """The Ctrl-C that typer made an exit of: it says nothing, or "Aborted!" and another code, whichever version it
    is.
    """
    cause = getattr(end.__context__, "__cause__", None)
    return cause if isinstance(cause, KeyboardInterrupt) else None


def _say(line: str, code: int) -> int:
    if os.environ.get("GPTOSS_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {line}", file=sys.stderr)
    return code


def _terminate(signum: int, frame: object) -> None:
    raise SystemExit(TERMINATED)
