"""The child process of a backend: whatever an engine does, the parent sees one error line and goes on."""

from __future__ import annotations

import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.backends import Backend, BackendFailed, open_backend
from gptoss_adapters.errors import BadInput, NotComparable, UsageError

TESTS = Path(__file__).parents[1]
PATIENT = 280.0  # seconds: no busy machine is so long silent; the tests of silence wait for one


@pytest.fixture(autouse=True)
def fakes_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *(p for p in sys.path if p)]))


def fake(trouble: str = "", timeout: float = PATIENT, **options: object) -> Backend:
    return open_backend("helpers.backend_fakes:Fake=somewhere", trouble=trouble, timeout=timeout, **options)


def wrapper(folder: Path, arguments: str = "") -> str:
    script = folder / "other-python"
    script.write_text(f'#!/bin/sh\ntouch "{folder}/was-run"\nexec "{sys.executable}" {arguments} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_logits_generation_and_info_come_through() -> None:
    with fake() as backend:
        assert backend.info.settings == {"path": "somewhere"}
        assert backend.logits([1, 2, 3]).tolist() == [[0.0] * 10, [1.0] * 10, [2.0] * 10]
        assert backend.logits([1, 2, 3], start=2).tolist() == [[2.0] * 10]
        ids, logprobs = backend.top_logprobs([1, 2], 3)
        assert ids.tolist() == [[0, 1, 2]] * 2 and np.allclose(logprobs, -np.log(10))
        answer = backend.generate([1], max_tokens=5)
        assert (answer.ids, answer.reason) == ([0, 1, 2, 3, 4], "length")
        assert answer.tokens[0] == (0, -0.5, ((0, -0.5),))
        assert backend.generate([1], max_tokens=50, stop_ids=[4]).reason == "stop"


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("abort", r"died with SIGABRT in {op} \(error: a word before the end\)"),
        ("exit", r"ended with exit status 7 in {op} \(error: a word before the end\)"),
        ("raise", r"ZeroDivisionError"),
        ("hang", r"said nothing for 1 s in {op} and was ended"),
    ],
)
@pytest.mark.parametrize("op", ["open", "logits", "generate"])
def test_an_engine_that_dies_is_one_line_and_the_next_call_starts_anew(trouble: str, op: str, line: str) -> None:
    with pytest.raises(BackendFailed, match=line.format(op=op)) as caught:
        backend = fake(f"{trouble} {op}", timeout=1 if trouble == "hang" and op == "open" else PATIENT)
        backend.timeout = 1 if trouble == "hang" else PATIENT
        backend.generate([1]) if op == "generate" else backend.logits([1])
    text = str(caught.value)
    assert text.startswith("somewhere: helpers.backend_fakes:Fake: ") and "\n" not in text
    if op != "open":
        backend.options["trouble"], backend.timeout = "", PATIENT
        if trouble == "raise":  # that one lives on
            backend.close()
        assert backend.logits([1, 2]).shape == (2, 10)
        backend.close()


@pytest.mark.parametrize(
    ("trouble", "line"), [("nan", "NaN or infinite logits at position 4"), ("short", "wrong number of positions")]
)
def test_nonsense_is_refused(trouble: str, line: str) -> None:
    with fake(trouble) as backend, pytest.raises(BackendFailed, match=line):
        backend.logits([1, 2, 3, 4, 5])
    if trouble == "nan":
        with fake(trouble) as backend, pytest.raises(BackendFailed, match="NaN or infinite log-probabilities"):
            backend.top_logprobs([1, 2], 3)


def test_noise_on_stdout_and_stderr_does_not_touch_the_protocol() -> None:
    with fake("noise open, noise logits, noise generate") as backend:
        assert backend.logits([1, 2])[1, 0] == 1
        assert backend.generate([1], max_tokens=8).ids == list(range(8))


def test_big_arrays_and_no_descriptor_leaks() -> None:
    """90 MB: more than /dev/shm has in a container. The prompt is larger than a socket buffer."""
    with fake(vocab_size=70_000) as backend:
        got = backend.logits(list(range(65_000)), start=65_000 - 320)
        assert got.shape == (320, 70_000) and got[0, 0] == 64_680 and got[-1, -1] == 64_999
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            backend.logits([1, 2])
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_backends_compute_at_the_same_time(tmp_path: Path) -> None:
    """Each waits in its computation for the other's."""
    meeting = {"meets": 2, "place": str(tmp_path)}
    with fake(**meeting) as one, fake(**meeting) as two, ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda backend: backend.logits([1, 2]).sum(), (one, two)))
        assert results == [10.0, 10.0]


