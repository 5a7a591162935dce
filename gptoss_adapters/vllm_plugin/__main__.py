"""`python -m gptoss_adapters.vllm_plugin [MODEL] [--json]`: what vLLM would get from this package here, and why."""

from __future__ import annotations

import json
import sys

import typer

from gptoss_adapters.vllm_plugin.report import PluginReport, make_report

FOUND_NOTHING = 1


def main(
    model: str | None = typer.Argument(None, help="A checkpoint, as vLLM would be told it: a folder or a name."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """What this package would register in vLLM on this machine, and why; with MODEL, what would be taken for that
    checkpoint. Nothing is registered by asking, no engine is started. Ends with 1 where nothing would be registered, or
    where vLLM would not load the checkpoint.
    """
    found = make_report(model)
    sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n" if as_json else format_table(found))
    if not found.registers or (found.checkpoint is not None and found.checkpoint.problem):
        raise typer.Exit(FOUND_NOTHING)


def format_table(found: PluginReport) -> str:
    """The report as aligned lines."""
    lines = [f"{name:<14} {value}" for name, value in {**found.machine, **found.switches}.items()]
    rows = [("would register", "", "why"), *((row.name, row.state, row.why) for row in found.rows)]
    width = max(len(name) for name, _, _ in rows)
    lines += ["", *(f"{name:<{width}}  {state:<7}  {why}".rstrip() for name, state, why in rows)]
    return "\n".join([*lines, *_format_checkpoint(found)]) + "\n"


def _format_checkpoint(found: PluginReport) -> list[str]:
    asked = found.checkpoint
    if asked is None:
        return []
    if asked.problem:
        return ["", f"{asked.model}: {asked.problem}"]
    facts = {"kind": asked.kind, "dtype": asked.dtype, "model class": asked.model_class, "experts": asked.experts}
    lines = [f"  {name:<14} {value}" for name, value in facts.items()]
    because = [f"  {'because' if n == 0 else '':<14} {text}" for n, text in enumerate(asked.takes_over)]
    lost = [f"  {'without us' if n == 0 else '':<14} {text}" for n, text in enumerate(asked.lost)]
    notes = [f"  {'but' if n == 0 else '':<14} {text}" for n, text in enumerate(asked.notes)]
    return ["", asked.model, *lines, *because, *lost, *notes]


if __name__ == "__main__":
    typer.run(main)
