"""Carrying: the worker that ends a client's TLS passes its bytes to the worker that serves it.

The worker that accepted the connection is the *edge*; the one that owns the server-id is the
*owner*. Between them is a socket pair for each connection, so a connection that stalls fills its
own buffers and no others. The edge never looks into a frame.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.websocket.connection import Place
from pyrycode_relay.websocket.poller import Poller
from pyrycode_relay.websocket.transports import (
    descriptor_of,
    move,
    prepare_socket,
    take_from_channel,
    write_tls,
)

_PIECE: Final = 2**15
"""Bytes that are read from the owner at once."""
_FULL: Final = 2**15
"""Bytes for the client that may wait at the edge. With one piece more, that is 64 KiB at most."""
PAIR_BUFFER: Final = 2**16
"""Bytes that each direction of a socket pair may keep in the kernel."""


@implementer(IPushProducer)
class Carrier:
    """One carried connection at the edge: the protocol of its TLS, and of its end of the pair.

    Args:
        poller: Watches both sockets.
        place: The connection's place within the limits.
        close_timeout: Seconds that one end may stay open when the other has closed.
        send_buffer: Bytes of the kernel's buffer for the client; 0 leaves it to the kernel.

    """

    __slots__ = (
        "_close_timeout",
        "_deadline",
        "_inner",
        "_pending",
        "_place",
        "_poller",
        "_send_buffer",
        "ask_to_close",
        "gone",
        "transport",
    )

    def __init__(
        self, poller: Poller, place: Place, *, close_timeout: float, send_buffer: int
    ) -> None:
        self.ask_to_close: Callable[[], None] = _nothing
        """Asks the owner to close the connection (1001)."""
        self.gone: Callable[[Carrier], None] = _nothing_of
        """Called once, when both ends are closed."""
        self.transport: Any = None
        self._poller = poller
        self._place = place
        self._close_timeout = close_timeout
        self._send_buffer = send_buffer
        self._inner: _Inner | None = None
        self._pending = b""
        """What the owner has not taken yet of what the client sent."""
        self._deadline: IDelayedCall | None = None

    def start(self, transport: Any) -> list[socket.socket]:
        """Begin to carry; return the sockets for the owner.

        ``transport`` is the TLS transport, which an HTTP channel has used until now. Raises
        `OSError` if there are no descriptors left; the connection is then aborted.
        """
        descriptor: Any = descriptor_of(transport)
        self.transport = transport
        take_from_channel(transport, self)
        try:
            client = descriptor.socket.dup()
            ours, theirs = socket.socketpair()
        except OSError:
            transport.abortConnection()
            raise
        for each in (ours, theirs):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BUFFER)
        prepare_socket(descriptor, self._send_buffer)
        descriptor.bufferSize = _FULL
        move(descriptor, self._poller)
        self._inner = _Inner(self, ours, self._poller)
        self._poller.addReader(self._inner)
        transport.registerProducer(self, True)
        transport.resumeProducing()
        return [theirs, client]

    # From the client

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on to the owner, or stop reading the client until the owner takes them."""
        inner = self._inner
        if inner is None:
            return
        if not self._pending:
            taken = inner.send(data)
            if taken == len(data):
                return
            data = data[taken:]
            self.transport.pauseProducing()
            self._poller.addWriter(inner)
        self._pending += data

    def write_pending(self) -> None:
        """Pass on what waits; read the client again when everything has gone."""
        inner = self._inner
        if inner is None:
            return
        self._pending = self._pending[inner.send(self._pending) :]
        if self._pending:
            return
        self._poller.removeWriter(inner)
        if self.transport is None:
            self._close_inner()
        else:
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002
        """Close the owner's end, after what the client has sent before."""
        self.transport = None
        self._place.leave()
        if self._pending:
            self._set_deadline(self._close_inner)
        else:
            self._close_inner()

    # From the owner

    def write(self, data: bytes) -> None:
        """Pass bytes on to the client."""
        write_tls(self.transport, data)

    def owner_closed(self, clean: bool) -> None:
        """Close the client's end; abort it if the owner has dropped the connection."""
        self._inner = None
        self._pending = b""
        transport = self.transport
        if transport is None:
            self._end()
        elif clean:
            self._set_deadline(transport.abortConnection)
            transport.unregisterProducer()
            # A client that was not read, because the owner was busy, may have closed, too.
            transport.resumeProducing()
            transport.loseConnection()
        else:
            transport.abortConnection()

    def pauseProducing(self) -> None:
        """Stop reading the owner: the client does not take more."""
        if self._inner is not None:
            self._poller.removeReader(self._inner)

    def resumeProducing(self) -> None:
        """Read the owner again."""
        if self._inner is not None:
            self._poller.addReader(self._inner)

    def stopProducing(self) -> None:
        """Do nothing; called by a transport that is about to lose its connection."""

    # The end

    def close_when_drained(self, cause: EndCause) -> None:  # noqa: ARG002
        """Have the owner close the connection (1001): this worker drains."""
        self.ask_to_close()

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        """Have the owner close the connection; see `close_when_drained`."""

    def abort(self) -> None:
        """Drop the connection at both ends."""
        if self.transport is not None:
            self.transport.abortConnection()
        self._close_inner()

    def _close_inner(self) -> None:
        inner, self._inner = self._inner, None
        self._pending = b""
        if inner is not None:
            inner.close()
        if self.transport is None:
            self._end()

    def _set_deadline(self, act: Callable[[], None]) -> None:
        if self._deadline is None:
            self._deadline = self._poller.callLater(self._close_timeout, self._late, act)

    def _late(self, act: Callable[[], None]) -> None:
        self._deadline = None
        act()

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.gone(self)


@implementer(IReadWriteDescriptor)
class _Inner:
    """The edge's end of the socket pair."""

    __slots__ = ("_carrier", "_poller", "_socket")

    def __init__(self, carrier: Carrier, sock: socket.socket, poller: Poller) -> None:
        self._carrier = carrier
        self._socket = sock
        self._poller = poller

    def send(self, data: bytes) -> int:
        """Return how many bytes the kernel takes."""
        try:
            return self._socket.send(data)
        except OSError:
            return 0  # It is full, or broken: reading finds that.

    def close(self) -> None:
        """Close this end."""
        self._poller.removeReader(self)
        self._poller.removeWriter(self)
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name in the reactor's log."""
        return "carried"

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """Pass on what the owner has written; return why its end is closed, None if it is not."""
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self._carrier.write(data)
        return None

    def doWrite(self) -> None:
        """Pass on what the client has sent."""
        self._carrier.write_pending()

    def connectionLost(self, reason: Failure) -> None:
        """Note that the owner's end is closed; called by the poller."""
        with contextlib.suppress(OSError):
            self._socket.close()
        self._carrier.owner_closed(reason.value is CONNECTION_DONE)


def _nothing() -> None:
    """Do nothing."""


def _nothing_of(_carrier: Carrier) -> None:
    """Do nothing."""
