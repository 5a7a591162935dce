"""/v1/completions: raw text and ids, echo, log-probabilities of prompts and answers, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gptoss_harmony import load_vocabulary
from helpers.serve_fakes import Served
from helpers.tool_answers import to_ids

from gptoss_adapters.backends import open_backend
from gptoss_adapters.reference.sampling import log_softmax

PATH = "/v1/completions"
CHAT = "<|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant<|channel|>final<|message|>"
IDS = to_ids(CHAT)


@pytest.fixture(scope="module")
def server(pocket: Path) -> Iterator[Served]:
    with Served("torch=pocket", pocket, "--model", "pocket") as started:
        yield started


@pytest.fixture(scope="module")
def logprobs_of(pocket: Path) -> Iterator[Any]:
    """Ids -> the log-probabilities of the whole vocabulary at every position, by the reference."""
    with open_backend("torch", pocket / "pocket") as backend:
        yield lambda ids: log_softmax(backend.logits(ids))


def post(server: Served, **body: Any) -> httpx.Response:
    return server.http.post(PATH, json={"model": "pocket", "temperature": 0} | body)


def ask(server: Served, **body: Any) -> dict[str, Any]:
    answer = post(server, **body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def add_up(answer: httpx.Response) -> dict[str, Any]:
    """The whole answer that a streamed one comes to."""
    *chunks, end = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
    assert end == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    out: dict[str, Any] = {}
    for chunk in map(json.loads, chunks):
        out |= {key: value for key, value in chunk.items() if key not in ("choices", "id", "created")}
        for piece in chunk["choices"]:
            known = choices.setdefault(piece["index"], {})
            text = known.get("text", "") + piece["text"]
            logprobs = piece["logprobs"]
            if logprobs and known:
                logprobs = {key: known["logprobs"][key] + values for key, values in logprobs.items()}
            known |= piece | {"text": text, "logprobs": logprobs}
    return out | {"choices": [choices[i] for i in sorted(choices)]}


def test_text_and_ids_are_the_same_prompt(server: Served) -> None:
    answer = ask(server, prompt=CHAT)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("2 + 2 = 4.", "stop", None)
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl_")
    counts = (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    assert counts == (len(IDS), len(to_ids("2 + 2 = 4.<|return|>")))
    assert ask(server, prompt=IDS)["choices"] == answer["choices"]
    both = ask(server, prompt=[CHAT, CHAT])
    assert [c["index"] for c in both["choices"]] == [0, 1] and both["usage"]["prompt_tokens"] == 2 * len(IDS)
    assert ask(server, prompt=[IDS, IDS])["choices"] == both["choices"]


def test_sixteen_tokens_unless_asked(server: Served) -> None:
    asked = {"prompt": "The", "logit_bias": {}}
    assert ask(server, **asked)["usage"]["completion_tokens"] <= 16
    short = ask(server, prompt=CHAT, max_tokens=3)
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 3
    assert short["choices"][0]["text"] == "2 + "
    assert ask(server, prompt=CHAT, max_tokens=-1)["choices"][0]["text"] == "2 + 2 = 4."


def test_control_tokens_in_a_text(server: Served) -> None:
    """Raw text is the caller's own: names of control tokens are these tokens, unless it says that they are text."""
    plain = ask(server, prompt=CHAT, parse_special=False, echo=True, max_tokens=0)
    assert plain["choices"][0]["text"] == CHAT
    assert plain["usage"]["prompt_tokens"] == len(load_vocabulary().encode(CHAT)) > len(IDS)
    shown = ask(server, prompt=CHAT.partition("<|channel|>")[0], skip_special_tokens=False, max_tokens=30)
    assert "<|channel|>final<|message|>" in shown["choices"][0]["text"]


def test_no_prompt_is_a_new_document(server: Served) -> None:
    for prompt in ("", None):
        assert ask(server, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens"] == 1


def test_echo_with_log_probabilities(server: Served, logprobs_of: Any) -> None:
    """As evaluation harnesses ask: every prompt token but the first, against the reference's own logits."""
    answer = ask(server, prompt=IDS, echo=True, logprobs=3, max_tokens=1)
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    assert choice["text"] == CHAT + "2"
    assert found["tokens"] == [load_vocabulary().decode([i]) for i in [*IDS, *to_ids("2")]]
    assert found["text_offset"] == np.cumsum([0, *map(len, found["tokens"])])[:-1].tolist()
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    expected = logprobs_of(IDS)
    own = [*(expected[i, t] for i, t in enumerate(IDS[1:])), expected[-1, to_ids("2")[0]]]
    assert np.allclose(found["token_logprobs"][1:], own, atol=1e-4)
    for i, (logprob, top) in enumerate(zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)):
        assert np.allclose(sorted(top.values())[-3:], np.sort(expected[i])[-3:], atol=1e-4)
        assert 3 <= len(top) <= 4 and logprob in top.values()


