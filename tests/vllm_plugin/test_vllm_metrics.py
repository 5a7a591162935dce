"""What the plugin counts, in the registry that vLLM's `/metrics` reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import SPECIAL_TOKENS

pytestmark = pytest.mark.backend("vllm")
CHANNEL, MESSAGE, END, CALL, RETURN, START = (
    SPECIAL_TOKENS[f"<|{name}|>"] for name in ("channel", "message", "end", "call", "return", "start")
)
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}


class Tokenizer:
    """What the parsers ask of a tokenizer."""

    def decode(self, ids: Any, **_: Any) -> str:
        return load_vocabulary().decode(list(ids))

    def get_vocab(self) -> dict[str, int]:
        return {}


def ids_of(*pieces: int | str) -> list[int]:
    return [i for piece in pieces for i in ([piece] if isinstance(piece, int) else load_vocabulary().encode(piece))]


def request(**more: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}], tools=[TOOL], **more)


def read(name: str, **labels: str) -> float:
    """A value in vLLM's own registry; 0 before the first."""
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    return get_prometheus_registry().get_sample_value(name, labels) or 0.0


GOOD = ids_of(CHANNEL, "analysis", MESSAGE, "think", END, START, "assistant", CHANNEL, "final", MESSAGE, "Hi.", RETURN)
TWICE = ids_of(CHANNEL, "commentary to=functions.get_weather to=functions.get_weather", MESSAGE, "{}", CALL)
CUT = ids_of(CHANNEL, "commentary to=functions.get_weather", MESSAGE, '{"city":')
REPAIRS, CUTS, HELD = (f"gptoss_adapters_{name}_total" for name in ("repaired_headers", "truncated_calls", "held_tags"))


@pytest.mark.parametrize("way", ["parse", "parse_delta", "process_chunk"])
def test_repairs_and_cuts_are_counted_once_however_an_output_comes(way: str) -> None:
    from gptoss_adapters.vllm_plugin.harmony_parser import TolerantHarmonyParser

    asked = request(tool_choice="auto")

    def run(ids: list[int]) -> None:
        parser = TolerantHarmonyParser(Tokenizer(), asked.tools)
        if way == "parse":
            parser.parse("", asked, enable_auto_tools=True, model_output_token_ids=ids)
        elif way == "parse_delta":
            for i in ids:
                parser.parse_delta("", [i], asked, finished=False)
            parser.parse_delta("", [], asked, finished=True)
        else:
            for i in ids:
                parser.process_chunk([i])
            parser.flush()

    before = read(REPAIRS, kind="repeated_recipient"), read(CUTS)
    run(GOOD)
    assert (read(REPAIRS, kind="repeated_recipient"), read(CUTS)) == before
    run(TWICE)
    assert (read(REPAIRS, kind="repeated_recipient"), read(CUTS)) == (before[0] + 1, before[1])
    run(CUT)
    assert (read(REPAIRS, kind="repeated_recipient"), read(CUTS)) == (before[0] + 1, before[1] + 1)


def test_a_held_answer_is_counted() -> None:
    from gptoss_adapters.vllm_plugin.harmony_parser import TolerantHarmonyParser

    before = read(HELD)
    parser = TolerantHarmonyParser(Tokenizer(), request().tools)
    parser.adjust_request(request(tool_choice="auto"))
    assert read(HELD) == before
    parser.adjust_request(request(tool_choice="required"))
    assert read(HELD) == before + 1


RANKS = """
import os, sys, subprocess
from gptoss_adapters.vllm_plugin import metrics
from vllm.v1.metrics.prometheus import get_prometheus_registry
NAME = "gptoss_adapters_selfcheck_passed"
RANK = "from gptoss_adapters.vllm_plugin import metrics; metrics.install(); metrics.record_selfcheck({})"
metrics.install()
folder = os.environ["GPTOSS_ADAPTERS_VERDICTS"]
seen = [get_prometheus_registry().get_sample_value(NAME)]
for verdict in sys.argv[1:]:
    subprocess.run([sys.executable, "-c", RANK.format(verdict)], check=True)
    seen.append(get_prometheus_registry().get_sample_value(NAME))
print([value if value is None else float(value) for value in seen], os.path.isdir(folder))
print(folder)
"""


@pytest.mark.parametrize("shared", [False, True])
def test_the_worst_verdict_of_the_ranks_reaches_the_server(shared: bool, tmp_path: Path) -> None:
    """shared: as with several API servers, whose registries prometheus_client keeps in files."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_ADAPTERS")}
    if shared:
        env["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RANKS, "True", "False", "True"], env=env, capture_output=True, text=True, check=True
    )
    seen, folder = done.stdout.strip().splitlines()[-2:]
    assert seen == f"[None, 1.0, 0.0, 0.0] {not shared}", done.stderr[-2000:]
    assert not Path(folder).exists()  # nothing is left behind
