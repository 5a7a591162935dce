"""The engines themselves: llama.cpp and transformers against the gold logits, and what generations promise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.backends import Backend, BackendFailed, open_backend
from gptoss_adapters.backends.known_model import CONFIG, make_known_model, write_gguf
from gptoss_adapters.backends.sampling import log_softmax
from gptoss_adapters.errors import BadInput, NotComparable, UsageError

GOLD = Path(__file__).parents[1] / "data" / "gguf"
GGUF = GOLD / "gguf"
ENGINES = [
    pytest.param("llama_cpp", marks=pytest.mark.backend("llama_cpp")),
    pytest.param("llama_server", marks=pytest.mark.backend("llama_server")),
]


def rel_rms(got: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - reference) ** 2)) / reference.std())


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Backend:
    with open_backend(request.param, GGUF / "tiny-deq-f32.gguf", n_ctx=1024) as backend:
        yield backend


@pytest.fixture(scope="module")
def llama() -> Backend:
    with open_backend("llama_cpp", GGUF / "tiny-deq-f32.gguf", n_ctx=1024, n_batch=100) as backend:
        yield backend


@pytest.fixture(scope="module")
def gold() -> dict[str, np.ndarray]:
    return dict(np.load(GOLD / "tiny-ref-n48.npz"))


# Gold -----------------------------------------------------------------------------------------------------------------


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize(
    ("file", "true", "false", "median"),
    # bounds on rel RMS against rounded and exact YaRN bounds, and on the median position: the gold README's, with room
    [
        ("tiny-deq-f32", 5e-6, (6e-4, 1.2e-3), 5e-6),
        ("tiny-deq-f16", 5e-3, (6e-4, 5e-3), 2e-3),
        ("tiny-bf16-deq", 3e-2, (1e-3, 3e-2), 8e-3),
        ("tiny-mxfp4", 6e-2, (5e-3, 6e-2), 2e-2),
        ("tiny-deq-q8_0", 8e-2, (5e-3, 8e-2), 5e-2),
    ],
)
def test_llama_cpp_on_gold(
    file: str, true: float, false: tuple[float, float], median: float, gold: dict[str, np.ndarray]
) -> None:
    with open_backend("llama_cpp", GGUF / f"{file}.gguf", n_ctx=512) as backend:
        got = backend.logits(gold["ids"])
    assert rel_rms(got, gold["trunc_true"]) <= true
    assert false[0] <= rel_rms(got, gold["trunc_false"]) <= false[1]
    rows = np.sqrt(((got - gold["trunc_true"]) ** 2).mean(axis=1)) / gold["trunc_true"].std()
    assert np.median(rows) <= median


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_in_several_batches(llama: Backend) -> None:
    long = np.load(GOLD / "tiny-ref-n512.npz")
    got = llama.logits(long["ids"])
    assert rel_rms(got, long["trunc_true"]) <= 5e-6
    assert np.array_equal(llama.logits(long["ids"], start=250), got[250:])
    ids, logprobs = llama.top_logprobs(long["ids"], 4, start=100)
    expected = log_softmax(long["trunc_true"][100:])
    assert np.abs(logprobs - np.take_along_axis(expected, ids.astype(np.int64), 1)).max() < 1e-4


@pytest.mark.backend("transformers")
@pytest.mark.parametrize(
    ("source", "truncate", "key"), [("tiny-bf16-deq", True, "trunc_true"), ("tiny-mxfp4", None, "trunc_false")]
)
def test_transformers_gives_the_gold_logits(
    source: str, truncate: bool | None, key: str, gold: dict[str, np.ndarray]
) -> None:
    with open_backend("transformers", GOLD / "src" / source, truncate=truncate) as backend:
        assert rel_rms(backend.logits(gold["ids"]), gold[key]) <= 1e-6
        assert backend.info.stop_ids == (484, 481, 494)


@pytest.mark.backend("transformers")
def test_transformers_takes_a_long_prompt_in_steps() -> None:
    ids = [int(i) for i in np.load(GOLD / "tiny-ref-n512.npz")["ids"]]
    prompt = [*ids, *reversed(ids[:300])]
    with (
        open_backend("transformers", GOLD / "src" / "tiny-mxfp4") as backend,
        open_backend("torch", GOLD / "src" / "tiny-mxfp4") as reference,
    ):
        expected = reference.logits(prompt)
        assert rel_rms(backend.logits(prompt), expected) <= 5e-6
        assert rel_rms(backend.logits(prompt, start=700), expected[700:]) <= 5e-6
        assert backend.generate(prompt, max_tokens=8).ids == reference.generate(prompt, max_tokens=8).ids


@pytest.mark.parametrize("source", ["src/tiny-mxfp4", "gguf/tiny-mxfp4.gguf"])
def test_torch_gives_the_gold_logits(source: str) -> None:
    """From both kinds, in several batches, with the YaRN bounds as they are (a GGUF cannot say) and rounded."""
    gold = np.load(GOLD / "tiny-ref-n512.npz")
    with open_backend("torch", GOLD / source, n_batch=100, truncate=source.endswith("gguf")) as backend:
        reference = gold["trunc_true" if source.endswith("gguf") else "trunc_false"]
        assert rel_rms(backend.logits(gold["ids"]), reference) <= 5e-6
        assert rel_rms(backend.logits(gold["ids"], start=250), reference[250:]) <= 5e-6


def test_taps_and_forced_experts(gold: dict[str, np.ndarray]) -> None:
    with open_backend("torch", GOLD / "src" / "tiny-bf16-deq") as backend:
        taps = backend.taps(gold["ids"])
        assert {k: v.shape for k, v in taps.items()} == {
            "hidden": (4, 48, 96),
            "router_scores": (4, 48, 8),
            "experts": (4, 48, 4),
            "logits": (48, 512),
        }
        best = np.argsort(-taps["router_scores"], axis=-1, kind="stable")[..., :4]
        assert np.array_equal(taps["experts"], best) and rel_rms(taps["logits"], gold["trunc_false"]) <= 5e-6
        same = backend.taps(gold["ids"], forced=taps["experts"])
        assert np.array_equal(same["logits"], taps["logits"])
        other = backend.taps(gold["ids"], forced=(taps["experts"] + 1) % 8)
        assert (
            np.array_equal(other["experts"], (taps["experts"] + 1) % 8)
            and rel_rms(other["logits"], taps["logits"]) > 0.1
        )
        assert backend.info.stop_ids == (481, 484, 494) and backend.info.capabilities.taps
        first = backend.generate(gold["ids"], max_tokens=5, logprobs=0)
        assert first.ids[0] == gold["trunc_false"][-1].argmax()


def test_server_and_llama_cpp_agree_at_every_position(
    engine: Backend, llama: Backend, gold: dict[str, np.ndarray]
) -> None:
    ids, got = engine.top_logprobs(gold["ids"], 512)
    other, expected = llama.top_logprobs(gold["ids"], 512)
    everywhere = np.zeros((2, 48, 512))
    np.put_along_axis(everywhere[0], ids.astype(np.int64), got, 1)
    np.put_along_axis(everywhere[1], other.astype(np.int64), expected, 1)
    assert np.sort(ids, axis=1).tolist() == [list(range(512))] * 48
    assert np.abs(everywhere[0] - everywhere[1]).max() < 1e-5


# Generation -----------------------------------------------------------------------------------------------------------


def test_greedy_ids_are_whole_and_the_same_in_every_engine(
    engine: Backend, llama: Backend, gold: dict[str, np.ndarray]
) -> None:
    """Random weights emit parts of UTF-8 characters all the time; llama-server's own stream loses those ids."""
    prompt = gold["ids"].tolist()
    answer, expected = (b.generate(prompt, max_tokens=150, stop_ids=(), logprobs=2) for b in (engine, llama))
    assert answer.ids == expected.ids and len({t for t in answer.ids if t < 256}) > 20
    assert np.allclose([t.logprob for t in answer.tokens], [t.logprob for t in expected.tokens], atol=1e-4)
    assert [next(iter(t.top))[0] for t in answer.tokens] == answer.ids
    assert [t.id for t in engine.stream(prompt, max_tokens=150, stop_ids=())] == answer.ids
    teacher = llama.logits([*prompt, *answer.ids[:-1]], start=len(prompt) - 1)
    assert teacher.argmax(axis=1).tolist() == answer.ids


