"""JSON schema to TypeScript: the gold cases, the floats, and what is not a schema at all."""

import json
import math
import random
from pathlib import Path

import pytest
from gptoss_harmony import LayoutError, to_typescript
from gptoss_harmony.rendering.typescript import compact_json

GOLD = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data/harmony/schema_cases.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("case", GOLD, ids=lambda case: case["id"])
def test_gold(case) -> None:
    assert to_typescript(case["schema"]) == case["typescript"]


def test_all_gold_cases_are_here() -> None:
    assert len(GOLD) == 226


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e-5, "0.00001"),
        (-9.99e-5, "-0.0000999"),
        (1e-4, "0.0001"),
        (1e-6, "1e-6"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e16"),
        (1e20, "1e20"),
        (1.5e300, "1.5e300"),
        (1.25e-7, "1.25e-7"),
        (9999999999999998.0, "9999999999999998.0"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, "1.8446744073709552e19"),
        (-(2**63), "-9223372036854775808"),
        (-(2**63) - 1, "-9.223372036854776e18"),
        (True, "true"),
        (math.inf, "null"),
    ],
)
def test_numbers(number, text: str) -> None:
    assert compact_json(number) == text


def test_floats_read_back_exactly() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        value = rng.choice([-1, 1]) * rng.random() * 10.0 ** rng.randrange(-30, 30)
        assert float(compact_json(value)) == value


def test_compact_json_is_json() -> None:
    value = {"a": [1, 'é"\n\x01\x7f', None, True, {"b": {}}], "": []}
    assert compact_json(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    "junk", [None, 3, "string", [], True, {"type": None}, {"type": 3}, {"type": {}}, {"anyOf": []}, {"type": ["x", 1]}]
)
def test_never_raises_on_what_is_not_a_schema(junk) -> None:
    assert to_typescript(junk) == ("x" if junk == {"type": ["x", 1]} else "any")


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize("schema", [nested(100_000), {"oneOf": [{"default": 10**400}]}], ids=["deep", "large"])
def test_what_cannot_be_written_is_bad_input(schema) -> None:
    with pytest.raises(LayoutError, match="not a JSON schema that can be written"):
        to_typescript(schema)


def test_objects_with_odd_members() -> None:
    schema = {
        "type": "object",
        "properties": {"a": 1, "b": {"oneOf": "no", "description": "d", "default": 1}},
        "required": [1, "a"],
    }
    assert to_typescript(schema) == "{\na: any,\nb?: any,\n}"
