"""Every YAML of recipes/vllm goes through vLLM's own parser of `vllm serve --config`, with types and choices
checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_recipe_in_json_says_the_same(recipe: Path, parser) -> None:
    """In the shape of vLLM's own recipes: a command's words and its environment, whole for each node."""
    found = json.loads((ROOT / "json" / f"{recipe.stem}.json").read_text())
    assert (found["deploy_type"] == "multi_node") == (recipe.stem == "two_nodes")
    nodes = {
        "argv": [],
        "head_argv": ["--node-rank", "0", "--master-addr", "$HEAD_IP"],
        "worker_argv": ["--node-rank", "1", "--master-addr", "$HEAD_IP", "--headless"],
    }
    commands = {key: found[key] for key in nodes if key in found}
    assert set(commands) == ({"head_argv", "worker_argv"} if recipe.stem == "two_nodes" else {"argv"})
    for key, argv in commands.items():
        assert argv[:2] == ["vllm", "serve"]
        as_yaml = parse(parser, ["serve", "--config", str(recipe), *nodes[key]])
        assert parse(parser, argv[1:]) == as_yaml, key
    used = recipe.read_text().partition("\nmodel:")[0]
    assert all(name in used for name in found["env"])  # the YAML file's text says it too


def parse(parser, argv: list[str]) -> dict[str, Any]:
    found = vars(parser.parse_args(argv))
    model = found.pop("model_tag", None) or found.pop("model")
    return {key: repr(value) for key, value in found.items() if key not in ("config", "model")} | {"model": model}


def test_a_key_that_vllm_does_not_know_is_refused(parser, tmp_path: Path) -> None:
    """The negative control."""
    (tmp_path / "bad.yaml").write_text("model: x\nno-such-option: 3\n")
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "--config", str(tmp_path / "bad.yaml")])


def test_there_is_one_per_kind_of_hardware() -> None:
    assert {recipe.stem for recipe in RECIPES} >= {
        "cpu",
        "one_gpu",
        "one_gpu_120b",
        "tensor_parallel",
        "two_nodes",
        "fine_tune",
        "cut_down",
    }