def test_stop_ids(engine: Backend, gold: dict[str, np.ndarray]) -> None:
    prompt = gold["ids"].tolist()
    assert engine.info.stop_ids == (481, 484, 494)  # <|endoftext|>, <|return|>, <|call|> of this vocabulary
    free = engine.generate(prompt, max_tokens=10)
    stopped = engine.generate(prompt, max_tokens=10, stop_ids=[free.ids[4]])
    assert (stopped.ids, stopped.reason) == (free.ids[: free.ids.index(free.ids[4]) + 1], "stop")


def test_sampling_is_repeatable(engine: Backend, gold: dict[str, np.ndarray]) -> None:
    prompt = gold["ids"].tolist()
    one, again, other = (engine.generate(prompt, max_tokens=12, temperature=1.0, seed=s).ids for s in (3, 3, 4))
    assert one == again != other


def test_a_grammar_holds_generation(engine: Backend, gold: dict[str, np.ndarray]) -> None:
    prompt = gold["ids"].tolist()
    answer = engine.generate(prompt, max_tokens=20, grammar='root ::= "yes" | "no"', logprobs=1)
    assert answer.reason == "stop" and answer.ids[-1] in engine.info.stop_ids
    assert answer.tokens[0].logprob is not None and answer.tokens[0].logprob < answer.tokens[0].top[0][1]
    with pytest.raises(UsageError, match="grammar"):
        engine.generate(prompt, grammar="root := oops")
    assert engine.generate(prompt, max_tokens=1).reason == "length"


