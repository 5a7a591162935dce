"""Checkpoints in shards: what their names and their index may say, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.counting import FEW_CALLS, CallCounter
from safetensors.numpy import load_file, save_file

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.safetensors import INDEX, open_folder
from gptoss_adapters.errors import BadInput, GptOssError

GOLD = Path(__file__).parents[2] / "data" / "checkpoints" / "tiny"


def sharded(root: Path, names: list[str], index: bool = True, total: int | None = None) -> Path:
    """The gold checkpoint in shards of these names, tensors dealt out in turn; blocks and scales come to lie apart."""
    root.mkdir(exist_ok=True)
    tensors = load_file(GOLD / "hf-mxfp4" / "model.safetensors")
    deal = [sorted(tensors)[i :: len(names)] for i in range(len(names))]
    for name, part in zip(names, deal, strict=True):
        save_file({t: tensors[t] for t in part}, root / name)
    shutil.copy(GOLD / "hf-mxfp4" / "config.json", root)
    if index:
        where = {t: name for name, part in zip(names, deal, strict=True) for t in part}
        size = sum(a.nbytes for a in tensors.values()) if total is None else total
        (root / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
    return root


NAMINGS = {
    "zero-based": [f"model-{i:05d}-of-00002.safetensors" for i in range(3)],
    "one-based": [f"model-{i:05d}-of-00003.safetensors" for i in range(1, 4)],
    "two dashes": [f"model--{i:05d}-of-00003.safetensors" for i in range(1, 4)],
    "other stem": [f"weights-{i}-of-3.safetensors" for i in range(1, 4)],
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("index", [True, False])
def test_any_shard_naming(tmp_path: Path, naming: str, index: bool) -> None:
    c, whole = open_checkpoint(sharded(tmp_path / "x", NAMINGS[naming], index)), open_checkpoint(GOLD / "hf-mxfp4")
    assert len(c.stored) == 3 and not any("total_size" in o for o in c.oddities)
    for name in whole.tensors:
        assert np.array_equal(c.read(name), whole.read(name)), name


def test_names_in_any_pattern_need_an_index(tmp_path: Path) -> None:
    names = ["experts.safetensors", "rest.safetensors"]
    assert open_checkpoint(sharded(tmp_path / "x", names)).kind == "hf-mxfp4"
    (tmp_path / "x" / INDEX).unlink()
    with pytest.raises(BadInput, match="unclear"):
        open_checkpoint(tmp_path / "x")


def test_wrong_total_size_is_an_oddity(tmp_path: Path) -> None:
    c = open_checkpoint(sharded(tmp_path / "x", NAMINGS["one-based"], total=7))
    assert any("total_size 7" in o for o in c.oddities)


def test_a_stale_index_beside_a_single_file_is_an_oddity(tmp_path: Path) -> None:
    shutil.copytree(GOLD / "hf-mxfp4", tmp_path / "x")
    (tmp_path / "x" / INDEX).write_text('{"weight_map": {"gone": "gone.safetensors"}}')
    assert any("was ignored" in o for o in open_checkpoint(tmp_path / "x").oddities)


def change_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        index = json.loads((root / INDEX).read_text())
        change(index)
        (root / INDEX).write_text(json.dumps(index))

    return apply


def place_first(where: str) -> Callable[[Path], None]:
    return change_index(lambda i: i["weight_map"].update({next(iter(i["weight_map"])): where}))


def replace_first_shard(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        shard = root / NAMINGS["one-based"][0]
        shard.rename(root.parent / "outside.safetensors")
        make(shard)

    return apply


INDEX_CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "file outside": (place_first("../outside.safetensors"), "plain name"),
    "absolute path": (place_first("/etc/passwd"), "plain name"),
    "backslashes": (place_first("..\\outside.safetensors"), "plain name"),
    "subfolder": (place_first("sub/model.safetensors"), "plain name"),
    "parent": (place_first(".."), "plain name"),
    "empty name": (place_first(""), "plain name"),
    "name with a NUL": (place_first("model\0.safetensors"), "plain name"),
    "name with a newline": (place_first("a\nb"), "plain name"),
    "missing shard": (
        lambda root: (root / NAMINGS["one-based"][1]).unlink(),
        "model-00002-of-00003.safetensors: no such file",
    ),
    "case clash": (place_first("MODEL-00001-of-00003.safetensors"), "no such file"),
    "tensor in another shard": (place_first(NAMINGS["one-based"][2]), "which does not hold it"),
    "tensor in no shard": (
        change_index(lambda i: i["weight_map"].update(gone=NAMINGS["one-based"][0])),
        "gone: the index places",
    ),
    "shard a link to the outside": (
        replace_first_shard(lambda p: p.symlink_to(p.parent.parent / "outside.safetensors")),
        "leaves its folder",
    ),
    "shard a link to nowhere": (replace_first_shard(lambda p: p.symlink_to("nowhere")), "no such file"),
    "shard a link to itself": (replace_first_shard(lambda p: p.symlink_to(p.name)), "leads nowhere"),
    "shard a FIFO": (replace_first_shard(os.mkfifo), "not a regular file"),
    "shard a folder": (replace_first_shard(Path.mkdir), "not a regular file"),
    "shard a device": (replace_first_shard(lambda p: p.symlink_to("/dev/zero")), "leaves its folder"),
    "index a FIFO": (lambda root: ((root / INDEX).unlink(), os.mkfifo(root / INDEX)), "not a regular file"),
    "index a link to the outside": (
        lambda root: ((root / INDEX).rename(root.parent / "i"), (root / INDEX).symlink_to("../i")),
        "leaves its folder",
    ),
    "index not JSON": (lambda root: (root / INDEX).write_text("{"), "malformed"),
    "index a list": (lambda root: (root / INDEX).write_text("[]"), "must be an object"),
    "index with duplicate keys": (
        lambda root: (root / INDEX).write_text('{"weight_map": {"a": "b", "a": "b"}}'),
        "duplicate key 'a'",
    ),
    "index nested too deeply": (
        lambda root: (root / INDEX).write_text('{"weight_map": ' + "[" * 70 + "]" * 70 + "}"),
        "too deeply",
    ),
    "no weight_map": (change_index(lambda i: i.pop("weight_map")), "weight_map"),
    "empty weight_map": (change_index(lambda i: i.update(weight_map={})), "weight_map"),
    "weight_map with numbers": (change_index(lambda i: i["weight_map"].update(a=1)), "weight_map"),
    "a shard twice": (
        lambda root: shutil.copy(root / NAMINGS["one-based"][0], root / NAMINGS["one-based"][1]),
        "which does not hold it",
    ),
    "config.json a FIFO": (
        lambda root: ((root / "config.json").unlink(), os.mkfifo(root / "config.json")),
        "not a regular file",
    ),
    "config.json missing": (lambda root: (root / "config.json").unlink(), "config.json: no such file"),
}


@pytest.mark.parametrize("name", INDEX_CASES)
def test_bad_index_is_refused(tmp_path: Path, name: str) -> None:
    root = sharded(tmp_path / "x", NAMINGS["one-based"])
    change, said = INDEX_CASES[name]
    change(root)
    with pytest.raises(GptOssError) as e, CallCounter() as work:
        open_checkpoint(root)
    assert work.calls < FEW_CALLS
    assert (
        e.value.exit_code == 3
        and said in str(e.value)
        and str(e.value).startswith(str(tmp_path))
        and str(e.value).isprintable()
    )


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_an_incomplete_set_without_an_index_is_refused(tmp_path: Path, missing: int) -> None:
    for naming in ("zero-based", "one-based"):
        root = sharded(tmp_path / naming, NAMINGS[naming], index=False)
        (root / NAMINGS[naming][missing]).unlink()
        with pytest.raises(BadInput, match=r"shard \d of|is missing|exceeds"):
            open_checkpoint(root)


def test_a_huge_shard_count_costs_nothing(tmp_path: Path) -> None:
    root = sharded(tmp_path / "x", ["m-00001-of-99999999999.safetensors"], index=False)
    with pytest.raises(BadInput, match="is missing"):
        open_folder(root)


def test_links_inside_the_folder_and_in_the_hub_cache_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((GOLD / "hf-mxfp4").iterdir())):
        shutil.copy(file, repo / "blobs" / f"hash{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{i}")
    c = open_checkpoint(snapshot)
    assert [f.name for f in c.stored] == ["model.safetensors"]
    shutil.copy(GOLD / "hf-mxfp4" / "config.json", tmp_path / "elsewhere.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../elsewhere.json")
    with pytest.raises(BadInput, match="leaves its folder"):
        open_checkpoint(snapshot)
