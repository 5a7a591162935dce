"""Every YAML of recipes/vllm goes through vLLM's own parser of `vllm serve --config`, with types and choices
checked.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "recipes" / "vllm"
RECIPES = sorted(ROOT.glob("*.yaml"))
pytestmark = pytest.mark.backend("vllm")


@pytest.fixture(scope="module")
def parser():
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    top = FlexibleArgumentParser()
    cmd_init()[0].subparser_init(top.add_subparsers(dest="subparser"))
    return top


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_vllm_takes_it(recipe: Path, parser) -> None:
    more = {"two_nodes": ["--node-rank", "1", "--master-addr", "192.0.2.1", "--headless"]}.get(recipe.stem, [])
    found = parser.parse_args(["serve", "--config", str(recipe), *more])
    keys = [line.partition(":")[0] for line in recipe.read_text().splitlines() if line and not line.startswith("#")]
    missing = [key for key in keys if not hasattr(found, key.replace("-", "_"))]
    assert not missing and found.tool_call_parser == "openai"
    assert f"--config recipes/vllm/{recipe.name}" in recipe.read_text()  # says how it is used


def test_a_key_that_vllm_does_not_know_is_refused(parser, tmp_path: Path) -> None:
    """The negative control."""
    (tmp_path / "bad.yaml").write_text("model: x\nno-such-option: 3\n")
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "--config", str(tmp_path / "bad.yaml")])


def test_there_is_one_per_kind_of_hardware() -> None:
    assert {recipe.stem for recipe in RECIPES} >= {
        "cpu",
        "one_gpu",
        "tensor_parallel",
        "two_nodes",
        "fine_tune",
        "cut_down",
    }
