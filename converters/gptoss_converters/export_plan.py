"""What an exporter is about to write."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss_adapters.checkpoint.writing.plan import Plan


@dataclass(frozen=True)
class ExportPlan:
    """The plan for the streaming writer, and what the user should know about it."""

    plan: Plan
    notices: list[str] = field(default_factory=list)
