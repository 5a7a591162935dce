"""The text layer: real engines agree, or differ as explained; anything else is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gptoss_harmony.rendering.templates import chat_template
from gptoss_harmony.tokens import END, GENERATION_STOPS

from gptoss_adapters.backends import open_backend
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.tokenizer_files import CHAT_TEMPLATE
from gptoss_adapters.errors import NotComparable
from gptoss_adapters.parity.report.schema import FAIL, LOOK, PASS, SKIPPED, Check
from gptoss_adapters.parity.text import text_layer
from gptoss_adapters.parity.text.corpus import FAMILIES, requests, strings
from gptoss_adapters.parity.text.text_layer import _Side, check_text_layer


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def refuse(*_: object) -> Any:
    raise NotComparable("cannot")


def backend(path: Path, **info: Any) -> Any:
    """A target without an engine: only what its files say."""
    known = {
        "engine": "fake",
        "arithmetic": "torch",
        "opens": ("hf", "gguf"),
        "vocab_size": 201088,
        "stop_ids": tuple(GENERATION_STOPS),
        **info,
    }
    return SimpleNamespace(
        name="fake", path=str(path), info=SimpleNamespace(**known), tokenize=refuse, chat_prompt=refuse, chat=refuse
    )


def side(path: Path, **changes: Any) -> _Side:
    return _Side(backend(path), replace(open_checkpoint(path), **changes))


def test_the_corpus_is_large_different_and_the_same_each_time() -> None:
    found = strings()
    assert len({text for _, text in found}) == len(found) >= 10_000
    assert found == strings() and found != strings(seed=1)
    assert {family for family, _ in found} == set(FAMILIES)
    for _, text in found:
        text.encode()  # no surrogates
    efforts = {(shape, r["reasoning_effort"], r["date"], len(r.get("tools", ()))) for shape, r in requests()}
    assert len(requests()) == 240 and len(efforts) >= 8 * 3 * 2 * 3


def test_a_published_folder_is_the_same(pocket: Path) -> None:
    layer = check_text_layer(None, backend(pocket))
    checks = by_name(layer.checks)
    assert layer.verdict == LOOK
    tokenizer = checks["tokenizer"]
    assert (tokenizer.verdict, tokenizer.source, tokenizer.same) == (PASS, "tokenizer.json", text_layer.STRINGS)
    assert checks["control tokens as text"].verdict == PASS and checks["control tokens as text"].count > 200
    template = checks["chat template"]
    assert template.verdict == LOOK and template.count == 240 and template.same == 84 and "published" in template.detail
    assert [checks[n].verdict for n in ("vocabulary table", "server prompts", "prompt token counts", "stop ids")] == [
        SKIPPED
    ] * 3 + [PASS]


def test_our_template_differs_in_nothing_but_control_tokens_in_text(pocket: Path) -> None:
    check = text_layer.check_template(side(pocket, chat_template=chat_template()))
    assert check.verdict == LOOK and check.source == "this package's template"
    assert {shape for shape, (same, count) in check.families.items() if same < count} == {"control tokens as text"}


@pytest.mark.parametrize(
    "change",
    [
        ("# Valid channels", "# Channels"),
        ("Reasoning: ", "Reasoning effort: "),
        ("<|start|>assistant", "<|start|>user"),
    ],
)
def test_a_changed_template_fails(pocket: Path, change: tuple[str, str]) -> None:
    text = CHAT_TEMPLATE.read_text()
    assert change[0] in text
    check = text_layer.check_template(side(pocket, chat_template=text.replace(*change)))
    assert check.verdict == FAIL and check.failures and "a template with sha256" in check.source


def test_two_exchanged_tokens_fail(pocket: Path, pocket_gguf: Path, tmp_path: Path) -> None:
    own = open_checkpoint(pocket_gguf)
    tokens = list(own.metadata["tokenizer.ggml.tokens"])
    tokens[260], tokens[261] = tokens[261], tokens[260]
    check = text_layer.check_table(side(pocket_gguf, metadata={**own.metadata, "tokenizer.ggml.tokens": tokens}))
    assert (check.verdict, check.count - check.same) == (FAIL, 2)

    text = (pocket / "tokenizer.json").read_text()
    the, of = '"Ġthe": 290', '"Ġof": 328'
    assert the in text and of in text
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text(text.replace(the, '"Ġthe": 328').replace(of, '"Ġof": 290'))
    check = text_layer.check_tokenizer(side(pocket, tokenizer_files={"tokenizer.json": wrong}), 700, 0)
    assert check.verdict == FAIL and len(check.failures) == text_layer.FAILURES


def test_stop_ids() -> None:
    for stops, verdict in (
        (GENERATION_STOPS, PASS),
        (GENERATION_STOPS - {200012}, FAIL),
        (GENERATION_STOPS | {END}, FAIL),
    ):
        check = text_layer.check_stops(_Side(backend(Path("x"), stop_ids=tuple(stops)), None))
        assert check.verdict == verdict and len(check.failures) == (verdict == FAIL)


def test_a_file_that_only_the_engine_reads_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF, of types that we do not read")
    layer = by_name(check_text_layer(None, backend(tmp_path / "other.gguf")).checks)
    assert layer["stop ids"].verdict == PASS and layer["vocabulary table"].verdict == SKIPPED


def test_a_small_vocabulary_is_not_compared() -> None:
    layer = check_text_layer(None, backend(Path("x"), vocab_size=512))
    assert layer.verdict == SKIPPED and "512" in layer.checks[0].detail


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_differs_only_by_its_splitting_rule(pocket_gguf: Path) -> None:
    with open_backend("llama_cpp", pocket_gguf, n_ctx=64) as engine:
        checks = by_name(check_text_layer(None, engine).checks)
    assert checks["vocabulary table"].verdict == PASS and checks["vocabulary table"].count == 201088
    tokenizer = checks["tokenizer"]
    assert (
        tokenizer.verdict == LOOK
        and tokenizer.count == text_layer.STRINGS
        and 0.88 < tokenizer.same / tokenizer.count < 0.97
    )
    assert all(
        same == count
        for family, (same, count) in tokenizer.families.items()
        if family in ("code", "digits", "whitespace")
    )
    assert checks["control tokens as text"].verdict == LOOK and checks["stop ids"].verdict == PASS


@pytest.mark.backend("llama_server")
def test_llama_server_renders_what_its_template_says(pocket_gguf: Path) -> None:
    with open_backend("llama_server", pocket_gguf, n_ctx=2048) as engine:
        checks = by_name(check_text_layer(None, engine, count=700).checks)
        odd = ["", "a\0b", "<|end|>", "x" * 300, "\n"]
        assert engine.tokenize(odd) == [text_layer.llama_split.encode(text, False) for text in odd]
    assert checks["tokenizer"].verdict == LOOK and checks["tokenizer"].count == 700
    prompts = checks["server prompts"]
    assert prompts.verdict == LOOK and prompts.count == 120 and prompts.families["a question"][0] == 9
    assert checks["prompt token counts"].verdict == PASS and checks["prompt token counts"].count == 5
    assert checks["stop ids"].verdict == PASS
