"""The PROXY protocol, versions 1 and 2: load balancers announce the caller's address.

The header comes before everything else on a connection, TLS included. Source: HAProxy's
``proxy-protocol.txt``; its section numbers stand beside the rules.

Twisted's own wrapper does not suit the open internet. It has no time-out, fails on a header that
arrives in small pieces, and stays between transport and protocol. In an endpoint string it stands
above TLS.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any, Final

from twisted.internet import address
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyrycode_relay import addresses
from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http.waiting_room import WaitingRoom
from pyrycode_relay.limits import Limits

_bugs = Logger()

_V1: Final = b"PROXY "
_V1_MAX: Final = 107
"""Bytes of the longest version 1 header, with its CR LF (section 2.1)."""
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)
_V1_PORTS: Final = rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
_V1_TCP4: Final = re.compile(rb"PROXY TCP4 ([0-9.]+) ([0-9.]+) " + _V1_PORTS)
_V1_TCP6: Final = re.compile(rb"PROXY TCP6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _V1_PORTS)

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first 12 bytes of a version 2 header (section 2.2)."""
V2_MAX: Final = 4096
"""Bytes of addresses and TLVs allowed in a version 2 header.

Addresses take 216 at most. The specification asks senders to stay below 536, but some put the
client's certificate into a TLV.
"""

_V2_HEAD: Final = Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED: Final = 0x00
_TCP4: Final = (0x11, Struct("!4s4sHH"))
_TCP6: Final = (0x21, Struct("!16s16sHH"))
_UNIX: Final = (0x31, Struct("!108s108s"))
_V2_ADDRESSES: Final = dict((_TCP4, _TCP6, _UNIX))
"""The address families of streams, with the layout of their addresses."""


class ProxyRefusal(enum.Enum):
    """Why a connection is dropped; the value is the text in the log."""

    UNTRUSTED = "not a trusted proxy"
    CROWDED_OUT = "oldest of too many connections without a PROXY header"
    LATE = "PROXY header not complete in time"
    ABSENT = "no PROXY header"
    ENDLESS = "PROXY header without an end"
    TOO_LONG = "PROXY header too long"
    MALFORMED = "malformed PROXY header"
    UNKNOWN_VERSION = "PROXY header of an unknown version or command"
    NOT_A_STREAM = "PROXY header for a non-stream"

    def __str__(self) -> str:
        return self.value


class HeaderError(ValueError):
    """The data is not an acceptable PROXY header."""

    def __init__(self, refusal: ProxyRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Header:
    """A PROXY header."""

    size: int
    """Its length in bytes."""
    source: tuple[str, int] | None
    """The caller's host and port.

    The host is `addresses.UNIX` if the proxy was called over a UNIX socket. The source is None if
    the proxy connects on its own behalf, as for a health check.
    """


def parse(data: bytes | bytearray) -> Header | None:
    """Return the header at the start of ``data``, or None if it is not complete.

    Raises `HeaderError` as soon as no further byte can make it a header.
    """
    start = bytes(data[: len(SIGNATURE)])
    if start.startswith(_V1) or _V1.startswith(start):
        return _parse_v1(data)
    if SIGNATURE.startswith(start):
        return _parse_v2(data)
    raise HeaderError(ProxyRefusal.ABSENT)


def _parse_v1(data: bytes | bytearray) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_MAX)
    if end < 0:
        if len(data) >= _V1_MAX:
            raise HeaderError(ProxyRefusal.ENDLESS)
        return None
    line = bytes(data[:end])
    if _V1_UNKNOWN.fullmatch(line):
        return Header(end + 2, None)
    tcp4, tcp6 = _V1_TCP4.fullmatch(line), _V1_TCP6.fullmatch(line)
    match = tcp4 or tcp6
    if match is None:
        raise HeaderError(ProxyRefusal.MALFORMED)
    kind = IPv4Address if tcp4 else IPv6Address
    try:
        host, _ = (kind(match[number].decode()) for number in (1, 2))
    except ValueError:
        raise HeaderError(ProxyRefusal.MALFORMED) from None
    ports = int(match[3]), int(match[4])
    if max(ports) > 0xFFFF:
        raise HeaderError(ProxyRefusal.MALFORMED)
    return Header(end + 2, (addresses.canonical(str(host)), ports[0]))


def _parse_v2(data: bytes | bytearray) -> Header | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, length = _V2_HEAD.unpack_from(data)
    if command not in {_LOCAL, _PROXY}:
        raise HeaderError(ProxyRefusal.UNKNOWN_VERSION)
    if length > V2_MAX:
        raise HeaderError(ProxyRefusal.TOO_LONG)
    # The rest of a LOCAL header is ignored (section 2.2), whatever its family.
    own_behalf = command == _LOCAL or family == _UNSPECIFIED
    if not own_behalf and family not in _V2_ADDRESSES:
        raise HeaderError(ProxyRefusal.NOT_A_STREAM)
    if not own_behalf and length < _V2_ADDRESSES[family].size:
        raise HeaderError(ProxyRefusal.MALFORMED)
    size = _V2_HEAD.size + length
    if len(data) < size:
        return None
    if own_behalf:
        return Header(size, None)
    if family == _UNIX[0]:
        return Header(size, (addresses.UNIX, 0))
    host, _, port, _ = _V2_ADDRESSES[family].unpack_from(data, _V2_HEAD.size)
    kind = IPv4Address if family == _TCP4[0] else IPv6Address
    return Header(size, (addresses.canonical(str(kind(host))), port))


