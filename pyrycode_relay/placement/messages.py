"""The messages between the workers of one relay.

A worker that replaces another may be of a newer version, so a message has the version of its
layout first. A worker closes the connections of a message that it does not understand.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pyrycode_relay.http.relay_site import Upgrade

VERSION: Final = 1
"""Version of the layouts below. Raise it when a change makes old workers misread a message."""


class Arrival(msgspec.Struct, array_like=True, frozen=True, tag="arrival", kw_only=True):
    """A connection whose request another worker has read and checked.

    One descriptor comes with it: the connection's socket. If the connection is carried, there are
    two: the end of a socket pair, and the client's own socket, which is only asked how much of its
    data the client has acknowledged.
    """

    version: int = VERSION
    upgrade: Upgrade
    rest: bytes = b""
    """What the peer has sent behind its request."""
    ticket: int = 0
    """What `SharedLimits.settle` gets once the connection is counted here."""
    carried: int = 0
    """The sender's number for the carried connection; 0 if the connection is not carried."""


class CloseCarried(msgspec.Struct, array_like=True, frozen=True, tag="close"):
    """The sender drains: close the carried connection with this number (1001)."""

    carried: int
    version: int = VERSION


class Moving(msgspec.Struct, array_like=True, frozen=True, tag="moving"):
    """The sender is being replaced: send nothing more on this link, and connect again."""

    version: int = VERSION


Message = Arrival | CloseCarried | Moving

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message's bytes."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in ``data``. Raises `ValueError` if this version has no such message."""
    try:
        message: Message = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError("a message between workers that this version cannot read") from error
    if message.version != VERSION:
        raise ValueError(f"a message between workers of version {message.version}")
    return message
