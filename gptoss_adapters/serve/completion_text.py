"""Raw completions: tokens as text and as the log-probabilities of the legacy API, one piece at a time."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gptoss_harmony import Vocabulary
from gptoss_harmony.openai.output import StopText

from gptoss_adapters.backends.protocol import Token
from gptoss_adapters.backends.scoring import PromptLogprobs
from gptoss_adapters.serve.errors import Json


class CompletionText:
    """Takes the tokens of a prompt that is echoed and of its completion; gives out pieces of text, each with the
    log-probabilities of its tokens where they are wanted.

    `skip_special`: control tokens of the completion leave no text. `stopped`: a stop string was found; the text ends
    before it.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str], wants_logprobs: bool, skip_special: bool) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._filter = StopText(stops) if stops else None
        self._wants_logprobs = wants_logprobs
        self._skip_special = skip_special
        self._read = 0  # characters of the tokens so far
        self._shown = 0  # characters given out
        self._pending: list[tuple[int, Token]] = []  # with where their text begins

    @property
    def stopped(self) -> bool:
        return self._filter is not None and self._filter.hit is not None

    def echo(self, prompt: Sequence[int], scored: PromptLogprobs | None) -> str:
        """The prompt's text, which no stop string ends."""
        text = self._vocabulary.decode(prompt)
        for token in spell_prompt(prompt, scored) if self._wants_logprobs else ():
            self._pending.append((self._read, token))
            self._read += len(self._decode(token.id, False))
        self._decoder.reset()
        self._read = self._shown = len(text)
        return text

    def feed(self, token: Token) -> str:
        """What a token adds to the text."""
        if self._wants_logprobs:
            self._pending.append((self._read, token))
        return self._show(self._decode(token.id, self._skip_special))

    def close(self) -> str:
        """What was held back."""
        text = self._show(self._decoder.decode(b"", final=True))
        if self._filter and not self.stopped:
            held = self._filter.close()
            self._shown += len(held)
            text += held
        return text

    def take_logprobs(self, last: bool = False) -> Json | None:
        """Of the tokens whose text was given out since the last call; `last`: of all that belong to the text."""
        if not self._wants_logprobs:
            return None
        whole = last and not self.stopped
        n = len(self._pending) if whole else sum(at < self._shown for at, _ in self._pending)
        taken = self._pending[:n]
        del self._pending[:n]
        return {
            "tokens": [self.spell(token.id) for _, token in taken],
            "token_logprobs": [_find_own(token) for _, token in taken],
            "top_logprobs": [self._spell_top(token) for _, token in taken],
            "text_offset": [at for at, _ in taken],
        }

    def spell(self, ident: int) -> str:
        """The text of a token alone; bytes that are no text by themselves in OpenAI's way, ``bytes:\\xe2\\x82``."""
        known = self._vocabulary.token_bytes
        data = known[ident] if ident < len(known) else b"<|%d|>" % ident
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _spell_top(self, token: Token) -> Json | None:
        """The best ones, and the token itself where it is none of them."""
        if token.logprob is None:
            return None
        return {self.spell(token.id): _find_own(token)} | {self.spell(ident): value for ident, value in token.top}

    def _decode(self, ident: int, skip: bool) -> str:
        if skip and self._vocabulary.is_special(ident):
            return ""
        return self._decoder.decode(self._vocabulary.decode_bytes([ident]))

    def _show(self, text: str) -> str:
        self._read += len(text)
        shown = self._filter.feed(text) if self._filter else text
        self._shown += len(shown)
        return shown


def _find_own(token: Token) -> float | None:
    """Where the token is among the best ones, exactly what stands there: harnesses ask by equality whether it is the
    most probable one.
    """
    return dict(token.top).get(token.id, token.logprob)


def spell_prompt(prompt: Sequence[int], scored: PromptLogprobs | None) -> list[Token]:
    """A prompt's tokens with their log-probabilities; the first has none, for nothing came before it."""
    assert scored is not None
    rows = zip(prompt[1:], scored.own.tolist(), scored.ids.tolist(), scored.best.tolist(), strict=True)
    return [
        Token(prompt[0]),
        *(Token(ident, own, tuple(zip(ids, best, strict=True))) for ident, own, ids, best in rows),
    ]


def spell_prompt_logprobs(
    prompt: Sequence[int], scored: PromptLogprobs, k: int, text: CompletionText
) -> list[Json | None]:
    """`prompt_logprobs` as vLLM has it: for each token but the first, id -> logprob, rank and text."""
    out: list[Json | None] = [None]
    ranks = scored.ranks.tolist()
    for token, rank in zip(spell_prompt(prompt, scored)[1:], ranks, strict=True):
        best = [(ident, value, place) for place, (ident, value) in enumerate(token.top[:k], 1)]
        rows = {ident: (value, place) for ident, value, place in [(token.id, token.logprob, rank), *best]}
        out.append(
            {
                str(ident): {"logprob": value, "rank": place or None, "decoded_token": text.spell(ident)}
                for ident, (value, place) in rows.items()
            }
        )
    return out