def test_prompt_logprobs_as_vllm_gives_them(server: Served, logprobs_of: Any) -> None:
    (choice,) = ask(server, prompt=IDS, prompt_logprobs=2, max_tokens=1)["choices"]
    found = choice["prompt_logprobs"]
    assert choice["text"] == "2" and choice["logprobs"] is None
    assert found[0] is None and len(found) == len(IDS)
    expected = logprobs_of(IDS)
    for i, (ident, rows) in enumerate(zip(IDS[1:], found[1:], strict=True)):
        rank = int((expected[i] > expected[i, ident]).sum()) + 1
        assert rows[str(ident)]["rank"] == rank
        assert rows[str(ident)]["decoded_token"] == load_vocabulary().decode([ident])
        assert {row["rank"] for row in rows.values()} == {1, 2, rank}
        assert np.allclose([row["logprob"] for row in rows.values()], [expected[i, int(t)] for t in rows], atol=1e-4)


def test_an_answers_log_probabilities(server: Served, logprobs_of: Any) -> None:
    (choice,) = ask(server, prompt=CHAT, logprobs=0)["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == "2 + 2 = 4.<|return|>"
    written = to_ids("2 + 2 = 4.<|return|>")
    expected = logprobs_of([*IDS, *written])[len(IDS) - 1 :]
    assert np.allclose(found["token_logprobs"], [expected[i, t] for i, t in enumerate(written)], atol=1e-4)
    assert [list(top) for top in found["top_logprobs"]] == [[token] for token in found["tokens"]]


def test_parts_of_characters(server: Served) -> None:
    """Ids that are no text by themselves: the text is whole, and no two tokens have the same name."""
    ids = load_vocabulary().encode("🦜🦜")
    assert len(ids) > 2
    (choice,) = ask(server, prompt=ids, echo=True, logprobs=1, max_tokens=0)["choices"]
    assert choice["text"] == "🦜🦜"
    assert any(token.startswith("bytes:\\x") for token in choice["logprobs"]["tokens"])
    assert choice["logprobs"]["text_offset"][0] == 0 and choice["logprobs"]["text_offset"][-1] <= 1


@pytest.mark.parametrize("extra", [{}, {"logprobs": 2}, {"echo": True}, {"echo": True, "logprobs": 1}])
@pytest.mark.parametrize("stop", [None, "=", [" 4.", "zzz"]])
def test_streamed_is_whole(server: Served, extra: dict[str, Any], stop: Any) -> None:
    body = {"prompt": [CHAT, "The weather"], "n": 2, "seed": 5, "temperature": 1, "stop": stop, **extra}
    whole = ask(server, **body)
    streamed = post(server, stream=True, stream_options={"include_usage": True}, **body)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    summed = add_up(streamed)
    for answer in (whole, summed):
        del answer["usage"]["prompt_tokens_details"]  # the second finds the first in the cache
    assert {key: whole[key] for key in summed} == summed
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]


def test_stop_strings_end_the_text_and_its_tokens(server: Served) -> None:
    (choice,) = ask(server, prompt=CHAT, stop=["= 4", "zz"], logprobs=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("2 + 2 ", "stop")
    found = choice["logprobs"]
    assert all(at < len("2 + 2 ") for at in found["text_offset"]) and "4" not in found["tokens"]


def test_choices_have_seeds_of_their_own(server: Served) -> None:
    body = {"prompt": "The", "temperature": 2, "max_tokens": 8}
    several = ask(server, n=3, seed=7, **body)["choices"]
    single = [ask(server, seed=7 + i, **body)["choices"][0]["text"] for i in range(3)]
    assert [choice["text"] for choice in several] == single and len(set(single)) > 1


def test_what_is_not_done_is_said(server: Served) -> None:
    said = ask(server, prompt=CHAT, suffix="x", best_of=3, frobnicate=1, user="u", max_tokens=1)["warnings"]
    assert [warning.partition(":")[0] for warning in said] == ["suffix", "best_of", "frobnicate"]
    streamed = add_up(post(server, prompt=CHAT, suffix="x", stream=True, max_tokens=1))
    assert len(streamed["warnings"]) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [300_000]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "max_tokens": -2}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 1000}, "n"),
        ({"prompt": "x", "temperature": 3}, "temperature"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": [199_999] * 200_000}, "prompt"),
        ({"prompt": "x", "model": "other"}, "model"),
    ],
)
def test_refusals(server: Served, body: dict[str, Any], param: str) -> None:
    answer = post(server, **body)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.backend("llama_server")
