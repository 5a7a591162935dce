"""Checkpoints of every kind, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.blobs import write_blob
from helpers.crafted import GOLD
from helpers.exports import BLOBS, GGUF_TYPES, to_gguf, to_mlx
from helpers.kinds import write_kind

from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    write(plan_new("odd-shape", root / "odd"), sync=False, read_back=False)
    shutil.copytree(GOLD / "src" / "tiny-mxfp4", root / "tiny")
    return {"odd": root / "odd", "tiny": root / "tiny"}


@pytest.fixture(scope="session")
def inputs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root, made = tmp_path_factory.mktemp("inputs"), dict[tuple[str, str], Path]()

    def get(base: str, kind: str) -> Path:
        if (base, kind) not in made:
            at, name = root / f"{base} {kind}", kind.partition(",")[0]
            if kind in GGUF_TYPES:
                made[base, kind] = to_gguf(bases[base], Path(f"{at}.gguf"), **GGUF_TYPES[kind])
            elif kind in BLOBS:
                made[base, kind] = write_blob(bases[base], Path(f"{at}.gguf"), **BLOBS[kind])
            elif kind == Kind.MLX:
                made[base, kind] = to_mlx(bases[base], at)
            else:
                made[base, kind] = write_kind(bases[base], name, at, shards=3 if "3 shards" in kind else 1)
        return made[base, kind]

    return get
