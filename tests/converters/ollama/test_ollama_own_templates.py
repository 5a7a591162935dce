"""`to-ollama` and the chat template that a checkpoint came with."""

from __future__ import annotations

from pathlib import Path

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions
from gptoss_converters.ollama.to_ollama import Mode, OllamaModel, OllamaOptions, plan_ollama
from helpers.crafted import copy

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.companions import speaks_harmony
from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PUBLISHED = CHAT_TEMPLATE.read_text("utf-8")
CHANGED = PUBLISHED.replace("You are ChatGPT", "You are Pocket")


def plan(tmp_path: Path, template: str | None, mode: Mode | None = None) -> OllamaModel:
    folder = copy(tmp_path / "x")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return plan_ollama(open_checkpoint(folder), tmp_path / "o", GgufOptions(), OllamaOptions(mode=mode))


@pytest.mark.parametrize("template", [None, PUBLISHED, CHANGED])
def test_a_template_in_harmony_gets_ollama_s_parser(template: str | None, tmp_path: Path) -> None:
    model = plan(tmp_path, template)
    assert "TEMPLATE" in model.modelfile
    assert any("differs from the published one" in line for line in model.gguf.notices) == (template == CHANGED)


def test_a_template_that_is_not_harmony_goes_into_the_gguf(tmp_path: Path) -> None:
    model = plan(tmp_path, CHATML)
    assert "TEMPLATE" not in model.modelfile and CHATML.encode() in model.plan.files[0].header
    assert any("is not Harmony: it goes into the GGUF" in line for line in model.gguf.notices)


def test_who_asks_for_harmony_gets_it_and_a_word(tmp_path: Path) -> None:
    model = plan(tmp_path, CHATML, "harmony")
    assert "TEMPLATE" in model.modelfile
    assert any("the model may not know it" in line for line in model.gguf.notices)


def test_harmony_is_told_by_its_tokens() -> None:
    assert speaks_harmony(None) and speaks_harmony(PUBLISHED) and speaks_harmony(CHANGED)
    assert not speaks_harmony(CHATML) and not speaks_harmony("{{ messages }}")
