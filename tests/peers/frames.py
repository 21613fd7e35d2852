"""WebSocket frames of RFC 6455, as right or as wrong as a test wants them.

Nothing here shares code with the relay: what both got wrong, no test would find.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

MASK: Final = b"\x37\xfa\x21\x3d"
"""The key by which a client's frames are masked, that of the RFC's examples."""

NO_STATUS, ABNORMAL = 1005, 1006
"""The codes for a close frame without a code, and for a connection without a close frame."""


class Frame(NamedTuple):
    """A frame that the relay has sent."""

    opcode: int
    payload: bytes


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Return a client's frame.

    Args:
        opcode: 4 bits, also one that the RFC reserves.
        payload: what follows the header.
        fin: whether the frame ends its message.
        rsv: the three reserved bits.
        masked: whether the payload is masked, as a client's has to be.
        length: what the header says of the length, in place of the payload's.
    """
    size = len(payload) if length is None else length
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask_bit = masked << 7
    if size <= 125:
        head += bytes([mask_bit | size])
    elif size <= 0xFFFF:
        head += bytes([mask_bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + size.to_bytes(8, "big")
    return head + (MASK + mask(payload) if masked else payload)


def text_frame(payload: bytes, *, fin: bool = True) -> bytes:
    """Return a client's TEXT frame, by default one whole message."""
    return frame(TEXT, payload, fin=fin)


def mask(payload: bytes) -> bytes:
    """Return ``payload`` masked, or unmasked if it is masked."""
    key = (MASK * (len(payload) // 4 + 1))[: len(payload)]
    both = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return both.to_bytes(len(payload), "big")


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    """Return a client's close frame, without a payload if ``code`` is None."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def take_frame(data: bytearray) -> Frame | None:
    """Cut the first frame off ``data``; None if it is not all there.

    Raises `AssertionError` for a frame that the relay never sends: one that is masked, has a
    reserved bit set, or is only a part of its message.
    """
    if len(data) < 2:
        return None
    first, size = data[0], data[1]
    if first & 0xF0 != 0x80 or size > 127:
        raise AssertionError(f"no frame of the relay's begins with {bytes(data[:2])!r}")
    start = 2 if size <= 125 else 4 if size == 126 else 10
    if size > 125:
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start or len(data) < start + size:
        return None
    taken = Frame(first & 0x0F, bytes(data[start : start + size]))
    del data[: start + size]
    return taken


def code_and_reason(payload: bytes) -> tuple[int, str]:
    """Return what the payload of a close frame says."""
    return (int.from_bytes(payload[:2], "big") if payload else NO_STATUS), payload[2:].decode()
