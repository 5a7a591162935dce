"""Signatures of thinking blocks, as the Messages API has them: a block must come back as it was given out.

The signature is a checksum and no secret: it finds blocks that were changed or cut on their way, on every server and
after every restart. A block whose text the client did not want to see (`display: omitted`) carries it here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib

_KEY = b"gptoss thinking block 1"
_SIZE = 32  # bytes of the checksum
_LONGEST = 2**24  # bytes of thoughts; more is nothing that a model wrote


def sign(text: str, carry: bool = False) -> str:
    """The signature of a chain of thought; with `carry` the text can be read back from it."""
    data = text.encode()
    return base64.b64encode(_digest(data) + (zlib.compress(data) if carry else b"")).decode()


def read_thinking(text: str, signature: str) -> str | None:
    """The chain of thought of a block that came back, None if it is not as it was given out."""
    try:
        raw = base64.b64decode(signature.encode(), validate=True)
        data = text.encode() or _unpack(raw[_SIZE:])
        good = hmac.compare_digest(raw[:_SIZE], _digest(data)) and base64.b64encode(raw).decode() == signature
        return data.decode() if good and (len(raw) == _SIZE or _unpack(raw[_SIZE:]) == data) else None
    except (binascii.Error, zlib.error, UnicodeError):
        return None


def _unpack(packed: bytes) -> bytes:
    if not packed:
        return b""
    reader = zlib.decompressobj()
    data = reader.decompress(packed, _LONGEST)
    if not reader.eof or reader.unused_data:
        raise zlib.error("not one whole stream")
    return data


def _digest(data: bytes) -> bytes:
    return hmac.digest(_KEY, data, hashlib.sha256)
