"""Typed access to one JSON object from a file that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import is_number


class JsonFields:
    """Reads keys of the wanted type; null counts as absent. Raises BadInput naming the key and the file."""

    def __init__(self, raw: Mapping[str, Any], file: str | None) -> None:
        self.raw, self.file = raw, file

    def __call__(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self(key, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return int(self._need(whole and abs(value) < 2**63, key, "an integer", value))

    def number(self, key: str, default: float | None = None) -> float:
        value = self(key, default)
        return float(self._need(is_number(value), key, "a number", value))

    def string(self, key: str, default: str) -> str:
        value = self(key, default)
        return str(self._need(isinstance(value, str), key, "a string", value))

    def boolean(self, key: str, default: bool) -> bool:
        value = self(key, default)
        return bool(self._need(isinstance(value, bool), key, "true or false", value))

    def mapping(self, key: str) -> dict[str, Any] | None:
        value = self(key)
        return None if value is None else dict(self._need(isinstance(value, dict), key, "an object", value))

    def _need(self, ok: bool, key: str, what: str, value: Any) -> Any:
        if not ok:
            got = "nothing" if value is None else value
            raise BadInput(f"config field {key} must be {what}", file=self.file, got=got)
        return value


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that were given."""
    return {field: value for field, value in values.items() if value is not None}


def plain(value: Any) -> Any:
    """150000.0 is spelled 150000 in the published configs."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
