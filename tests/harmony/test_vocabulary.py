"""The shipped vocabulary: the published one, whole; both encoders give the same ids."""

import hashlib
import random
import sys
import zlib
from pathlib import Path

import pytest
from gptoss_harmony import vocabulary
from gptoss_harmony.errors import DecodeError
from gptoss_harmony.tokens import GENERATION_STOPS, LAST_SPECIAL, N_RANKS, SPECIAL_NAMES, SPECIAL_TOKENS
from gptoss_harmony.vocabulary import Vocabulary, load_vocabulary

VOCABULARY = load_vocabulary()
RANKS_FILE = Path(vocabulary.__file__).parent / vocabulary._RANKS_FILE


def test_shipped_ranks_are_the_published_file() -> None:
    published = vocabulary.published_file()
    assert len(published) == 3_613_922
    assert hashlib.sha256(published).hexdigest() == vocabulary.PUBLISHED_SHA256


def test_data_file_is_small_and_packs_these_ranks() -> None:
    stored = RANKS_FILE.read_bytes()
    assert len(stored) < 1_000_000
    assert zlib.decompress(stored) == vocabulary.pack(VOCABULARY.token_bytes[:N_RANKS])


def test_damaged_data_file_is_refused(tmp_path, monkeypatch) -> None:
    packed = bytearray(zlib.decompress(RANKS_FILE.read_bytes()))
    packed[-1] ^= 1
    (tmp_path / "bad").write_bytes(zlib.compress(packed))
    monkeypatch.setattr(vocabulary, "_RANKS_FILE", tmp_path / "bad")
    with pytest.raises(RuntimeError, match="damaged vocabulary"):
        _ = Vocabulary().token_bytes


def test_special_tokens() -> None:
    named = {
        199998: "startoftext",
        199999: "endoftext",
        200002: "return",
        200003: "constrain",
        200005: "channel",
        200006: "start",
        200007: "end",
        200008: "message",
        200012: "call",
    }
    for token in range(N_RANKS, LAST_SPECIAL + 1):
        text = f"<|{named.get(token, f'reserved_{token}')}|>"
        assert VOCABULARY.special[text] == token
        assert VOCABULARY.decode([token]) == text
        assert VOCABULARY.is_special(token)
    assert len(VOCABULARY.special) == 1091
    assert not VOCABULARY.is_special(N_RANKS - 1)
    assert not VOCABULARY.is_special(LAST_SPECIAL + 1)
    assert VOCABULARY.stop_ids == GENERATION_STOPS == {200002, 200012, 199999}


def test_known_ids() -> None:
    known = {
        "analysis": [35644],
        "final": [17196],
        "assistant": [173781],
        "commentary": [12606, 815],
        "user": [1428],
        "system": [17360],
        "developer": [77944],
        "tool": [17952],
        " to=functions": [316, 28, 44580],
        " json": [5701],
    }
    assert {text: VOCABULARY.encode(text) for text in known} == known


def test_special_text_is_ordinary_text() -> None:
    for text in SPECIAL_TOKENS:
        ids = VOCABULARY.encode(text)
        assert not any(map(VOCABULARY.is_special, ids))
        assert VOCABULARY.decode(ids) == text


def test_unknown_ids_raise() -> None:
    for bad in (LAST_SPECIAL + 1, -1, 2**40):
        with pytest.raises(DecodeError, match=f"Invalid token for decoding: {bad}"):
            VOCABULARY.decode([17196, bad])


def test_broken_utf8_is_replaced_or_raises() -> None:
    assert VOCABULARY.decode_bytes([9552]) == b" \xf0\x9f"
    assert VOCABULARY.decode([9552]) == " �"
    with pytest.raises(UnicodeDecodeError):
        VOCABULARY.decode([9552], "strict")


def test_lone_surrogates_become_replacement_characters() -> None:
    for name in ("tiktoken", "toktok"):
        voc = load_vocabulary(name)
        assert voc.decode(voc.encode("a\ud800b\ud83d\ude00")) == "a�b😀"


ALPHABETS = (
    "abcdefghij ABC 0123456789 \n\r\t'sLL.,-_/\\",
    "éüñßøœ ÀÉ日本語中文한국어 العربية हिन्दी ไทย אבג ",
    "\u0301\u200d\ufe0f👩\u200d👧🏽🇩🇪\u017f\u00a0\u2028\u0000\u001c\u007f<|start|>ⅣⅫ²³①٣",
)


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        alphabet = rng.choice([*ALPHABETS, "".join(ALPHABETS)])
        pieces = [
            rng.choice([*alphabet, *SPECIAL_NAMES[:15], "don't", "I'LL", "  ", "\r\n", "12345"])
            for _ in range(rng.randrange(40))
        ]
        texts.append("".join(pieces) if rng.random() < 0.9 else chr(rng.randrange(0xD7FF)) * rng.randrange(1, 30))
    return texts


def test_both_encoders_give_the_same_ids() -> None:
    fast, slow = load_vocabulary("toktok"), load_vocabulary("tiktoken")
    for text in random_texts(5000, seed=0):
        ids = slow.encode(text)
        assert fast.encode(text) == ids, text
        assert slow.decode(ids) == text


def test_falls_back_to_tiktoken_without_the_fast_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "toktok._toktok", None)
    assert Vocabulary().encode("hello world") == load_vocabulary("tiktoken").encode("hello world")


def test_a_backends_tokenizer_can_stand_in() -> None:
    class Backend:
        def encode_ordinary(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def decode_bytes(self, ids) -> bytes:
            return bytes(ids)

    voc = Vocabulary(Backend())
    assert voc.encode("hi") == [104, 105]
    assert voc.decode([104, 105]) == "hi"
    assert voc.special["<|start|>"] == 200006


def test_loaded_once_and_no_more_than_is_needed() -> None:
    assert load_vocabulary() is load_vocabulary()
    vocabulary = Vocabulary()
    assert not {"_encode", "token_bytes"} & set(vars(vocabulary))
    vocabulary.decode([0])
    assert "_encode" not in vars(vocabulary)  # building an encoder is what takes long
