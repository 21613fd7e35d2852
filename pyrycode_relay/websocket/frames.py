"""WebSocket frames as bytes: pure functions, and a frame whose payload arrives in pieces.

Source: RFC 6455, section 5.
"""

from __future__ import annotations

import codecs
import struct
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # The package has a slower version in Python.
    from websockets.utils import apply_mask

__all__ = [
    "MASKED",
    "MAX_7_BIT",
    "MAX_16_BIT",
    "TEXT_FINAL",
    "PartialFrame",
    "apply_mask",
    "is_utf8",
    "text_header",
]

TEXT_FINAL: Final = 0x81
"""First byte of a frame that is a whole TEXT message."""
MASKED: Final = 0x80
"""The bit of a frame's second byte that says whether the payload is masked."""
MAX_7_BIT: Final = 125
"""Largest payload whose length fits into the second byte."""
MAX_16_BIT: Final = 0xFFFF
"""Largest payload whose length fits into the two bytes that follow it."""

_pack_16: Final = struct.Struct("!BBH").pack
_pack_64: Final = struct.Struct("!BBQ").pack
_SHORT_HEADERS: Final = [bytes((TEXT_FINAL, size)) for size in range(MAX_7_BIT + 1)]

_SURROGATE_LEAD: Final = 0xED
_FIRST_SURROGATE: Final = 0xA0


def text_header(size: int) -> bytes:
    """Return the header of an unmasked, final TEXT frame with ``size`` bytes of payload."""
    if size <= MAX_7_BIT:
        return _SHORT_HEADERS[size]
    if size <= MAX_16_BIT:
        return _pack_16(TEXT_FINAL, 126, size)
    return _pack_64(TEXT_FINAL, 127, size)


def is_utf8(data: bytes) -> bool:
    """Whether ``data`` is UTF-8; many times faster than Autobahn's validator."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class PartialFrame:
    """A final, masked TEXT frame whose payload arrives in pieces.

    ``size`` is the payload's whole length in bytes; ``payload`` is what has arrived, unmasked.
    """

    __slots__ = ("_decoder", "mask", "payload", "size")

    def __init__(self, mask: bytes, size: int) -> None:
        self.mask = mask
        self.size = size
        self.payload = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None

    def take(self, data: bytes) -> bool:
        """Unmask ``data`` and append it; return False once the payload can no longer be UTF-8."""
        at = len(self.payload) & 3
        piece = apply_mask(data, self.mask[at:] + self.mask[:at])
        self.payload += piece
        if self._decoder is None:
            if piece.isascii():
                return True
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            self._decoder.decode(piece, len(self.payload) == self.size)
        except UnicodeDecodeError:
            return False
        pending = self._decoder.getstate()[0]
        if not pending:
            self._decoder = None
        # The decoder refuses every other invalid sequence at once, but waits for the third byte
        # of a surrogate, which UTF-8 does not allow.
        return not (
            len(pending) == 2 and pending[0] == _SURROGATE_LEAD and pending[1] >= _FIRST_SURROGATE
        )
