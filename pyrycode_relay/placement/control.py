"""The lines between a parent and its workers, over a socket pair for each worker.

The parent first writes one line with the worker's `Seat`. Then it writes orders, and the worker
writes reports. The end of the socket is the end of the other process.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

CONTROL_FD: Final = 3
"""The worker's descriptor of the socket."""
_MAX_LINE: Final = 2**20
_SEAT_TIMEOUT: Final = 10.0
"""Seconds in which the parent must have written the seat."""


class Order(Enum):
    """What a parent asks a worker to do."""

    SERVE = "serve"
    """Begin to serve."""
    RELOAD = "reload"
    """Read the certificates again."""
    MOVE = "move"
    """Leave all server-ids to the successor, drain, and end."""
    DRAIN = "drain"
    """Drain, and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a worker must know to take its place."""

    index: int
    column: int
    """Its column in the shared limits; no other running process has it."""
    workers: int
    options: Sequence[str]
    """The parent's command line."""
    listeners: Sequence[tuple[str, int]]
    """Each address that is listened on, with its descriptor: plain ones, TLS, ACME."""
    link: int
    """The descriptor of the socket on which other workers connect."""
    limits: int
    """The descriptor of the memory that counts addresses over all workers."""
    paths: Sequence[str]
    """The path of each worker's socket for links, by index."""
    files: Mapping[str, int]
    """The descriptors of files that only the parent could read, by path."""
    key: str
    """The key of the ownership, in hexadecimal digits."""
    started: float
    """When the relay started, by the machine's monotonic clock."""

    def line(self) -> bytes:
        """Return the line with the seat."""
        return json.dumps(asdict(self)).encode() + b"\n"


def read_seat(sock: socket.socket) -> Seat:
    """Read the first line, and not a byte more. Raises `OSError` or `ValueError`."""
    sock.settimeout(_SEAT_TIMEOUT)
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte or len(line) > _MAX_LINE:
            raise ValueError("the parent has not said what to do")
        line += byte
    sock.setblocking(False)
    return Seat(**json.loads(line))


@implementer(IPushProducer)
class Lines(LineOnlyReceiver):
    """One end of the socket: writes lines, and passes on those that come.

    Args:
        take: Takes each line.
        lost: Called when the other process has ended.

    """

    delimiter = b"\n"
    MAX_LENGTH = _MAX_LINE

    def __init__(self, take: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._take = take
        self._lost = lost
        self._full = False

    def connectionMade(self) -> None:
        """Ask the transport to say when it is full."""
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]

    def pauseProducing(self) -> None:
        """Note that the other process does not read."""
        self._full = True

    def resumeProducing(self) -> None:
        """Note that the other process has read everything."""
        self._full = False

    def stopProducing(self) -> None:
        """Do nothing; called by a transport that is about to lose its connection."""

    def report(self, line: bytes) -> None:
        """Write a line, unless the other process is behind; it gets a newer one later."""
        if not self._full:
            self.tell(line)

    def tell(self, line: bytes) -> None:
        """Write a line, unless the other process has ended."""
        if self.transport is not None:
            self.sendLine(line)  # type: ignore[no-untyped-call]

    def lineReceived(self, line: bytes) -> None:
        """Pass a line on."""
        self._take(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Report that the other process has ended."""
        self.transport = None
        self._lost()


class News(Enum):
    """What a worker reports once."""

    READY = "ready"
    """It can serve, and waits for the order."""
    MOVED = "moved"
    """It has left its server-ids to its successor."""


def order_line(order: Order) -> bytes:
    """Return the line of an order."""
    return order.value.encode()


def report_line(report: Mapping[str, Any]) -> bytes:
    """Return the line of a report."""
    return json.dumps(report).encode()


def report_of(line: bytes) -> dict[str, Any]:
    """Return the report in a line. Raises `ValueError`."""
    return dict(json.loads(line))
