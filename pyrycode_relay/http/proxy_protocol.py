"""The PROXY protocol: a header below everything else that says who is calling.

Versions 1 and 2, for load balancers that pass on TCP. Source: HAProxy's ``proxy-protocol.txt``,
whose section numbers stand beside the rules.

Twisted's own wrapper is not for the open internet: it has no time-out, breaks on a header that
comes in small pieces, stays in the way for good, and stands above TLS in an endpoint string.
"""

from __future__ import annotations

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
"""Bytes of the longest version 1 header, its CR LF included (section 2.1)."""
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)
_V1_PORTS: Final = rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
_V1_TCP4: Final = re.compile(rb"PROXY TCP4 ([0-9.]+) ([0-9.]+) " + _V1_PORTS)
_V1_TCP6: Final = re.compile(rb"PROXY TCP6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _V1_PORTS)

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first 12 bytes of a version 2 header (section 2.2)."""
V2_MAX: Final = 4096
"""Bytes of addresses and TLVs in a version 2 header. Addresses take 216 at most, and senders are
to stay below 536; but there are some who put the client's certificate into a TLV."""

_V2_HEAD: Final = Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED: Final = 0x00
_TCP4: Final = (0x11, Struct("!4s4sHH"))
_TCP6: Final = (0x21, Struct("!16s16sHH"))
_UNIX: Final = (0x31, Struct("!108s108s"))
_V2_ADDRESSES: Final = dict((_TCP4, _TCP6, _UNIX))
"""The families a stream may have, with what stands before the TLVs."""


class HeaderError(ValueError):
    """What is no PROXY header that we take; the text is a literal without any of its bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """A PROXY header: its ``size`` in bytes, and the ``source`` that it announces.

    The source is a host and a port, with `addresses.UNIX` as the host where the proxy was called
    over a UNIX socket. None is nobody: the proxy speaks for itself, to see whether we are there.
    """

    size: int
    source: tuple[str, int] | None


def parse(data: bytes | bytearray) -> Header | None:
    """Return the header that ``data`` begins with, or None while more of it has to come.

    Raises `HeaderError` as soon as it cannot become one.
    """
    start = bytes(data[: len(SIGNATURE)])
    if start.startswith(_V1) or _V1.startswith(start):
        return _parse_v1(data)
    if SIGNATURE.startswith(start):
        return _parse_v2(data)
    raise HeaderError("no PROXY header")


def _parse_v1(data: bytes | bytearray) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_MAX)
    if end < 0:
        if len(data) >= _V1_MAX:
            raise HeaderError("a PROXY header without an end")
        return None
    line = bytes(data[:end])
    if _V1_UNKNOWN.fullmatch(line):
        return Header(end + 2, None)
    tcp4, tcp6 = _V1_TCP4.fullmatch(line), _V1_TCP6.fullmatch(line)
    match = tcp4 or tcp6
    if match is None:
        raise HeaderError("a malformed PROXY header")
    kind = IPv4Address if tcp4 else IPv6Address
    try:
        host, _ = (kind(match[number].decode()) for number in (1, 2))
    except ValueError:
        raise HeaderError("a malformed PROXY header") from None
    ports = int(match[3]), int(match[4])
    if max(ports) > 0xFFFF:
        raise HeaderError("a malformed PROXY header")
    return Header(end + 2, (addresses.canonical(str(host)), ports[0]))


def _parse_v2(data: bytes | bytearray) -> Header | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, length = _V2_HEAD.unpack_from(data)
    if command not in {_LOCAL, _PROXY}:
        raise HeaderError("a PROXY header of another version")
    if length > V2_MAX:
        raise HeaderError("a PROXY header that is too long")
    # Of LOCAL all the rest is to be ignored; nothing else counts that is no TCP or UNIX stream.
    nobody = command == _LOCAL or family == _UNSPECIFIED
    if not nobody and family not in _V2_ADDRESSES:
        raise HeaderError("a PROXY header for something else than a stream")
    if not nobody and length < _V2_ADDRESSES[family].size:
        raise HeaderError("a malformed PROXY header")
    size = _V2_HEAD.size + length
    if len(data) < size:
        return None
    if nobody:
        return Header(size, None)
    if family == _UNIX[0]:
        return Header(size, (addresses.UNIX, 0))
    host, _, port, _ = _V2_ADDRESSES[family].unpack_from(data, _V2_HEAD.size)
    kind = IPv4Address if family == _TCP4[0] else IPv6Address
    return Header(size, (addresses.canonical(str(kind(host))), port))


class ProxyFactory(Factory):
    """Wraps ``served``, which makes what serves a connection behind its PROXY header.

    A connection must begin with the header, have it complete within ``header_timeout`` seconds,
    and come from a ``trusted`` source. A health check is closed within ``close_timeout`` seconds.
    Of more than ``max_waiting`` without a header one that waits is dropped for each that comes.

    For what serves the connection, ``getPeer`` of the transport is who the header says is
    calling. TLS, where there is any, is part of ``served``.
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
        """Connections that are not served yet, or not at all."""
        self._trusted = trusted
        self._observer = observer

    def startFactory(self) -> None:
        """Begin to listen, and have what is wrapped do so."""
        self.served.doStart()

    def stopFactory(self) -> None:
        """Listen no more, and drop who has not said yet who is calling."""
        self.served.doStop()
        for reader in [*self.waiting]:
            reader.abort()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Make a connection's reader; anybody's but a trusted source's is closed at once."""
        peer = addresses.remote_address(addr)
        if peer in self._trusted:
            return HeaderReader(self, peer)
        self.refused(peer, "not a trusted proxy")
        return None

    def refused(self, peer: str, reason: str) -> None:
        """Tell of a connection that was dropped."""
        self._observer.saw(Event.PROXY_REFUSED, remote=peer, reason=reason)


class HeaderReader(Protocol):
    """One connection until its header has been read; then it gets out of the way.

    What serves the connection then stands on the transport itself, as it would without us.
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
        """Begin to wait for the header."""
        self._timer = self.factory.clock.callLater(
            self.factory.limits.header_timeout, self.refuse, "no complete PROXY header in time"
        )
        dropped = self.factory.waiting.enter(self, self._peer)
        if dropped is not None:
            dropped.refuse("waited longest among too many without a header")

    def dataReceived(self, data: bytes) -> None:
        """Take some of the header, and perhaps of what follows it."""
        if self._done:
            return
        self._data += data
        try:
            header = parse(self._data)
        except HeaderError as error:
            self.refuse(str(error))
            return
        if header is None:
            return
        self._done = True
        if header.source is None:
            self._part()
        else:
            self._hand_over(header.source, bytes(self._data[header.size :]))

    def _hand_over(self, source: tuple[str, int], rest: bytes) -> None:
        self._leave()
        transport, self.transport = self.transport, None
        announced = _announced(source)
        # All that anybody may ask for the peer stands above this transport, and asks it.
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

    def _part(self) -> None:
        """Close politely: a health check that is reset may take it for a failure."""
        self._timer.cancel()
        self._timer = self.factory.clock.callLater(self.factory.limits.close_timeout, self.abort)
        self.transport.loseWriteConnection()

    def refuse(self, reason: str) -> None:
        """End the connection, and tell why."""
        self.factory.refused(self._peer, reason)
        self.abort()

    def abort(self) -> None:
        """End the connection; nothing has been written to it."""
        self._done = True
        self._leave()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """End."""
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
