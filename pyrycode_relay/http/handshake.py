"""RFC 6455's opening handshake: which request opens a WebSocket, and the response that opens it.

Pure functions. The handshake is HTTP, so it is here and not in the WebSocket protocol, which only
writes the response's bytes. Source: RFC 6455, section 4.2.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

Headers: TypeAlias = Mapping[bytes, Sequence[bytes]]
"""A header block: the values of each name, in order; the names are in lower case."""

VERSION: Final = b"13"
"""The only version of the protocol that the relay speaks."""

_TOKENS: Final = (b"upgrade", b"connection")
"""Headers that are lists of tokens, which are ASCII (RFC 9110, section 5.6.2)."""
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""Appended to a key to compute ``Sec-WebSocket-Accept`` (section 1.3)."""


class HandshakeFault(enum.Enum):
    """Why a request is not a valid handshake: the status and the headers of the answer."""

    NOT_GET = (405, {b"Allow": b"GET"})
    MALFORMED = (400,)
    UPGRADE_REQUIRED = (426, {b"Upgrade": b"websocket", b"Sec-WebSocket-Version": VERSION})

    def __init__(self, status: int, headers: Mapping[bytes, bytes] | None = None) -> None:
        self.status = status
        self.headers = headers


def find_fault(
    method: bytes, http_version: bytes, headers: Headers, *, has_body: bool
) -> HandshakeFault | None:
    """Return the first fault of a handshake request, None if it is valid (section 4.2.1)."""
    if method != b"GET":
        return HandshakeFault.NOT_GET
    if http_version != b"HTTP/1.1" or _single(headers, b"host") is None:
        return HandshakeFault.MALFORMED
    if has_body:
        # A proxy could take the bytes that follow for a body, and the relay for frames.
        return HandshakeFault.MALFORMED
    if not all(value.isascii() for name in _TOKENS for value in headers.get(name, ())):
        return HandshakeFault.MALFORMED
    if not (
        _has_token(headers, b"upgrade", b"websocket")
        and _has_token(headers, b"connection", b"upgrade")
        and _single(headers, b"sec-websocket-version") == VERSION
    ):
        return HandshakeFault.UPGRADE_REQUIRED
    if _KEY.fullmatch(_single(headers, b"sec-websocket-key") or b"") is None:
        return HandshakeFault.MALFORMED
    return None


def response(headers: Headers) -> bytes:
    """Return the response that accepts a valid handshake (section 4.2.2).

    The relay speaks no extension and no subprotocol, so it selects none.
    """
    key = headers[b"sec-websocket-key"][0]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _single(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of a header that occurs exactly once, else None."""
    values = headers.get(name, ())
    return values[0] if len(values) == 1 else None


def _has_token(headers: Headers, name: bytes, token: bytes) -> bool:
    """Whether a header's comma-separated values contain ``token``, in any case."""
    return any(
        token == each.strip().lower()
        for value in headers.get(name, ())
        for each in value.split(b",")
    )
