"""`python -m gptoss_adapters.vllm_plugin [--json]`: what vLLM would get from this package here, and why."""

from __future__ import annotations

import json
import sys

import typer

from gptoss_adapters.vllm_plugin.report import PluginReport, make_report


def main(as_json: bool = typer.Option(False, "--json", help="Print the report as JSON.")) -> None:
    """What this package would register in vLLM on this machine, and why. Nothing is registered by asking."""
    found = make_report()
    sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n" if as_json else format_table(found))


def format_table(found: PluginReport) -> str:
    """The report as aligned lines."""
    lines = [f"{name:<14} {value}" for name, value in {**found.machine, **found.switches}.items()]
    rows = [("would register", "", "why"), *((row.name, row.state, row.why) for row in found.rows)]
    width = max(len(name) for name, _, _ in rows)
    return (
        "\n".join([*lines, "", *(f"{name:<{width}}  {state:<7}  {why}".rstrip() for name, state, why in rows)]) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
