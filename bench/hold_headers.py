"""What it costs to hold headers to the declared tools: greedy answers with and without, in turns, beside a control
that is without both times. On pocket, whose tokens are cheap, so that the share is larger than on gpt-oss.

    python bench/hold_headers.py [--rounds 15] [--tools 1,40] [--out bench/results/hold_headers.json]

CPU and wall time per token of `Backend.generate`, of this process and the engine's. `grammar`: the
same by a grammar over the whole answer, where the engine takes one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import _paths
import psutil
from _machine import cpu_model
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from gptoss_harmony import render
from gptoss_harmony.grammars.grammar import Turn, gbnf
from gptoss_harmony.grammars.headers import list_headers
from gptoss_harmony.openai.chat_completions import to_conversation, to_turn

from gptoss_adapters.backends import Backend, open_backend
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

ALLOWED = 1.03
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def make_request(n_tools: int) -> dict[str, Any]:
    names = ["get_weather", *(f"server_{i}_does_something" for i in range(1, n_tools))]
    tools = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in names]
    return {"messages": QUESTION, "tools": tools}


def list_settings(backend: Backend, turn: Turn) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {"free": {}, "free again": {}, "held": {"headers": list_headers(turn)}}
    if backend.info.capabilities.grammar:
        settings["grammar"] = {"grammar": gbnf(turn).text}
    return settings


def measure(backend: Backend, n_tools: int, rounds: int) -> dict[str, Any]:
    request = make_request(n_tools)
    ids = render(to_conversation(request, date="2025-08-05"))
    settings = list_settings(backend, to_turn(request))
    process = psutil.Process()
    seconds: dict[str, dict[str, list[float]]] = {way: {"cpu": [], "wall": []} for way in settings}
    answers: dict[str, list[int]] = {}
    for turn in range(rounds + 1):
        for way, extra in settings.items():
            before, began = count_cpu(process), time.perf_counter()
            answers[way] = backend.generate(ids, max_tokens=200, reuse=True, **extra).ids
            if turn:  # the first is to warm up
                seconds[way]["wall"].append(time.perf_counter() - began)
                seconds[way]["cpu"].append(count_cpu(process) - before)
    us = {way: average(found, len(answers[way])) for way, found in seconds.items()}
    ratios = {way: {kind: us[way][kind] / us["free"][kind] for kind in us[way]} for way in us if way != "free"}
    same = answers["held"] == answers["free"]  # unless the free one calls what was not declared
    return {"tokens": len(answers["free"]), "same_answer": same, "us_per_token": us, "ratio": ratios}


def average(seconds: dict[str, list[float]], n_tokens: int) -> dict[str, float]:
    """Microseconds per token. CPU time comes in ticks of 10 ms, so all rounds count; of wall time the quietest."""
    cpu = sum(seconds["cpu"]) / len(seconds["cpu"])
    return {"cpu": 1e6 * cpu / n_tokens, "wall": 1e6 * min(seconds["wall"]) / n_tokens}


def count_cpu(process: psutil.Process) -> float:
    """CPU seconds of this process and of those that it has started."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tools", type=lambda text: [int(part) for part in text.split(",")], default=[1, 40])
    parser.add_argument("--note", default="", help="Of the run, such as what else the machine did.")
    parser.add_argument("--out", type=Path, default=_paths.RESULTS / "hold_headers.json")
    options = parser.parse_args()
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pocket = Path(folder) / "pocket"
        write(plan_new("pocket", pocket), sync=False)
        write(plan_gguf(open_checkpoint(pocket), Path(f"{pocket}.gguf"), GgufOptions()).plan, sync=False)
        for spec in (f"torch={pocket}", f"llama_cpp={pocket}.gguf"):
            with open_backend(spec) as backend:
                engines[backend.info.engine] = {
                    "version": backend.info.version,
                    "by_tools": {str(n): measure(backend, n, options.rounds) for n in options.tools},
                }
    report = {
        "conditions": {
            "python": platform.python_version(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "note": options.note,
        },
        "allowed": ALLOWED,
        "engines": engines,
    }
    print(json.dumps(report, indent=1))
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
