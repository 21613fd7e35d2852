"""One WebSocket connection: how it opens and how it closes.

`RelayProtocol` is the end of a chain of classes. `SocketReader` reads the socket, `AutobahnAdapter`
turns bytes into messages, `WatchedProtocol` closes a peer that is not alive, `SendingProtocol`
writes and queues. They make one object: a second one would cost a call and a cache miss for every
frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from twisted.logger import Logger
from twisted.python.failure import Failure

from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.websocket.autobahn import ConnectionRequest
from pyrycode_relay.websocket.factory import RelayFactory
from pyrycode_relay.websocket.frames import is_utf8
from pyrycode_relay.websocket.liveness import Timer
from pyrycode_relay.websocket.sending import SendingProtocol
from pyrycode_relay.websocket.stage import Stage
from pyrycode_relay.websocket.transports import (
    Transport,
    descriptor_of,
    half_close,
    move,
    prepare_socket,
    take_from_channel,
)

if TYPE_CHECKING:
    from twisted.web.http import HTTPChannel


_bugs = Logger()

_FLUSH_SHARE: Final = 0.5
"""Share of the close timeout in which the queue may go out. The rest is for the close frame, which
follows what the transport has, and for the peer's answer."""


class Place(Protocol):
    """A connection's place within the limits on connections."""

    def leave(self) -> None:
        """Free the place."""


