"""Our structural tags in vLLM: compiled apart from its cache, by every compiler that its backend has, and taken back
draft by draft under speculative decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from helpers.vllm_parser import Tokenizer, ids_of, load_parser, request

pytestmark = pytest.mark.backend("vllm")

SIZE = 201088
STOPS = (200002, 199999, 200012)
THOUGHT = ids_of("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    from gptoss_adapters.checkpoint.formats.tokenizer_files import tokenizer_json

    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(tokenizer_json())
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


@pytest.fixture(scope="module", autouse=True)
def one_vocabulary() -> Iterator[None]:
    """Seconds for each backend, otherwise: vLLM and our compiler read the vocabulary anew."""
    import xgrammar

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xgrammar.TokenizerInfo, "from_huggingface", cache(xgrammar.TokenizerInfo.from_huggingface))
        yield


@pytest.fixture(scope="module")
def tags() -> tuple[str, str]:
    """Of a demanded call, and of an answer by schema."""
    parser = load_parser()
    formatted = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
    call, answer = (
        parser(Tokenizer(), None).adjust_request(request(**more)).structured_outputs.structural_tag
        for more in ({"tool_choice": "required"}, {"tools": None, "response_format": formatted})
    )
    return call, answer


def make_backend(tokenizer: Any, speculative: int = 0) -> Any:
    """vLLM's own, as its engine core makes it."""
    from types import SimpleNamespace

    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    config = SimpleNamespace(
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
        model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type="gpt_oss")),
        speculative_config=SimpleNamespace(num_speculative_tokens=speculative) if speculative else None,
    )
    return XgrammarBackend(config, tokenizer=tokenizer, vocab_size=SIZE)


def compile_with(backend: Any, tag: str) -> Any:
    import inspect

    from vllm.v1.structured_output.backend_types import StructuredOutputOptions

    takes_stops = "stop_token_ids" in inspect.signature(type(backend).compile_grammar).parameters  # later releases
    more = {"stop_token_ids": set(STOPS)} if takes_stops else {}
    return backend.compile_grammar(StructuredOutputOptions.STRUCTURAL_TAG, tag, **more)


def list_masks(grammar: Any, ids: list[int]) -> list[bytes]:
    """What may come at each token."""
    import xgrammar

    found = []
    for token in ids:
        mask = xgrammar.allocate_token_bitmask(1, SIZE)
        grammar.fill_bitmask(mask, 0)
        found.append(mask.numpy().tobytes())
        assert grammar.accept_tokens("request", [token])
    return found


def test_the_backend_gives_each_tag_its_own_masks(tokenizer: Any, tags: tuple[str, str]) -> None:
    """In either order, through vLLM's backend whole: since 0.33 it has a compiler of its own for tags."""
    call, answer = tags
    first = make_backend(tokenizer)
    alone = {call: list_masks(compile_with(first, call), THOUGHT)}
    assert list_masks(compile_with(first, answer), THOUGHT) != alone[call]
    second = make_backend(tokenizer)
    alone[answer] = list_masks(compile_with(second, answer), THOUGHT)
    assert list_masks(compile_with(first, answer), THOUGHT) == alone[answer]
    assert list_masks(compile_with(second, call), THOUGHT) == alone[call]


def test_xgrammar_s_own_cache_mixes_them_up(tokenizer: Any, tags: tuple[str, str]) -> None:
    """The negative control, and that whole tags are kept: compiling one takes a tenth of a second."""
    import xgrammar

    from gptoss_adapters.vllm_plugin.tag_compiler import MARK, Uncached

    call, answer = tags
    assert MARK in call and MARK in answer
    compiler = Uncached(tokenizer, SIZE)
    assert compiler.compile_structural_tag(call) is compiler.compile_structural_tag(call)
    shared = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=SIZE))
    shared.compile_structural_tag(call)
    masks = []
    for made in (shared, compiler):
        matcher = xgrammar.GrammarMatcher(made.compile_structural_tag(answer), override_stop_tokens=list(STOPS))
        seen = []
        for token in THOUGHT:
            mask = xgrammar.allocate_token_bitmask(1, SIZE)
            matcher.fill_next_token_bitmask(mask)
            seen.append(mask.numpy().tobytes())
            assert matcher.accept_token(token)
        masks.append(seen)
    assert masks[0] != masks[1]


def test_it_is_put_in_place_once(tags: tuple[str, str]) -> None:
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    from gptoss_adapters.vllm_plugin import tag_compiler

    first = XgrammarBackend.compile_grammar
    tag_compiler.install()
    assert XgrammarBackend.compile_grammar is first and first.gptoss_adapters


def test_rejected_drafts_leave_no_trace_in_our_grammars(tokenizer: Any, tags: tuple[str, str]) -> None:
    """Drafts are tried on the grammar, and those that the model rejects are taken back."""
    drafts = 4
    backend = make_backend(tokenizer, speculative=drafts)
    plain = list_masks(compile_with(backend, tags[0]), THOUGHT)
    grammar = compile_with(backend, tags[0])
    for n, token in enumerate(THOUGHT):
        draft = THOUGHT[n : n + drafts]
        assert grammar.validate_tokens(draft) == draft
        assert grammar.validate_tokens([token, STOPS[0]])[:2] == [token]  # no answer ends before it is one
        assert grammar.accept_tokens("request", draft)
        grammar.rollback(len(draft))
        assert list_masks(grammar, [token]) == [plain[n]]
