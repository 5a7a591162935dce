"""The pocket checkpoint and its GGUF, made once: a real vocabulary and well-formed answers from a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket") / "pocket"
    write(plan_new("pocket", path), sync=False)
    return path


@pytest.fixture(scope="session")
def pocket_gguf(pocket: Path) -> Path:
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

    path = pocket.parent / "pocket.gguf"
    write(plan_gguf(open_checkpoint(pocket), path, GgufOptions()).plan, sync=False)
    return path
