"""Chains of thought that clients keep: encrypted and authenticated, so that nobody reads or changes them on the way.

A blob is a Fernet token. The key is the store's own or comes from a file, which several servers may share.
"""

from __future__ import annotations

from pathlib import Path

from gptoss_adapters.errors import BadInput, OutputError, missing_extra


class Sealer:
    """Encrypts with the first of its keys and reads what any of them has encrypted. Raises ValueError for a bad key."""

    def __init__(self, keys: list[str]) -> None:
        try:
            from cryptography.fernet import Fernet, InvalidToken, MultiFernet
        except ImportError as error:
            raise missing_extra("cryptography", "serve") from error
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._bad = InvalidToken

    def seal(self, text: str) -> str:
        return self._fernet.encrypt(text.encode("utf-8", "surrogatepass")).decode()

    def open(self, blob: str) -> str | None:
        """The text; None for a blob that was made with another key, or changed."""
        try:
            return self._fernet.decrypt(blob.encode()).decode("utf-8", "surrogatepass")
        except (self._bad, ValueError):
            return None


def make_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def open_key_file(path: str) -> Sealer:
    """Keys, one a line: the first encrypts, all decrypt. A file that is not there is made with a new key.

    Raises BadInput for a file without keys, OutputError for one that cannot be made.
    """
    file = Path(path)
    try:
        if not file.exists():
            file.touch(0o600, exist_ok=False)
            file.write_text(make_key() + "\n", "ascii")
        lines = [line.strip() for line in file.read_text("ascii").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        return Sealer(keys)
    except OSError as error:
        raise OutputError(f"cannot open the key file: {error.strerror}", file=path) from error
    except ValueError as error:
        raise BadInput("not a file of Fernet keys (44 characters a line)", file=path, got=error) from error
