"""HTTP/1.1 for the open internet, on twisted.web's channel and request.

A connection serves one request. Its headers must be complete within one deadline, its body is
never read, and it is aborted if it does not close in time. There are no sessions, no access log
and no error pages. A `Site` decides what to answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http

from pyrycode_relay import addresses
from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http.waiting_room import WaitingRoom
from pyrycode_relay.limits import Limits

_bugs = Logger()

_BARE_400: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class HardenedChannel(http.HTTPChannel):
    """One HTTP connection, until it is upgraded or closed.

    The header timeout runs from the start of the connection. twisted.web restarts it with every
    byte.
    """

    factory: Site
    transport: Any
    _departed: Callable[[Any], None] | None = None

    def connectionMade(self) -> None:
        """Start the header timeout and enter the waiting room."""
        self.accepted = self.factory.reactor.seconds()
        super().connectionMade()
        self.factory.admit(self)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes without restarting the header timeout."""
        # TLS still delivers bytes during a close, and twisted.web would parse on after an error.
        if self._abortingCall is None:
            LineReceiver.dataReceived(self, data)
            if self._departed is not None:
                transport, self.transport = self.transport, None
                departed, self._departed = self._departed, None
                departed(transport)

    def allHeadersReceived(self) -> None:
        """Skip the request's body: no path of the relay reads one.

        twisted.web would keep it in memory, or in a file if it is large.
        """
        request = self.requests[-1]
        request.has_body = self.length != 0
        self.length = 0
        request.gotLength(0)
        # One request per connection. twisted.web would answer pipelined requests of a client that
        # does not read, and the answers would pile up.
        self.persistent = False

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        """Refuse a line that is longer than the whole header block may be."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # twisted.web calls this again for every further line of a header block that is too long.
        if self._abortingCall is None:
            self.transport.write(_BARE_400)
            self.loseConnection()

    def timeoutConnection(self) -> None:
        """Abort a connection whose headers are not complete in time."""
        self.forceAbortClient()

    def loseConnection(self) -> None:
        """Close the connection; abort it if that takes longer than the close timeout."""
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall: IDelayedCall | None = self.callLater(
                self.factory.close_timeout, self.forceAbortClient
            )
        super().loseConnection()

    def forceAbortClient(self) -> None:
        """Abort the connection. twisted.web's method would also log the peer's address."""
        deadline, self._abortingCall = self._abortingCall, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Leave the waiting room."""
        self.factory.channels.leave(self)
        super().connectionLost(reason)

    def depart(self, departed: Callable[[Any, bytes], None]) -> None:
        """Give the connection up once what has been read is parsed.

        ``departed`` gets the transport, and the bytes behind the request.
        """
        self.surrender()
        rest: list[bytes] = []
        self._departed = lambda transport: departed(transport, b"".join(rest))
        self.rawDataReceived = rest.append  # type: ignore[assignment, method-assign]

    def surrender(self) -> None:
        """Release the connection to a WebSocket protocol."""
        self.factory.channels.leave(self)
        self.setTimeout(None)
        self.requests.clear()


class HardenedRequest(http.Request):
    """One request; its `Site` answers it."""

    channel: HardenedChannel
    has_body = False
    """Whether the headers announce a body."""

    @functools.cached_property
    def caller(self) -> str:
        """The sender's address, for the log and the limits."""
        lines = self.requestHeaders.getRawHeaders
        return addresses.caller(
            addresses.remote_address(self.channel.getPeer()),
            self.channel.factory.trusted,
            lines(b"X-Forwarded-For") or (),
            lines(b"Forwarded") or (),
        )

    def single(self, name: bytes) -> bytes | None:
        """Return the value of a header that occurs exactly once, else None."""
        values = self.requestHeaders.getRawHeaders(name) or ()
        return values[0] if len(values) == 1 else None

    def process(self) -> None:
        """Have the site answer; an error costs this request and is logged with its traceback."""
        try:
            self.channel.factory.handle(self)
        except Exception:
            _bugs.failure("a bug costs this request")
            if not self.startedWriting:
                self.refuse(500)

    def refuse(self, status: int, headers: Mapping[bytes, bytes] | None = None) -> None:
        """Answer with a status and an empty body."""
        for name, value in (headers or {}).items():
            self.setHeader(name, value)
        self.answer(status, b"")

    def answer(self, status: int, body: bytes) -> None:
        """Answer with a status and a body, and close the connection."""
        # twisted.web lacks the phrases of some statuses.
        self.setResponseCode(status, HTTPStatus(status).phrase.encode())
        self.setHeader(b"Connection", b"close")
        self.setHeader(b"Date", http.datetimeToString())
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(b"" if self.method == b"HEAD" else body)
        self.finish()


class Site(http.HTTPFactory):
    """Makes the channels of its listeners, bounds their number, and answers their requests.

    Args:
        reactor: The clock of all deadlines.
        observer: Receives events.
        limits: Its ``header_timeout`` and ``close_timeout`` apply.
        max_waiting: Connections that may wait for a request or a response at a time.
        trusted: Proxies that may name the caller's address.

    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        observer: Observer,
        limits: Limits,
        *,
        max_waiting: int,
        trusted: Trusted = Trusted(()),  # noqa: B008 - immutable
    ) -> None:
        super().__init__(timeout=limits.header_timeout, reactor=reactor)
        self.close_timeout = limits.close_timeout
        self.trusted = trusted
        self.channels = WaitingRoom[HardenedChannel](max_waiting)
        """Connections that wait for a request or a response."""
        self._observer = observer

    def handle(self, request: HardenedRequest) -> None:
        """Answer a request."""
        raise NotImplementedError

    def only_reads(self, request: HardenedRequest) -> bool:
        """Whether a request's method is GET or HEAD; if not, refuse the request."""
        if request.method in {b"GET", b"HEAD"}:
            return True
        request.refuse(405, {b"Allow": b"GET, HEAD"})
        return False

    def buildProtocol(  # type: ignore[override]
        self,
        addr: IAddress | None,  # noqa: ARG002
    ) -> HardenedChannel:
        """Make a connection's channel."""
        channel = HardenedChannel()
        channel.requestFactory = HardenedRequest
        channel.factory = self
        channel.callLater = self.reactor.callLater  # type: ignore[assignment, method-assign]
        channel.timeOut = self.timeOut  # type: ignore[assignment]
        return channel

    def admit(self, channel: HardenedChannel) -> None:
        """Let a new connection wait for its request; if too many wait, abort another one."""
        displaced = self.channels.enter(channel, addresses.remote_address(channel.getPeer()))
        if displaced is not None:
            self._observer.saw(
                Event.CONNECTION_CAP_REACHED,
                remote=addresses.remote_address(displaced.getPeer()),
                reason="oldest of too many connections without a request",
            )
            displaced.forceAbortClient()

    def startFactory(self) -> None:
        """Do nothing: twisted.web would start a timer for the access log, every second."""

    def stopFactory(self) -> None:
        """Do nothing: there is no access log to close."""

    def log(self, request: http.Request) -> None:
        """Do nothing: an access log contains user-agents and query strings, and peers flood it."""