class RelayProtocol(SendingProtocol):
    """One connection. Its two subclasses are the relay's endpoints.

    A subclass validates the request's headers in ``onConnect``, which raises
    ``ConnectionDeny(400)``. It starts in `opened` and takes messages in `message`. The connection
    calls `ended` exactly once, when it leaves service, which is before its socket is gone. An
    error in any of these costs this connection and is logged. `Stage` describes the stages.
    """

    # Slots of the whole chain that a frame does not use, behind those that it does.
    __slots__ = (
        "_answered",
        "_heartbeat_interval",
        "_intake",
        "_message",
        "_owed_pong",
        "_ping_sent",
        "_plain",
        "_progress",
        "_reading",
        "_timers",
        "accepted",
        "device_name",
        "place",
        "remote",
        "state",
        "transport",
    )

    factory: RelayFactory[Any]

    def __init__(self, factory: RelayFactory[Any]) -> None:
        super().__init__(factory)
        self.remote = ""
        """The peer's address, without port, for the log."""
        self.place: Place | None = None
        """Its place within the limits on connections, until its socket is gone."""
        self.accepted = 0.0
        """When its socket was accepted, by the factory's clock."""
        self.device_name = ""

    # What a subclass fills in

    def onConnect(self, request: ConnectionRequest) -> None:
        """Accept a request, or raise `ConnectionDeny`."""

    @property
    def identity(self) -> tuple[str, str]:
        """The server-id, and the binary's version or an empty text, from an accepted request."""
        raise NotImplementedError

    def identify(self, server_id: str, version: str) -> None:
        """Set the `identity` of a connection whose request another process has accepted."""

    def opened(self) -> None:
        """Start: the handshake is answered."""

    def ended(self, close_code: int, cause: EndCause) -> None:
        """Clean up: the connection has left service. Called exactly once.

        ``close_code`` is the code that the peer sent, else the relay's, else 1001.
        """

    # Opening

    def upgrade_from(self, channel: HTTPChannel, response: bytes) -> None:
        """Take the connection over from an HTTP channel that has read a valid handshake.

        ``response`` accepts the handshake. Autobahn parses nothing of the request, and the
        connection keeps nothing of it.
        """
        transport = cast(Transport, channel.transport)
        channel.transport = None
        take_from_channel(transport, self)
        # A peer may send frames right behind its request, in the same packet. The channel passes
        # what it has read and not parsed to its rawDataReceived.
        channel.rawDataReceived = self.dataReceived  # type: ignore[method-assign]
        self.makeConnection(transport)
        self.factory.poller.run(self._open, response)

    def arrive_on(self, transport: Transport, response: bytes, rest: bytes) -> None:
        """Take over a connection whose request another process has read.

        ``response`` accepts the handshake; ``rest`` is what the peer has sent behind the request.
        """
        self.makeConnection(transport)
        self.factory.poller.run(self._open, response)
        if rest:
            self.factory.poller.run(self.dataReceived, rest)

    def connectionMade(self) -> None:
        """Prepare the connection; called through ``makeConnection`` when it is taken over."""
        super().connectionMade()
        self.factory.connections.add(self)
        descriptor = descriptor_of(self.transport)
        if descriptor is not None:
            prepare_socket(descriptor, self._limits.send_buffer)
            move(descriptor, self.factory.poller)
        self.transport.resumeProducing()

    def _open(self, response: bytes) -> None:
        """Accept the handshake, and serve."""
        self._gather(0, response)
        self.begin()
        self.factory.tally.upgrades.observe(self.factory.seconds() - self.accepted)
        self.transport.registerProducer(self, True)
        self.watch()
        self._contained(self.opened)

    # Errors

    def bug(self) -> None:
        """Log the exception that is being handled, and close."""
        _bugs.failure("a bug costs this connection")
        self.close(EndCause.INTERNAL_ERROR, flush=False)

    def violated(self, code: int, reason: str) -> None:
        """Fail the connection as RFC 6455, section 7.1.7, says.

        The peer gets a close frame, and none of its input is parsed: its framing cannot be
        trusted. It closes the connection itself, or the close timeout does.
        """
        if self.stage is Stage.SERVING:
            self._leave(code, close_codes.violation(code))
            self.outbox.clear()
            self.send_close(Close(code, reason))
        if not self.outbox:
            self.flush()
            self.unregisterProducer()
            half_close(self.transport)

    # Closing

    def close(self, cause: EndCause, *, flush: bool = True, directive: Close | None = None) -> None:
        """Close the connection; only the first close counts.

        The close frame is the cause's own, or the binary's ``directive``. The queue goes out
        before it, unless ``flush`` is false: for half of the close timeout, then the rest of the
        queue is dropped. If all that, and the peer's answer, takes longer than the close timeout,
        the relay aborts the socket.
        """
        if self.stage is not Stage.SERVING:
            return
        close = directive or cause.close
        first = self.outbox.close
        if flush and first is not None:
            # A directive is queued behind the frames. It came first, so it counts.
            self._leave(first.code, EndCause.CLOSED_BY_BINARY)
            return
        if not (flush and self.outbox):
            # Clear the queue before `ended`: what `ended` queues elsewhere could exceed the
            # memory budget, and this queue would be shed.
            self.outbox.clear()
        self._leave(close.code, cause)
        if self.outbox:
            self.outbox.push(close)
        else:
            self.send_close(close)

    def _leave(self, code: int, cause: EndCause) -> None:
        """End the connection's service and set the deadline for its socket."""
        self.resume_reading()
        self.stage = Stage.CLOSING
        # TLS waits for the peer's close_notify, TCP for the peer to read. Neither may happen.
        timeout = self._limits.close_timeout
        if self.outbox:
            self._later(Timer.ABORT, timeout * _FLUSH_SHARE, self._cut_queue)
        else:
            self._later(Timer.ABORT, timeout, self.abort)
        self._contained(self.ended, code, cause)
        self.stop_watching()

    def _cut_queue(self) -> None:
        """End the time for the queue; what is left of the close timeout is for the close frame."""
        self.send_waiting_close()
        self._later(Timer.ABORT, self._limits.close_timeout * (1 - _FLUSH_SHARE), self.abort)

    def abort(self) -> None:
        """Drop the socket at once."""
        # The transport stops reading, but this connection reads the socket itself.
        self.ignore_input = True
        self.transport.abortConnection()

    def peer_closed(self, code: int | None) -> None:
        """End after the peer's close frame; the relay's own has been sent."""
        if self.stage is Stage.SERVING:
            self._leave(code or close_codes.GOING_AWAY, EndCause.CLOSED_BY_PEER)
        self.flush()
        # Autobahn has unregistered the producer, so that this does not wait for it.
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Note that the socket is gone."""
        if self.place is not None:
            self.place.leave()
        if self.stage is Stage.SERVING:
            self._leave(close_codes.GOING_AWAY, EndCause.CONNECTION_LOST)
        self.stage = Stage.GONE
        super().connectionLost(reason)
        self.factory.connections.discard(self)

    # Messages

    def binary_message(self, payload: bytes) -> None:
        """Treat a BINARY message as a TEXT message, if it is UTF-8."""
        if is_utf8(payload):
            self.message(payload)
        else:
            self.close(EndCause.NOT_UTF8)