class ProxyFactory(Factory):
    """Wraps ``served``, the factory that serves a connection after its PROXY header.

    The transport's ``getPeer`` then returns the caller that the header announces. TLS, if any, is
    part of ``served``.

    Args:
        served: Serves the connections.
        clock: Runs the time-outs.
        observer: Receives events.
        limits: A header must be complete within its ``header_timeout``. A proxy's health check
            is aborted after its ``close_timeout``.
        max_waiting: Connections that may wait for their header. Beyond that, one is dropped for
            each newcomer.
        trusted: The proxies; connections from other sources are closed.

    """

    noisy = False

    def __init__(
        self,
        served: IProtocolFactory,
        clock: IReactorTime,
        observer: Observer,
        limits: Limits,
        *,
        max_waiting: int,
        trusted: Trusted,
    ) -> None:
        self.served = served
        self.clock = clock
        self.limits = limits
        self.waiting = WaitingRoom[HeaderReader](max_waiting)
        """Connections whose header is not complete, and health checks."""
        self._trusted = trusted
        self._observer = observer

    def startFactory(self) -> None:
        """Start the wrapped factory."""
        self.served.doStart()

    def stopFactory(self) -> None:
        """Stop the wrapped factory, and abort connections without a header."""
        self.served.doStop()
        for reader in [*self.waiting]:
            reader.abort()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Make a connection's reader; None, which closes the connection, for untrusted sources."""
        peer = addresses.remote_address(addr)
        if peer in self._trusted:
            return HeaderReader(self, peer)
        self.note(peer, ProxyRefusal.UNTRUSTED)
        return None

    def note(self, peer: str, refusal: ProxyRefusal) -> None:
        """Report a dropped connection."""
        self._observer.saw(Event.PROXY_REFUSED, remote=peer, reason=refusal)


class HeaderReader(Protocol):
    """Reads one connection's header, then hands the transport over and removes itself.

    The serving protocol is then attached to the transport itself, as it is without a proxy.
    """

    factory: ProxyFactory
    transport: Any

    def __init__(self, factory: ProxyFactory, peer: str) -> None:
        self.factory = factory
        self._peer = peer
        self._data = bytearray()
        self._done = False
        self._timer: IDelayedCall

    def connectionMade(self) -> None:
        """Start the header timeout and enter the waiting room."""
        timeout = self.factory.limits.header_timeout
        self._timer = self.factory.clock.callLater(timeout, self.refuse, ProxyRefusal.LATE)
        displaced = self.factory.waiting.enter(self, self._peer)
        if displaced is not None:
            displaced.refuse(ProxyRefusal.CROWDED_OUT)

    def dataReceived(self, data: bytes) -> None:
        """Take a part of the header, and bytes that may follow it."""
        if self._done:
            return
        self._data += data
        try:
            header = parse(self._data)
        except HeaderError as error:
            self.refuse(error.refusal)
            return
        if header is None:
            return
        self._done = True
        if header.source is None:
            self._close_without_reset()
        else:
            self._hand_over(header.source, bytes(self._data[header.size :]))

    def _hand_over(self, source: tuple[str, int], rest: bytes) -> None:
        self._leave()
        transport, self.transport = self.transport, None
        announced = _announced(source)
        # Every layer above, TLS included, asks the transport for its peer.
        transport.getPeer = lambda: announced
        try:
            served = self.factory.served.buildProtocol(announced)
            if served is None:
                transport.abortConnection()
                return
            transport.protocol = served
            served.makeConnection(transport)
            if rest:
                served.dataReceived(rest)
        except Exception:
            _bugs.failure("a bug costs this connection")
            transport.abortConnection()

    def _close_without_reset(self) -> None:
        """Close the sending direction first: a proxy may count a reset health check as failed."""
        self._timer.cancel()
        self._timer = self.factory.clock.callLater(self.factory.limits.close_timeout, self.abort)
        self.transport.loseWriteConnection()

    def refuse(self, refusal: ProxyRefusal) -> None:
        """Report why the connection is dropped, and abort it."""
        self.factory.note(self._peer, refusal)
        self.abort()

    def abort(self) -> None:
        """Abort the connection, to which nothing was written."""
        self._done = True
        self._leave()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Stop waiting."""
        self._leave()

    def _leave(self) -> None:
        self.factory.waiting.leave(self)
        if self._timer.active():
            self._timer.cancel()


def _announced(source: tuple[str, int]) -> IAddress:
    host, port = source
    if host == addresses.UNIX:
        return address.UNIXAddress(None)
    kind = address.IPv6Address if ":" in host else address.IPv4Address
    return kind("TCP", host, port)