def test_threads_take_turns_on_one_backend() -> None:
    with fake() as backend, ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(lambda n: len(backend.logits([1] * n)), range(1, 40)))
        assert lengths == list(range(1, 40))


def test_a_stream_comes_token_by_token_and_closing_it_cancels() -> None:
    """The whole answer would take half an hour."""
    with fake(delay=0.02) as backend:
        stream = backend.stream([1], max_tokens=100_000)
        assert [next(stream).id for _ in range(3)] == [0, 1, 2]
        stream.close()
        assert backend.generate([1], max_tokens=2).ids == [0, 1]


@pytest.mark.parametrize("trouble", ["", "prefill"])
def test_cancel_from_another_thread(trouble: str) -> None:
    with fake(trouble, delay=0.005) as backend:
        threading.Timer(0.5, backend.cancel).start()
        answer = backend.generate([1], max_tokens=100_000)
        assert answer.reason == "cancelled" and (len(answer.ids) > 5 if not trouble else not answer.ids)


def test_the_child_ends_with_the_parents_end(tmp_path: Path) -> None:
    backend = fake()
    child = backend._child
    assert child is not None
    child.channel.close()  # as the kernel does when the parent dies
    assert child._process.wait(5) == 0
    backend.close()


def test_another_interpreter_sees_our_packages_and_nothing_else_of_ours(tmp_path: Path) -> None:
    with open_backend(f"llama_cpp@{wrapper(tmp_path)}={TESTS}/data/gguf/gguf/tiny-mxfp4.gguf", n_ctx=64) as backend:
        assert (tmp_path / "was-run").exists() and backend.logits([1, 2, 3]).shape == (3, 512)
    with pytest.raises(BackendFailed, match=r"No module named 'helpers'"):
        open_backend(f"helpers.backend_fakes:Fake@{wrapper(tmp_path)}")


def test_an_interpreter_that_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="/no/python: cannot start the interpreter"):
        open_backend("llama_cpp@/no/python=x.gguf")
    with pytest.raises(BackendFailed, match=r"exit status 1 in open .*No module named 'numpy'"):
        open_backend(f"llama_cpp@{wrapper(tmp_path, '-S')}=x.gguf")


@pytest.mark.parametrize(
    ("spec", "options", "line"),
    [
        ("", {}, "bad backend spec"),
        ("a b", {}, "bad backend spec"),
        ("nobody=x", {}, "unknown backend nobody .expected llama_cpp"),
        ("helpers.backend_fakes:Fake", {"colour": 1}, "has no option colour .expected trouble, vocab_size, delay"),
        ("llama_cpp", {}, "llama_cpp needs a GGUF file"),
        ("llama_cpp=x", {"cache_type": "f64"}, "cache_type .expected f32"),
    ],
)
def test_bad_specs_and_options(spec: str, options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        open_backend(spec, **options)


def test_bad_arguments_and_missing_capabilities() -> None:
    with fake() as backend:
        for tokens, line in (
            ([], "no tokens"),
            ([10], "outside the vocabulary"),
            ([-1], "outside"),
            ([1.5], "flat list"),
            ([1] * 100_001, "longer than the context"),
        ):
            with pytest.raises(UsageError, match=line):
                backend.logits(tokens)
            with pytest.raises(UsageError, match=line):
                backend.generate(tokens)
        for name, value in (
            ("max_tokens", 0),
            ("temperature", -1),
            ("top_p", 0),
            ("top_k", -1),
            ("min_p", 2),
            ("seed", -1),
            ("logprobs", 11),
            ("temperature", float("nan")),
        ):
            with pytest.raises(UsageError, match=f"argument {name} is out of range"):
                backend.generate([1], **{name: value})
        with pytest.raises(UsageError, match="takes no grammar"):
            backend.generate([1], grammar="root ::= x")
        with pytest.raises(UsageError, match="argument start"):
            backend.logits([1, 2], start=2)
        with pytest.raises(UsageError, match="argument k"):
            backend.top_logprobs([1], 11)


def test_a_failure_is_no_bad_input_and_has_the_code_of_what_cannot_be_compared() -> None:
    assert not issubclass(BackendFailed, BadInput)
    assert BackendFailed.exit_code == NotComparable.exit_code == 3
