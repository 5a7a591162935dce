"""Incremental UTF-8: token bytes in, text out. A token may end in the middle of a character."""

from __future__ import annotations

from codecs import utf_8_decode

REPLACEMENT = "\ufffd"


class Utf8Decoder:
    """Gives text as soon as it is complete; each maximal bad subpart becomes one U+FFFD. Chunking changes nothing."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = b""

    @property
    def clean(self) -> bool:
        """True if the next bytes can be decoded on their own."""
        return not self.pending

    def decode(self, data: bytes) -> tuple[str, ...]:
        """The text that is complete now, in pieces that may be empty."""
        data = self.pending + data
        text, used = utf_8_decode(data, "replace", False)
        self.pending = data[used:]
        return (text,)

    def flush(self) -> str:
        """The rest, incomplete characters replaced; the decoder is new afterwards."""
        text = self.pending.decode("utf-8", "replace")
        self.__init__()  # type: ignore[misc]
        return text


class StrictUtf8Decoder(Utf8Decoder):
    """As openai-harmony 0.0.8: at most one U+FFFD per call, what follows it waits for the next call; after an unknown
    token the rest of the message is one U+FFFD, placed before what was waiting."""

    __slots__ = ("poisoned",)

    def __init__(self) -> None:
        super().__init__()
        self.poisoned = False

    @property
    def clean(self) -> bool:
        return not self.pending and not self.poisoned

    def decode(self, data: bytes) -> tuple[str, ...]:
        if self.poisoned:
            return ()
        data = self.pending + data
        try:
            text, used = utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            self.pending = data[error.end :]
            return data[: error.start].decode(), REPLACEMENT
        self.pending = data[used:]
        return (text,)

    def flush(self) -> str:
        return (REPLACEMENT if self.poisoned else "") + super().flush()