@pytest.mark.parametrize("backend", ["llama_server=pocket.gguf", "llama_cpp=pocket.gguf"])
def test_other_engines(backend: str, pocket: Path, logprobs_of: Any) -> None:
    """Also those that give only the best log-probabilities: the prompt's own tokens may be far down."""
    rare = [*IDS, *load_vocabulary().encode(" zebra xylophone")]
    expected = logprobs_of(rare)
    with Served(backend, pocket, "--model", "pocket") as served:
        (choice,) = ask(served, prompt=rare, echo=True, logprobs=2, max_tokens=1)["choices"]
        ranks = ask(served, prompt=rare, prompt_logprobs=0, max_tokens=0)["choices"][0]["prompt_logprobs"]
        assert ask(served, prompt=CHAT)["choices"][0]["text"] == "2 + 2 = 4."
    own = np.array(choice["logprobs"]["token_logprobs"][1 : len(rare)])
    exact = np.array([expected[i, t] for i, t in enumerate(rare[1:])])
    assert np.sqrt(np.mean((own - exact) ** 2)) < 0.1, "llama.cpp rounds what goes into its products, and no more"
    places = [(expected[i] > expected[i, t]).sum() + 1 for i, t in enumerate(rare[1:])]
    assert max(places) > 1000
    told = [next(iter(row.values()))["rank"] for row in ranks[1:]]
    assert all(rank is None or abs(rank - place) <= 2 + 0.2 * place for rank, place in zip(told, places, strict=True))
    assert told[-1] is None if "server" in backend else min(told) == 1


def test_an_engine_without_them_says_so(tmp_path: Path) -> None:
    with Served("helpers.serve_fakes:TextOnly=x", tmp_path, "--model", "pocket") as served:
        for extra, param in (({"echo": True, "logprobs": 1}, "echo"), ({"prompt_logprobs": 1}, "prompt_logprobs")):
            answer = post(served, prompt="x", **extra)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == param
            assert "gives no log-probabilities" in error["message"] and "llama_server" in error["message"]
        assert ask(served, prompt="x", echo=True)["choices"][0]["text"].startswith("x")


def test_a_client_that_leaves_ends_the_scoring(tmp_path: Path) -> None:
    """It would take a minute and more; the backend is free at once, and serves the next one."""
    with Served("helpers.serve_fakes:SlowLogits=x", tmp_path, "--model", "pocket") as served:
        with pytest.raises(httpx.ReadTimeout):
            body = {"prompt": [1] * 5000, "prompt_logprobs": 1, "max_tokens": 0}
            served.http.post(PATH, json={"model": "pocket", **body}, timeout=1)
        served.until(lambda: served.health()["running"] == 0, 20)
        assert ask(served, prompt=[1, 2, 3], prompt_logprobs=1, max_tokens=0)["choices"][0]["prompt_logprobs"][1]
        served.until(lambda: 499 in [line.get("status") for line in served.lines()])


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_fails(tmp_path: Path, stream: bool) -> None:
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "pocket", "--set", "trouble=fail") as served:
        answer = post(served, prompt="x", stream=stream, skip_special_tokens=False)
    error = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["code"] == "backend_failed" and answer.status_code == (200 if stream else 503)


def test_the_sdk(server: Served) -> None:
    made = server.client.completions.create(model="pocket", prompt=CHAT, temperature=0, logprobs=2)
    assert made.choices[0].text == "2 + 2 = 4." and made.choices[0].logprobs
    pieces = server.client.completions.create(model="pocket", prompt=CHAT, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "2 + 2 = 4."
