"""The ``websockets`` library as another reader of what peers send."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from websockets.frames import Frame
from websockets.http11 import Request
from websockets.streams import StreamReader

T = TypeVar("T")


def read_frame(data: bytes, *, masked: bool = True) -> Frame:
    """Return the frame that is all of ``data``."""
    stream = _stream(data)
    found = _result(Frame.parse(stream.read_exact, mask=masked))
    _end(stream)
    return found


def read_request(data: bytes) -> Request:
    """Return the request that is all of ``data``."""
    stream = _stream(data)
    found = _result(Request.parse(stream.read_line))
    _end(stream)
    return found


def _stream(data: bytes) -> StreamReader:
    stream = StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    return stream


def _end(stream: StreamReader) -> None:
    assert _result(stream.at_eof()), "something is left"


def _result(parsing: Generator[None, None, T]) -> T:
    """Return the result of a parser that has all its input."""
    while True:
        try:
            next(parsing)
        except StopIteration as end:
            result: T = end.value
            return result
