"""The o200k_harmony vocabulary, shipped inside the package: text to ids and ids to text, with no download.

`load_vocabulary()` costs nothing until it is used: ranks are unpacked at the first decode, the encoder is built at the
first encode. The encoder is toktok (extra ``fast``) where it is installed, else tiktoken; ids are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Literal, Protocol

from gptoss_harmony.errors import DecodeError
from gptoss_harmony.tokens import GENERATION_STOPS, N_RANKS, SPECIAL_NAMES, SPECIAL_TOKENS, is_special

PUBLISHED_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""sha256 of `published_file()`; tiktoken and openai-harmony check the same value."""

PACKED_SHA256 = "440741350e7cfa1c0f4869ce742d1b043550adbda5187adcac9e787edac6fba9"
"""sha256 of the unpacked data file. A test proves that data of this hash gives `PUBLISHED_SHA256`."""

_RANKS_FILE = "data/o200k_base.zlib"

_ALTERNATIVES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)
PATTERN = "|".join(_ALTERNATIVES)
"""The pre-tokeniser's regular expression as published, a constant of the format."""
_GROUPED = f"(?:{'|'.join(_ALTERNATIVES[:5])})|{'|'.join(_ALTERNATIVES[5:])}"
"""The same for tiktoken, whose engine matches a group that needs no lookahead in one step: about 10 % quicker."""

EncoderName = Literal["auto", "toktok", "tiktoken"]


class Tokenizer(Protocol):
    """What a backend's own tokenizer must offer to stand in for ours: the same ids, special text never special."""

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class Vocabulary:
    """Text to ids and back. `encode` never makes a special id, whatever the text says.

    `tokenizer`: a backend's own, to spare a second one in memory; None uses the shipped ranks.
    """

    special = SPECIAL_TOKENS
    stop_ids = GENERATION_STOPS

    def __init__(self, tokenizer: Tokenizer | None = None, encoder: EncoderName = "auto") -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        return self._tokenizer.encode_ordinary if self._tokenizer else _ENCODERS[self._encoder]()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id from 0 to LAST_SPECIAL; a special token's are its text."""
        return [*_ranks(), *(name.encode() for name in SPECIAL_NAMES)]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. Lone surrogates become U+FFFD, as in tiktoken."""
        try:
            return self._encode(text)
        except UnicodeEncodeError:
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of `ids`; raises DecodeError on an id outside the vocabulary."""
        if self._tokenizer:
            return self._tokenizer.decode_bytes(ids)
        try:
            if ids and min(ids) < 0:
                raise IndexError
            return b"".join(map(self.token_bytes.__getitem__, ids))
        except IndexError:
            unknown = next(i for i in ids if not 0 <= i < len(self.token_bytes))
            raise DecodeError(f"Invalid token for decoding: {unknown}", code="unknown_id") from None

    def decode(self, ids: Sequence[int], errors: str = "replace") -> str:
        """Text of `ids`; `errors` as in `bytes.decode`. Raises DecodeError on an id outside the vocabulary."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    @staticmethod
    def is_special(token: int) -> bool:
        return is_special(token)


@cache
def load_vocabulary(encoder: EncoderName = "auto") -> Vocabulary:
    """The shipped vocabulary, one per process and encoder. ``auto``: toktok if installed, else tiktoken."""
    return Vocabulary(encoder=encoder)


def published_file() -> bytes:
    """The file ``o200k_base.tiktoken`` as published: one base64 token and its rank per line. 3.6 MB."""
    from base64 import b64encode

    return b"".join(b"%s %d\n" % (b64encode(token), rank) for rank, token in enumerate(_ranks()))


def pack(tokens: Sequence[bytes]) -> bytes:
    """The data file's content before compression: one length byte per token, then all tokens in rank order."""
    return bytes(map(len, tokens)) + b"".join(tokens)


def _ranks() -> Iterator[bytes]:
    """Token bytes in rank order; raises RuntimeError if the data file is not the published vocabulary."""
    import hashlib
    import zlib
    from pathlib import Path

    file = Path(__file__).parent / _RANKS_FILE
    packed = zlib.decompress(file.read_bytes())
    if hashlib.sha256(packed).hexdigest() != PACKED_SHA256:
        raise RuntimeError(f"{file}: damaged vocabulary (sha256 differs): install gptoss-adapters again")
    bounds = accumulate(packed[:N_RANKS], initial=N_RANKS)
    return (packed[begin:end] for begin, end in pairwise(bounds))


def _tiktoken() -> Callable[[str], list[int]]:
    import tiktoken

    ranks = dict(zip(_ranks(), range(N_RANKS), strict=True))
    return tiktoken.Encoding(
        "o200k_harmony", pat_str=_GROUPED, mergeable_ranks=ranks, special_tokens={}
    ).encode_ordinary


def _toktok() -> Callable[[str], list[int]]:
    from toktok._toktok import Tokenizer as Toktok  # its public functions only count tokens

    encode: Callable[[str], list[int]] = Toktok("o200k_harmony").encode_ordinary
    return encode


def _fastest() -> Callable[[str], list[int]]:
    try:
        return _toktok()
    except (ImportError, AttributeError, KeyError):  # not installed, or a version with another interior
        return _tiktoken()


_ENCODERS = {"auto": _fastest, "toktok": _toktok, "tiktoken": _tiktoken}
