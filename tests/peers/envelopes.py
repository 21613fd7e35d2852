"""What a binary and the relay send each other, and frames that can be told apart."""

from __future__ import annotations

import json


def envelope(conn_id: str, frame: bytes) -> bytes:
    """Return the envelope that carries ``frame``, one JSON value, from or to a phone."""
    return b'{"conn_id":%s,"frame":%s}' % (json.dumps(conn_id).encode(), frame)


def directive(conn_id: str, code: int, last: bytes | None = None) -> bytes:
    """Return the envelope that has a phone closed, after a last frame if there is one."""
    frame = b"" if last is None else b'"frame":%s,' % last
    return b'{"conn_id":%s,%s"close_code":%d}' % (json.dumps(conn_id).encode(), frame, code)


def numbered(sender: str, number: int, size: int = 0) -> bytes:
    """Return a JSON frame with its sender and its number, at least ``size`` bytes long."""
    bare = json.dumps({"from": sender, "n": number, "pad": ""}).encode()
    return bare[:-2] + b"x" * (size - len(bare)) + bare[-2:]
