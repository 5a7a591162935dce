"""What the plugin did, as Prometheus metrics in vLLM's own `/metrics`.

    gptoss_adapters_repaired_headers_total{kind}   repairs that the parser made, by the flag that names them
    gptoss_adapters_truncated_calls_total          tool calls that the end of an output cut off
    gptoss_adapters_held_tags_total                requests whose answer was held to one of our structural tags
    gptoss_adapters_selfcheck_passed               1 or 0: the worst verdict of this deployment's ranks; absent before

The parser lives in the API server, so its counters are simply there. SELFCHECK runs in the workers, whose registries
nobody reads: each leaves its verdict in a folder that `install` names to all of the server's processes. With several
API servers vLLM has prometheus_client share its values between processes, and then a gauge is enough.
Nothing here may fail a request: what goes wrong is a line in the debug log.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_harmony import Message

REPAIRED, TRUNCATED, HELD, PASSED = (
    f"gptoss_adapters_{name}" for name in ("repaired_headers", "truncated_calls", "held_tags", "selfcheck_passed")
)
_FOLDER = "GPTOSS_ADAPTERS_VERDICTS"  # where ranks leave their verdicts; set by us, inherited by vLLM's processes
_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own variable
_WORDS = {
    REPAIRED: "Repairs that the Harmony parser made, by kind.",
    TRUNCATED: "Tool calls that the end of an output cut off.",
    HELD: "Requests whose answer was held to a structural tag of gptoss-adapters.",
    PASSED: "Whether every checked rank's expert layers equal the reference.",
}
# About a message's content, or not a repair at all: what stands in REPAIRED is what vLLM's own parser stumbles over.
_NOT_REPAIRS = frozenset({"undeclared_tool", "arguments_not_json", "json_without_recipient", "unknown_token"})

log = logging.getLogger("vllm.gptoss_adapters")


def install() -> None:
    """Names the folder of verdicts to the processes to come, and shows them in this one's registry. Idempotent."""
    if _FOLDER not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"gptoss-adapters-{os.getpid()}-{secrets.token_hex(8)}"
        os.environ[_FOLDER] = str(folder)
        atexit.register(_remove, folder, os.getpid())
    _register_collector()


def count_messages(messages: Sequence[Message], closed: bool) -> None:
    """The repairs in one whole output. closed: it ends where a model may stop (`was_closed`)."""
    try:
        for kind in _list_repairs(messages):
            _counter(REPAIRED, "kind").labels(kind).inc()
        if messages and not closed and messages[-1].recipient is not None:
            _counter(TRUNCATED).inc()
    except Exception as error:
        log.debug("gptoss-adapters: repairs were not counted: %s: %s", type(error).__name__, error)


def count_held_tag() -> None:
    """One request whose answer is held to our structural tag."""
    try:
        _counter(HELD).inc()
    except Exception as error:
        log.debug("gptoss-adapters: a held tag was not counted: %s: %s", type(error).__name__, error)


def record_selfcheck(passed: bool) -> None:
    """This rank's verdict; of several verdicts in a deployment the worst is shown."""
    try:
        if _SHARED in os.environ:
            _gauge().set(int(passed))
        elif folder := os.environ.get(_FOLDER):
            Path(folder).mkdir(mode=0o700, exist_ok=True)
            (Path(folder) / str(os.getpid())).write_text(str(int(passed)))
    except Exception as error:
        log.debug("gptoss-adapters: the verdict was not recorded: %s: %s", type(error).__name__, error)


def read_verdict() -> bool | None:
    """The worst verdict that the ranks have left; None before there is one."""
    try:
        verdicts = [path.read_text() for path in Path(os.environ[_FOLDER]).iterdir()]
    except (KeyError, OSError):
        return None
    return "0" not in verdicts if verdicts else None


def _list_repairs(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        for flag in message.flags:
            kind = flag.partition(":")[0]
            if kind not in _NOT_REPAIRS:
                yield kind


@cache
def _counter(name: str, *labels: str) -> Any:
    from prometheus_client import Counter

    return Counter(name, _WORDS[name], labels)


@cache
def _gauge() -> Any:
    from prometheus_client import Gauge

    return Gauge(PASSED, _WORDS[PASSED], multiprocess_mode="min")


@cache
def _register_collector() -> None:
    from prometheus_client import REGISTRY
    from prometheus_client.core import GaugeMetricFamily

    class Verdicts:
        """Asked at each scrape."""

        def describe(self) -> list[Any]:
            return []  # registering must not read anything

        def collect(self) -> Iterator[Any]:
            passed = read_verdict()
            if passed is not None:
                yield GaugeMetricFamily(PASSED, _WORDS[PASSED], value=int(passed))

    REGISTRY.register(Verdicts())


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker runs the same exit handlers
        shutil.rmtree(folder, ignore_errors=True)
