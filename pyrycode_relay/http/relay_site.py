"""The public HTTP side: paths, what is refused before an upgrade, and health.

A subclass of twisted.web's channel and request, because a relay on the open internet needs less
than a web server: exact paths, no bodies, no sessions, no access log, no pages. Source: sections
1 and 6 of ``docs/protocol.md``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers

from pyrycode_relay import addresses
from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import NO_HANDSHAKE, NOT_READY, Event, Observer
from pyrycode_relay.http.admission import Admission, Bound, Denial, Leg
from pyrycode_relay.http.waiting_room import WaitingRoom
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.header_gate import Fields, Gate, HeaderError
from pyrycode_relay.websocket.connection import RelayFactory

_bugs = Logger()

RETRY_AFTER: Final = 5
"""Seconds a client is asked to wait when the relay is draining or starting: about a restart."""

_STARTING: Final = b"starting: there is no certificate yet, see the log\n"
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_PORT: Final = re.compile(rb":[0-9]*\Z")
_PHRASES: Final = {421: b"Misdirected Request", 426: b"Upgrade Required"}
"""Status phrases that twisted.web does not know."""
_BARE_400: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_CAPS: Final = {
    Bound.ADDRESS: "too many connections of this address",
    Bound.TOTAL: "too many connections",
    Bound.RESERVE: "what is left is kept for binaries",
}
"""What the log calls each number of connections that is reached."""

Handler = Callable[["RelayRequest"], None]


class Readiness(Enum):
    """Whether the relay takes new connections."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class RelayChannel(http.HTTPChannel):
    """One HTTP connection, until it is upgraded or closed.

    A request must be complete within the header timeout, counted from the connection's start:
    twisted.web starts the time anew with every byte.
    """

    factory: Site
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; unlike twisted.web's, without starting the request's time anew."""
        # TLS reads on while it closes, and twisted.web would go on after a line that it refused.
        if self._abortingCall is None:
            LineReceiver.dataReceived(self, data)

    def allHeadersReceived(self) -> None:
        """Go on to the request. A body is never read: none of our paths takes one.

        twisted.web would keep it in memory, or in a file when it is large.
        """
        request = self.requests[-1]
        request.has_body = self.length != 0
        self.length = 0
        request.gotLength(0)
        # One request a connection: answers to a client that pipelines and does not read would
        # pile up, for twisted.web goes on reading while it answers at once.
        self.persistent = False

    def timeoutConnection(self) -> None:
        """Drop a connection whose request did not come in time."""
        self.forceAbortClient()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # twisted.web comes here once for every further line of a block that is too long.
        if self._abortingCall is None:
            self.transport.write(_BARE_400)
            self.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        """Refuse a request with a line longer than the whole block may be."""
        self._respondToBadRequestAndDisconnect()

    def loseConnection(self) -> None:
        """Close, and abort when the peer does not let that happen."""
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall: IDelayedCall | None = self.callLater(
                self.factory.close_timeout, self.forceAbortClient
            )
        super().loseConnection()

    def forceAbortClient(self) -> None:
        """Abort, at a deadline or before it; twisted.web's would log the peer's address besides."""
        deadline, self._abortingCall = self._abortingCall, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionMade(self) -> None:
        """Begin."""
        self.accepted = self.factory.reactor.seconds()
        super().connectionMade()
        self.factory.take_in(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """End."""
        self.factory.channels.leave(self)
        super().connectionLost(reason)

    def surrender(self) -> None:
        """Forget all about the connection: a WebSocket protocol has taken it over."""
        self.factory.channels.leave(self)
        self.setTimeout(None)
        self.requests.clear()


class RelayRequest(http.Request):
    """One request, handled by the exact path it names."""

    channel: RelayChannel
    has_body = False

    @functools.cached_property
    def caller(self) -> str:
        """The address of whoever sent it, as the log and the limits know them."""
        lines = self.requestHeaders.getRawHeaders
        return addresses.caller(
            addresses.remote_address(self.channel.getPeer()),
            self.channel.factory.trusted,
            lines(b"X-Forwarded-For") or (),
            lines(b"Forwarded") or (),
        )

    def process(self) -> None:
        """Answer; an error costs this request and leaves a traceback."""
        try:
            self.channel.factory.handle(self)
        except Exception:
            _bugs.failure("a bug costs this request")
            if not self.startedWriting:
                self.refuse(500)

    def refuse(self, status: int, extra: Mapping[bytes, bytes] | None = None) -> None:
        """Answer with a status and an empty body."""
        for name, value in (extra or {}).items():
            self.setHeader(name, value)
        self.answer(status, b"")

    def answer(self, status: int, body: bytes) -> None:
        """Answer with a status, a body and the end of the connection."""
        self.setResponseCode(status, _PHRASES.get(status))
        self.setHeader(b"Connection", b"close")
        self.setHeader(b"Date", http.datetimeToString())
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(b"" if self.method == b"HEAD" else body)
        self.finish()


class Endpoint:
    """A WebSocket path: a gate, and the factory of the connections that pass it."""

    def __init__(self, leg: Leg, factory: RelayFactory, gate: Gate) -> None:
        self.leg = leg
        self.factory = factory
        self.gate = gate


class Site(http.HTTPFactory):
    """Serves HTTP on one listener or several: makes connections' channels, bounds their number.

    ``waiting`` is how many connections without an answer there may be, ``trusted`` are the
    proxies that are believed about who is calling.
    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        observer: Observer,
        header_timeout: float,
        close_timeout: float,
        waiting: int,
        trusted: Trusted,
    ) -> None:
        super().__init__(timeout=header_timeout, reactor=reactor)
        self.trusted = trusted
        self.close_timeout = close_timeout
        self.channels = WaitingRoom[RelayChannel](waiting)
        """Connections that wait for a request or for its answer to go."""
        self._observer = observer

    def handle(self, request: RelayRequest) -> None:
        """Answer a request."""
        raise NotImplementedError

    def buildProtocol(  # type: ignore[override]
        self,
        addr: IAddress | None,  # noqa: ARG002
    ) -> RelayChannel:
        """Make a connection's channel."""
        channel = RelayChannel()
        channel.requestFactory = RelayRequest
        channel.factory = self
        channel.callLater = self.reactor.callLater  # type: ignore[assignment, method-assign]
        channel.timeOut = self.timeOut  # type: ignore[assignment]
        return channel

    def startFactory(self) -> None:
        """Do nothing: twisted.web's would wake up every second for the access log's clock."""

    def stopFactory(self) -> None:
        """Do nothing: there is no access log to close."""

    def log(self, request: http.Request) -> None:
        """Do nothing: an access log has user-agents and query strings, and can be flooded."""

    def take_in(self, channel: RelayChannel) -> None:
        """Have a connection wait; drop another when there are too many.

        So ``/healthz`` can be reached however many there are.
        """
        dropped = self.channels.enter(channel, addresses.remote_address(channel.getPeer()))
        if dropped is not None:
            self._observer.saw(
                Event.CONNECTION_CAP_REACHED,
                remote=addresses.remote_address(dropped.getPeer()),
                reason="waited longest among too many without a request",
            )
            dropped.forceAbortClient()

    def only_reads(self, request: RelayRequest) -> bool:
        """Whether a request's method is GET or HEAD; if not, it is refused."""
        if request.method in {b"GET", b"HEAD"}:
            return True
        request.refuse(405, {b"Allow": b"GET, HEAD"})
        return False


