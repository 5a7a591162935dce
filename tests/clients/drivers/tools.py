"""The functions and the schema that every client is given, and what its way of asking comes to as arguments."""

from __future__ import annotations

import json
from typing import Any

MODEL = "gpt-oss-20b"
KEY = "none"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
TOOLS = {"get_weather": ("Weather of a city.", WEATHER), "get_time": ("The time of day.", NOTHING)}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Calls(list[tuple[str, Any]]):
    """What was called, in order."""

    def get_weather(self, city: str) -> str:
        """Weather of a city."""
        self.append(("get_weather", {"city": city}))
        return f"sunny in {city}"

    def get_time(self) -> str:
        """The time of day."""
        self.append(("get_time", {}))
        return "noon"

    def run(self, name: str, arguments: str | dict[str, Any]) -> str:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        return str(getattr(self, name)(**given))


def list_settings(flow: dict[str, Any], **names: str) -> dict[str, Any]:
    """A flow's settings under a client's names; the temperature is 0 where the flow has none.

    names: the client's name of a setting; those that it lacks are left out.
    """
    given = {"temperature": 0, **flow}
    return {name: given[setting] for setting, name in names.items() if setting in given}


# What most clients name as the API does.
SAME = {name: name for name in ("temperature", "top_p")}
PENALTIES = {name: name for name in ("seed", "presence_penalty", "frequency_penalty")}


def is_json(flow: dict[str, Any]) -> bool:
    return "schema" in flow or "json_object" in flow
