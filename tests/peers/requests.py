"""The requests of binaries and phones for an upgrade to WebSocket."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Final

TOKEN: Final = "courier-7b1f4c"

Headers = Mapping[str, str | bytes] | Mapping[str, str] | Sequence[tuple[bytes, bytes]]
"""Header fields by name, or one by one where a name stands twice."""


def binary_fields(server_id: str = "home") -> dict[str, str]:
    """Return the fields of a binary's request."""
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Version": "1.2.3",
        "User-Agent": "pyry/1.2.3",
    }


def phone_fields(server_id: str = "home", token: str = TOKEN) -> dict[str, str]:
    """Return the fields of a v1 phone's request."""
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": token,
        "User-Agent": "phone/3",
    }


def binary_headers(server_id: str = "home") -> list[tuple[bytes, bytes]]:
    """Return the fields of a binary's request one by one."""
    return one_by_one(binary_fields(server_id))


def phone_headers(server_id: str = "home") -> list[tuple[bytes, bytes]]:
    """Return the fields of a v1 phone's request one by one."""
    return one_by_one(phone_fields(server_id))


def one_by_one(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return header fields as pairs of bytes."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(_encoded(name), _encoded(value)) for name, value in pairs]


def upgrade_request(
    path: str | bytes,
    headers: Headers,
    *,
    method: str | bytes = "GET",
    version: str | bytes = "HTTP/1.1",
    change: Mapping[bytes, bytes | None] | None = None,
) -> bytes:
    """Return a request for an upgrade.

    Args:
        path: the path with its query string.
        headers: the fields behind those of the handshake.
        method: the method.
        version: the version of HTTP.
        change: fields of the handshake with another value, or (None) to leave out.
    """
    handshake: dict[bytes, bytes | None] = {
        b"Host": b"relay.example",
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Version": b"13",
        b"Sec-WebSocket-Key": base64.b64encode(bytes(16)),
        **(change or {}),
    }
    fields = [(name, value) for name, value in handshake.items() if value is not None]
    lines = [b" ".join((_encoded(method), _encoded(path), _encoded(version)))]
    lines += [name + b": " + value for name, value in [*fields, *one_by_one(headers)]]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
