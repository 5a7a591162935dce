"""Fixtures of the grammar tests: a model file with random weights, and llama.cpp on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import real_vocabulary_gguf
from helpers.grammar_engines import Llama


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    real_vocabulary_gguf.write(path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def llama(gguf_file: Path) -> Llama:
    return Llama(gguf_file)
