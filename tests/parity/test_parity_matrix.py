"""Every exporter x backend x kind of checkpoint, by pairs; the whole product is slow. bench/parity_matrix.py wrote
what is committed.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss_adapters.parity.report.schema import EXCEPT, SAME, WITHIN

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import parity_matrix as matrix
from parity_matrix import Cell

ALL, PAIRS = matrix.cells(), matrix.pairwise(matrix.cells())


def params(cells: list[Cell]) -> list[Any]:
    return [
        pytest.param(c, id=f"{c.kind}-{c.exporter}-{c.backend}".replace(" ", "_"), marks=pytest.mark.backend(c.backend))
        for c in cells
    ]


def rows(cells: list[Cell], folder: Path) -> dict[Cell, dict[str, Any]]:
    import torch

    threads = torch.get_num_threads()
    try:
        return dict(zip(cells, matrix.results(cells, folder), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, dict[str, Any]]:
    """Two cells at a time: half of what they take is waiting for a child to start."""
    return rows(PAIRS, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, dict[str, Any]]:
    return rows(ALL, tmp_path_factory.mktemp("product"))


def check(row: dict[str, Any]) -> None:
    """llama.cpp's one known deviation, and nothing else, in llama.cpp; elsewhere nothing at all."""
    if row["verdict"] == matrix.REFUSED:  # said in one line, before anything is written
        assert row["exporter"] != matrix.NONE and "cannot be exported" in row["reason"]
        return
    said = f"{row['kind']} -> {row['exporter']} -> {row['backend']}: {row['verdict']}: {row['reason']}"
    if row["backend"].startswith("llama"):
        assert row["verdict"] == EXCEPT and row["deviations"] in (
            ["yarn_truncate: confirmed"],
            ["yarn_truncate: expected"],
        ), said
    else:
        assert row["verdict"] in (SAME, WITHIN), said
    assert not row["weights"].get("DIFFERENT") and sum(row["weights"].values()) >= 71, said  # every tensor was compared


def test_the_cells_hold_every_pair() -> None:
    def held(cells: list[Cell]) -> set[tuple[str, str]]:
        return {pair for c in cells for pair in c.pairs}

    assert held(PAIRS) == held(ALL) and len(PAIRS) < len(ALL) and set(PAIRS) <= set(ALL)
    assert {c.kind for c in ALL} == set(matrix.kinds()) and {c.backend for c in ALL} == set(matrix.READS)
    assert {(f"kind {k}", f"exporter {e}") for k, e in itertools.product(matrix.kinds(), matrix.EXPORTERS)} <= held(
        PAIRS
    )


@pytest.mark.timeout(1200)  # the first one runs them all
@pytest.mark.parametrize("cell", params(PAIRS))
def test_pair(cell: Cell, pairs: dict[Cell, dict[str, Any]]) -> None:
    check(pairs[cell])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cell", params(ALL))
def test_product(cell: Cell, product: dict[Cell, dict[str, Any]]) -> None:
    check(product[cell])


COMMITTED = {"parity_matrix.json": PAIRS, "parity_matrix_full.json": ALL}


@pytest.mark.parametrize("name", sorted(p.name for p in matrix.RESULTS.glob("parity_matrix*.json")))
def test_what_is_committed_is_of_these_cells(name: str) -> None:
    raw = json.loads((matrix.RESULTS / name).read_text())
    assert sorted(Cell(r["kind"], r["exporter"], r["backend"]) for r in raw["results"]) == sorted(COMMITTED[name])
    for row in raw["results"]:
        check(row)


def test_the_pairs_are_committed() -> None:
    assert (matrix.RESULTS / "parity_matrix.json").exists()