@pytest.mark.backend("llama_cpp")
def test_a_sampled_grammar_has_the_masked_distribution(tmp_path: Path) -> None:
    truth = make_known_model()
    with open_backend("llama_cpp", write_gguf(tmp_path, truth), n_ctx=32) as backend:
        drawn = [
            backend.generate([65], max_tokens=1, temperature=1.0, seed=s, grammar="root ::= [A-E]").ids[0]
            for s in range(400)
        ]
        best = backend.generate([65], max_tokens=1, grammar="root ::= [A-E]").ids
    p = np.exp(log_softmax(truth.logits([65])))[0, 65:70]
    counts = np.bincount(np.array(drawn) - 65, minlength=5)
    assert best == [65 + int(p.argmax())]
    assert (((counts - 400 * p / p.sum()) ** 2) / (400 * p / p.sum())).sum() < 23.5  # chi-square: 1 in 10 000


def test_stream_and_cancel(engine: Backend, gold: dict[str, np.ndarray]) -> None:
    stream = engine.stream(gold["ids"], max_tokens=900, stop_ids=())
    first = [next(stream).id for _ in range(3)]
    stream.close()
    assert engine.generate(gold["ids"], max_tokens=3).ids == first


def test_generation_ends_where_the_context_does(tmp_path: Path) -> None:
    for name in ("llama_cpp", "llama_server"):
        with open_backend(name, GGUF / "tiny-deq-f32.gguf", n_ctx=256) as backend:
            answer = backend.generate([65] * 250, max_tokens=100, stop_ids=())
            assert answer.reason == "engine" and 5 <= len(answer.ids) <= 7
            with pytest.raises(UsageError, match="longer than the context"):
                backend.generate([65] * 257)


# Bad files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_aborts_the_engine(name: str, tmp_path: Path) -> None:
    """Without expert_used_count llama.cpp asserts; the process of the caller must not notice."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(
        (GGUF / "tiny-deq-f32.gguf").read_bytes().replace(b"gpt-oss.expert_used_count", b"gpt-oss.expert_used_xxxxx")
    )
    with pytest.raises(BackendFailed, match=rf"{bad}: {name}: died with SIGABRT in open .*GGML_ASSERT.*n_expert_used"):
        open_backend(name, bad)


@pytest.mark.parametrize("name", ENGINES)
def test_files_that_are_no_models(name: str, tmp_path: Path) -> None:
    whole = (GGUF / "tiny-mxfp4.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("no model")
    for file, why in (("cut.gguf", "not within"), ("text.gguf", "invalid magic"), ("missing.gguf", "No such file")):
        with pytest.raises(BadInput, match=f"{file}: llama.* refuses the file: .*{why}"):
            open_backend(name, tmp_path / file)


@pytest.mark.backend("llama_server")
def test_a_file_without_vocabulary_is_refused_in_words(tmp_path: Path) -> None:
    """llama.cpp's server aborts on it: "Tokenizer not initialized"."""
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.checkpoint.writing.writer import write

    write(
        plan_gguf(open_checkpoint(GGUF / "tiny-mxfp4.gguf"), tmp_path / "bare.gguf", GgufOptions(tokenizer="none")).plan
    )
    with pytest.raises(
        BadInput, match=r"bare.gguf: has no vocabulary, which llama.cpp's server needs: run it by llama_cpp"
    ):
        open_backend("llama_server", tmp_path / "bare.gguf")


@pytest.mark.backend("transformers")
def test_a_folder_without_weights(tmp_path: Path) -> None:
    shutil.copy(GOLD / "src" / "tiny-mxfp4" / "config.json", tmp_path)
    with pytest.raises(BadInput, match=r"transformers refuses the checkpoint: .*no file named model.safetensors"):
        open_backend("transformers", tmp_path)


def test_an_engine_without_taps_says_so(llama: Backend) -> None:
    with pytest.raises(NotComparable, match="llama_cpp: has no taps"):
        llama.taps([1, 2])


def test_the_known_model_is_valid() -> None:
    assert CONFIG.validate() is CONFIG