class RelaySite(Site):
    """Serves the relay's paths.

    ``endpoints`` are the WebSocket paths, ``admission`` says which upgrades are too many,
    ``readiness`` whether new connections are welcome, ``health`` what ``/healthz`` shows,
    ``domains`` are the names that a request over TLS may be for, in lower case; none is any.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        endpoints: Mapping[bytes, Endpoint],
        admission: Admission,
        readiness: Callable[[], Readiness],
        health: Callable[[], Mapping[str, object]],
        observer: Observer,
        header_timeout: float,
        close_timeout: float,
        trusted: Trusted,
        domains: Sequence[str] = (),
    ) -> None:
        waiting = admission.capacity.waiting
        super().__init__(reactor, observer, header_timeout, close_timeout, waiting, trusted)
        self._hosts = frozenset(domain.encode() for domain in domains)
        self._endpoints = endpoints
        self._admission = admission
        self._readiness = readiness
        self._health = health

    def handle(self, request: RelayRequest) -> None:
        """Answer a request, or hand its connection over to a WebSocket protocol."""
        endpoint = self._endpoints.get(request.path)
        if self._hosts and _over_tls(request) and _host(request) not in self._hosts:
            request.refuse(421)
        elif endpoint is not None:
            self._upgrade(request, endpoint)
        elif request.path == b"/healthz":
            self._answer_health(request)
        elif request.path == b"/readyz":
            self._answer_readiness(request)
        else:
            request.refuse(404)

    def _answer_health(self, request: RelayRequest) -> None:
        if self.only_reads(request):
            body = json.dumps(self._health(), separators=(",", ":")).encode()
            request.setHeader(b"Content-Type", b"application/json; charset=utf-8")
            request.setHeader(b"Cache-Control", b"no-store")
            request.answer(200, body)

    def _answer_readiness(self, request: RelayRequest) -> None:
        if self.only_reads(request):
            request.setHeader(b"Cache-Control", b"no-store")
            readiness = self._readiness()
            if readiness is Readiness.READY:
                request.answer(200, b"")
                return
            request.setHeader(b"Retry-After", b"%d" % RETRY_AFTER)
            starting = readiness is Readiness.STARTING
            request.answer(503, _STARTING if starting else b"")

    def _upgrade(self, request: RelayRequest, endpoint: Endpoint) -> None:
        """Refuse what must not reach Autobahn, and hand it the rest.

        The order of the checks is the wire contract's: draining, then the rate and the numbers
        of connections, then the header gate, then the handshake. Of a request that fails its
        handshake the gate is asked here; of any other, in ``onConnect``.
        """
        if self._readiness() is Readiness.DRAINING:
            self._note_refusal(request, NOT_READY)
            request.refuse(503, {b"Retry-After": b"%d" % RETRY_AFTER})
            return
        remote = request.caller
        denial = self._admission.ask(endpoint.leg, remote)
        if denial is not None:
            self._tell(denial, remote, request.path.decode("ascii"))
            if denial.enforced:
                status = 429 if denial.bound is Bound.RATE else 503
                request.refuse(status, {b"Retry-After": b"%d" % denial.retry_after})
                return
        fields = [
            (name.lower(), values) for name, values in request.requestHeaders.getAllRawHeaders()
        ]
        problem = _handshake_problem(request)
        try:
            header_gate.check_block(fields)
            if problem is not None:
                endpoint.gate(_decoded(fields))
        except HeaderError as error:
            self._note_refusal(request, str(error))
            request.refuse(400)
            return
        if problem is not None:
            status, extra = problem
            self._note_refusal(request, NO_HANDSHAKE)
            request.refuse(status, extra)
            return
        self._hand_over(request, endpoint, dict(fields), remote)

    def _tell(self, denial: Denial, remote: str, path: str) -> None:
        mode = "enforced" if denial.enforced else "dry run"
        if denial.bound is Bound.RATE:
            self._observer.saw(Event.RATE_LIMITED, remote=remote, path=path, mode=mode)
        else:
            self._observer.saw(
                Event.CONNECTION_CAP_REACHED,
                remote=remote,
                path=path,
                reason=_CAPS[denial.bound],
                mode=mode,
            )

    def _note_refusal(self, request: RelayRequest, reason: str) -> None:
        path = request.path.decode("ascii")
        self._observer.saw(Event.REQUEST_REFUSED, path=path, err=reason)

    def _hand_over(
        self,
        request: RelayRequest,
        endpoint: Endpoint,
        fields: Mapping[bytes, Sequence[bytes]],
        remote: str,
    ) -> None:
        channel = request.channel
        protocol = endpoint.factory.connection()
        protocol.remote = remote
        protocol.accepted = channel.accepted
        name = fields.get(header_gate.DEVICE_NAME.encode())
        if name is not None:
            protocol.device_name = header_gate.device_name(name[0])
        # Nothing of the request shall outlive it, least of all a token.
        request.requestHeaders = Headers()
        channel.surrender()
        key = fields[b"sec-websocket-key"][0]
        protocol.place = self._admission.enter(endpoint.leg, remote)
        protocol.take_over(channel, request.path.decode("ascii"), _gated(fields), key)


def _decoded(fields: Fields) -> dict[str, str]:
    return {name.decode("latin-1"): values[0].decode("latin-1") for name, values in fields}


def _gated(fields: Mapping[bytes, Sequence[bytes]]) -> dict[str, str]:
    """Return the headers that the gate looks at; ``onConnect`` gets no others."""
    return {
        name: fields[name.encode()][0].decode("latin-1")
        for name in header_gate.GATED
        if name.encode() in fields
    }


def _tokens(request: http.Request, name: str) -> set[str]:
    values = request.requestHeaders.getRawHeaders(name) or []
    return {token.strip().lower() for value in values for token in value.split(",")}


def _single(request: http.Request, name: str) -> bytes | None:
    """Return the value of a header that stands exactly once."""
    values = request.requestHeaders.getRawHeaders(name.encode()) or []
    return values[0] if len(values) == 1 else None


def _over_tls(request: RelayRequest) -> bool:
    """Whether TLS ends here; what ends it elsewhere checks the Host itself."""
    return isinstance(request.channel.transport, TLSMemoryBIOProtocol)


def _host(request: http.Request) -> bytes:
    """Return the Host without its port, in lower case; nothing where there is not just one."""
    host = _single(request, "host") or b""
    return _PORT.sub(b"", host).lower()


def _handshake_problem(request: RelayRequest) -> tuple[int, dict[bytes, bytes]] | None:
    """Return how to refuse a request that is no WebSocket handshake (RFC 6455, section 4.2.1)."""
    if request.method != b"GET":
        return 405, {b"Allow": b"GET"}
    if request.clientproto != b"HTTP/1.1" or _single(request, "host") is None:
        return 400, {}
    if request.has_body:
        # Whatever stands before us might take it for a body, and we for frames.
        return 400, {}
    upgrade = {b"Upgrade": b"websocket", b"Sec-WebSocket-Version": b"13"}
    if "websocket" not in _tokens(request, "upgrade"):
        return 426, upgrade
    if "upgrade" not in _tokens(request, "connection"):
        return 426, upgrade
    if _single(request, "sec-websocket-version") != b"13":
        return 426, upgrade
    key = _single(request, "sec-websocket-key")
    if key is None or _KEY.fullmatch(key) is None:
        return 400, {}
    return None
