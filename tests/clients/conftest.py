"""The matrix of libraries, Codex and opencode are a part of `make test`; other programs are slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

HERE = Path(__file__).parent
IN_CI = ("test_client_matrix.py", "test_programs.py")  # what is slow there says so itself


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.name not in IN_CI:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket checkpoint as a folder `pocket` and a file `pocket.gguf`; returns their parent."""
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

    parent = tmp_path_factory.mktemp("clients")
    write(plan_new("pocket", parent / "pocket"), sync=False)
    write(plan_gguf(open_checkpoint(parent / "pocket"), parent / "pocket.gguf", GgufOptions()).plan, sync=False)
    return parent
