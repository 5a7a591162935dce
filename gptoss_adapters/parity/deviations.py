"""Known deviations of engines: found and confirmed by this tool, listed as data. Each is a fault that the engine always
has.

A run never assumes one: it is confirmed where its effect stands above the run's noise, and else said to be expected.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """engines: backend names; fault: of faults/table.py; versions: where it was seen; source: where it comes from;
    effect: for a reader.
    """

    engines: tuple[str, ...]
    fault: str
    versions: str
    source: str
    effect: str


KNOWN = (
    Known(
        ("llama_cpp", "llama_server", "ollama"),
        "yarn_truncate",
        "every version with gpt-oss; seen in llama-cpp-python 0.3.36 and xllamacpp 2026.10",
        "ggml_rope_yarn_corr_dims rounds the YaRN bounds outwards, and no GGUF key says otherwise",
        "rotation angles are off by up to 2.2e-4 rad per position on gpt-oss (0.03 at 128, 0.9 at 4096, 29 at 131072)",
    ),
)


def known_deviations(engine: str) -> list[Known]:
    return [k for k in KNOWN if engine in k.engines]
