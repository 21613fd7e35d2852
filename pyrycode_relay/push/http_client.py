"""HTTPS requests to providers: bounded in time and size, verified, without redirects.

Sends run beside the frames of all peers, so nothing here blocks: Twisted's Agent sends, and its
pool keeps a few connections open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from pyrycode_relay.push.provider import SendFault
from pyrycode_relay.tls.certificate import read_authorities

MAX_BODY: Final = 4096
"""Bytes of an answer's body that are read."""

_MAX_ANSWER: Final = 16_384
"""Bytes of a whole answer, with its headers, after which the connection is dropped. A stranger's
service may send each byte in a TLS record of its own, which costs 4 us of the reactor's thread."""

_STATUSES: Final = range(100, 1000)
"""Statuses of an answer. Twisted's parser also takes a negative one, or one of 4,000 digits."""

_MAX_IDLE: Final = 4
_IDLE: Final = 60.0
"""Connections to one host that are kept open without a request, and for how many seconds: shorter
than the hosts themselves keep them, so that a request seldom meets one that is being closed."""

_MAX_HOSTS: Final = 64
"""Hosts whose TLS contexts are kept."""

_forget_urls: Final[Callable[[], None]] = getattr(urlsplit, "cache_clear", lambda: None)
"""Empties a cache of the standard library in which Twisted leaves URLs. A URL may be a secret."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, the first bytes of its body, and how long to wait before a retry.

    ``retry_after`` is None if the answer has no such header, or one that cannot be read.
    ``location`` is empty if the answer has no such header.
    """

    status: int
    body: bytes = field(default=b"", repr=False)
    retry_after: float | None = None
    location: str = field(default="", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status <= 299


class CallError(Exception):
    """There is no answer; carries nothing of the request."""

    def __init__(self, fault: SendFault) -> None:
        super().__init__(fault)
        self.fault = fault


Connect = Callable[[bytes, int], IStreamClientEndpoint]
"""Makes the endpoint, below TLS, for a host and a port."""


class HttpClient:
    """Sends requests over HTTPS.

    Args:
        reactor: Connects, resolves names and keeps the time.
        trust: The authorities to trust for the hosts' certificates, as Twisted's trust root.
        wall: Gives the time since 1970, for a date in an answer.
        connect: Makes the endpoints; by default they connect to any address of the host. If it
            is given, strangers may name the hosts, so no connection is kept for a next request.
        timeout: Seconds for a request, from the connection to the end of the answer.

    """

    def __init__(
        self,
        reactor: Any,
        trust: Any,
        wall: Callable[[], float],
        connect: Connect | None = None,
        *,
        timeout: float,
    ) -> None:
        self._clock = reactor
        self._wall = wall
        self._timeout = timeout
        self._connections = _Connections()
        self._pool = HTTPConnectionPool(reactor, persistent=connect is None)
        self._pool.maxPersistentPerHost = _MAX_IDLE
        self._pool.cachedConnectionTimeout = _IDLE  # type: ignore[assignment]
        self._pool.retryAutomatically = False
        endpoints = _Endpoints(
            connect or partial(HostnameEndpoint, reactor), trust, self._connections
        )
        self._agent = Agent.usingEndpointFactory(reactor, endpoints, self._pool)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a POST request and return the answer, whatever its status.

        Raises:
            CallError: There is no answer.

        """
        deadline = self._clock.seconds() + self._timeout
        try:
            response = await self._agent.request(
                b"POST",
                url.encode("ascii"),
                Headers({name: [value] for name, value in headers.items()}),
                _Body(body),
            ).addTimeout(self._timeout, self._clock, onTimeoutCancel=_timed_out)
        except (CallError, CancelledError):
            raise
        except Exception as error:
            # The exception is not kept as a cause: it refers to the request.
            found = _cause(error)
        else:
            content = await _Content(response).read(self._clock, deadline - self._clock.seconds())
            if response.code not in _STATUSES:
                raise CallError(SendFault.MALFORMED)
            return Answer(
                response.code,
                content,
                retry_after(_value(response, "retry-after"), self._wall()),
                _value(response, "location"),
            )
        finally:
            _forget_urls()
        if isinstance(found, CancelledError):
            raise found
        raise CallError(found)

    async def close(self) -> None:
        """Drop all connections."""
        await self._pool.closeCachedConnections()
        self._connections.abort()


def _value(response: IResponse, name: str) -> str:
    """Return the first value of a header, empty if there is none."""
    values = response.headers.getRawHeaders(name.encode("ascii")) or [b""]
    # A header may have any bytes, and they need not be text.
    return bytes(values[0]).decode("latin-1")


def retry_after(text: str, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, None if it cannot be read.

    It has seconds or a date; ``now`` is in seconds since 1970.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.fromtimestamp(now, UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def trust_root(path: Path | None) -> Any:
    """Return the trust root of a PEM file, or of the platform if there is none.

    Raises `StartupError` if the file cannot be used.
    """
    if path is None:
        return ssl.platformTrust()
    fix = "give --push-ca-file the root of the push provider's certificate."
    return ssl.trustRootFromCertificates(
        [
            ssl.Certificate.loadPEM(each.public_bytes(Encoding.PEM))
            for each in read_authorities(path, fix)
        ]
    )


def _timed_out(_: object, __: float) -> Failure:
    return Failure(CallError(SendFault.TIMEOUT))


_CAUSES: Final[Mapping[type[BaseException], SendFault | None]] = {
    CancelledError: None,
    VerificationError: SendFault.TLS,
    SSL.Error: SendFault.TLS,
    DNSLookupError: SendFault.UNREACHABLE,
    ConnectError: SendFault.UNREACHABLE,
    ConnectionClosed: SendFault.DISCONNECTED,
}
"""The faults of exceptions; None is that of a cancelled request."""


def _cause(error: BaseException) -> SendFault | CancelledError:
    """Return the fault that an exception of Agent's means.

    What is in no row of the table is the parser's.
    """
    errors = [error]
    for each in errors:
        for kind, fault in _CAUSES.items():
            if isinstance(each, kind):
                return CancelledError() if fault is None else fault
        errors += [failure.value for failure in getattr(each, "reasons", ())]
    return SendFault.MALFORMED


@implementer(IBodyProducer)
class _Body:
    """The body of a request, written at once: it is a few kilobytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the body."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: everything is written."""

    def resumeProducing(self) -> None:
        """Do nothing: everything is written."""

    def stopProducing(self) -> None:
        """Do nothing: everything is written."""


class _Content(Protocol):
    """Reads the first bytes of an answer's body.

    What is read is returned, however the body ends: the status has been decided before it.
    """

    def __init__(self, response: IResponse) -> None:
        self._response = response
        self._read = b""
        self._ended: Deferred[None] = Deferred(lambda _: self._drop())

    async def read(self, clock: Any, seconds: float) -> bytes:
        """Read until the body ends, for at most so many seconds."""
        late = clock.callLater(max(0.0, seconds), self._stop)
        self._response.deliverBody(self)
        try:
            await self._ended
        finally:
            if late.active():
                late.cancel()
        return self._read

    def dataReceived(self, data: bytes) -> None:
        """Keep the first bytes; drop the connection if there are more."""
        self._read += data[: MAX_BODY - len(self._read)]
        if len(self._read) >= MAX_BODY:
            self._stop()

    def connectionLost(self, reason: Failure = Failure(CancelledError())) -> None:  # noqa: ARG002, B008
        """Return what there is."""
        if not self._ended.called:
            self._ended.callback(None)

    def _stop(self) -> None:
        self._drop()
        if not self._ended.called:
            self._ended.callback(None)

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


class _Connection(ProtocolWrapper):
    """A connection above TLS: bounds an answer, and drops what it closes.

    Over TLS, a close that does not abort waits for the peer's close_notify, possibly for ever.
    """

    def __init__(self, factory: _Bounded, wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._left = _MAX_ANSWER

    def write(self, data: bytes) -> None:
        """Write a request, or a part of it; the answer to it is counted anew."""
        self._left = _MAX_ANSWER
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        """Write parts of a request."""
        self._left = _MAX_ANSWER
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        """Pass on a part of an answer; drop the connection if the answer is too long."""
        self._left -= len(data)
        super().dataReceived(data if self._left >= 0 else data[: self._left])
        if self._left < 0:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Drop the connection."""
        self.disconnecting = 1
        cast(Any, self.transport).abortConnection()


class _Connections:
    """The open connections."""

    def __init__(self) -> None:
        self._factories: set[_Bounded] = set()

    def connect(self, endpoint: IStreamClientEndpoint, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect; fire with the protocol that ``factory`` has made."""
        connected: Deferred[Any] = endpoint.connect(_Bounded(factory, self._factories))
        return connected.addCallback(attrgetter("wrappedProtocol"))

    def abort(self) -> None:
        """Drop them all."""
        for factory in [*self._factories]:
            for connection in [*factory.protocols]:
                connection.loseConnection()


class _Bounded(WrappingFactory[_Connection]):
    """Makes one connection, and is in ``open`` as long as that is open."""

    protocol = _Connection
    noisy = False

    def __init__(self, wrapped: IProtocolFactory, open: set[_Bounded]) -> None:
        super().__init__(wrapped)
        self._open = open

    def registerProtocol(self, connection: _Connection) -> None:
        """Take note of the connection."""
        super().registerProtocol(connection)
        self._open.add(self)

    def unregisterProtocol(self, connection: _Connection) -> None:
        """Forget the connection."""
        super().unregisterProtocol(connection)
        self._open.discard(self)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes Agent's endpoints: TLS, with one context for each host, and bounded connections."""

    def __init__(self, connect: Connect, trust: Any, connections: _Connections) -> None:
        self._connect = connect
        self._connections = connections
        self._tls = lru_cache(_MAX_HOSTS)(
            lambda host: ssl.optionsForClientTLS(host, trustRoot=trust)
        )

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint for a URL."""
        below = self._connect(uri.host, uri.port)
        above = wrapClientTLS(self._tls(uri.host.decode("ascii")), below)
        return _Endpoint(above, self._connections)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(self, endpoint: IStreamClientEndpoint, connections: _Connections) -> None:
        self._endpoint = endpoint
        self._connections = connections

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect."""
        return self._connections.connect(self._endpoint, factory)
