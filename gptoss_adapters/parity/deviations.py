"""Known deviations of engines: found and confirmed by this tool, listed as data. Each is a fault that the engine always
has.

A run never assumes one: it is confirmed where its effect stands above the run's noise, and else said to be expected.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_adapters.backends import Arithmetic


@dataclass(frozen=True, slots=True)
class KnownDeviation:
    """arithmetic: of the engines that have it; fault: of faults/table.py; versions: where it was seen; source: where it
    comes from; effect: for a reader.
    """

    arithmetic: Arithmetic
    fault: str
    versions: str
    source: str
    effect: str


KNOWN = (
    KnownDeviation(
        "ggml",
        "yarn_truncate",
        "every version with gpt-oss; seen in llama-cpp-python 0.3.36 and xllamacpp 2026.10",
        "ggml_rope_yarn_corr_dims rounds the YaRN bounds outwards, and no GGUF key says otherwise",
        "rotation angles are off by up to 2.2e-4 rad per position on gpt-oss (0.03 at 128, 0.9 at 4096, 29 at 131072)",
    ),
)


def known_deviations(arithmetic: Arithmetic) -> list[KnownDeviation]:
    return [known for known in KNOWN if known.arithmetic == arithmetic]
