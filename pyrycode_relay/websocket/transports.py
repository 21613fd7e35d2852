"""Twisted's transports below a connection: the only module that touches their private parts.

A connection's transport is a TCP or UNIX transport, which owns the socket, or TLS above one.
The one that owns the socket is called the *descriptor* here.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from typing import Any, Final, Protocol, cast

from twisted.internet import tcp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IProtocol, ISSLTransport
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol

from pyrycode_relay.tls.connection import TLSConnection

_INT: Final = struct.Struct("i")
_PIECES: Final = 256
"""Pieces that may wait in a transport before they are joined; each takes 50 bytes and its data."""


class Transport(Protocol):
    """What a connection needs of Twisted's TCP, UNIX and TLS transports."""

    def write(self, data: bytes, /) -> None:
        """Write, now or later."""

    def loseConnection(self) -> None:
        """Close when everything is written."""

    def loseWriteConnection(self) -> None:
        """Close the sending direction when everything is written; TCP and UNIX only."""

    def abortConnection(self) -> None:
        """Close now."""

    def pauseProducing(self) -> None:
        """Stop reading."""

    def resumeProducing(self) -> None:
        """Start reading."""

    def registerProducer(self, producer: object, streaming: bool, /) -> None:
        """Call ``producer`` when it has to pause and when it may write again."""

    def unregisterProducer(self) -> None:
        """Call no producer from now on."""


def descriptor_of(transport: Any) -> FileDescriptor | None:
    """Return the descriptor at or below ``transport``, or None."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = getattr(transport, "transport", None)
    return transport


def plain_descriptor(transport: Any) -> Connection | None:
    """Return the descriptor if nothing transforms what is written to ``transport``."""
    if isinstance(transport, ProtocolWrapper):
        return None
    return cast("Connection | None", descriptor_of(transport))


def take_from_channel(transport: Any, protocol: object) -> None:
    """Make ``protocol`` the protocol of a transport that an HTTP channel has used until now."""
    # The channel is still the transport's producer. Until it is unregistered, no other producer can
    # be registered, and its buffers stay alive.
    transport.unregisterProducer()
    if isinstance(transport, ProtocolWrapper):
        transport.wrappedProtocol = cast("IProtocol", protocol)  # TLS
    else:
        transport.protocol = protocol


def release_socket(transport: Any) -> socket.socket:
    """Return the socket of a plain transport that an HTTP channel has used until now.

    The transport is of no use afterwards. Closing it would shut the connection down for every
    process that has the socket.
    """
    transport.unregisterProducer()
    transport.stopReading()
    transport.stopWriting()
    transport.connected = 0
    transport.protocol = None
    return cast(socket.socket, transport.socket)


class CarriedServer(unix.Server):
    """A transport for a connection that another worker has accepted and carries to this one.

    ``client`` is the client's own socket. It is only asked how much the client has acknowledged.
    """

    client_socket: socket.socket

    def connectionLost(self, reason: Any) -> None:
        """Close the client's socket, too."""
        self.client_socket.close()
        super().connectionLost(reason)


def adopt(
    sock: socket.socket, client: socket.socket | None, protocol: object, reactor: Any
) -> Transport:
    """Return a transport for a socket that another process has accepted.

    ``client`` is the client's own socket if ``sock`` is one end of a carried connection.
    """
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        peer = sock.getpeername()
        transport: Any = tcp.Server(sock, cast(Any, protocol), peer, cast(Any, None), 0, reactor)
    else:
        kind = unix.Server if client is None else CarriedServer
        transport = kind(sock, protocol, "", None, 0, reactor)
        if client is not None:
            transport.client_socket = client
    transport.repstr = f"<{type(protocol).__name__} from another worker>"
    return cast(Transport, transport)


def move(descriptor: FileDescriptor, poller: Any) -> None:
    """Have ``poller`` poll a descriptor in the reactor's place; reading starts when resumed."""
    descriptor.stopReading()
    descriptor.stopWriting()
    descriptor.reactor = poller
    if waiting_in(descriptor):
        descriptor.startWriting()  # the end of a TLS handshake


def prepare_socket(descriptor: FileDescriptor, send_buffer: int) -> None:
    """Bound the kernel's queue to ``send_buffer`` bytes (0: do not), and switch Nagle off.

    A connection gathers what it writes, so a wait in the kernel would gain nothing.
    """
    sock = getattr(descriptor, "socket", None)
    if sock is None:
        return
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    with contextlib.suppress(OSError):  # UNIX sockets have no such option.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def waiting_in(descriptor: FileDescriptor) -> int:
    """Return how many bytes a descriptor has still to pass to the kernel."""
    return len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen


def join_pieces(descriptor: FileDescriptor) -> None:
    """Join the data that waits in a descriptor if it is in many pieces, which have overhead."""
    if len(descriptor._tempDataBuffer) > _PIECES:
        descriptor._tempDataBuffer[:] = [b"".join(descriptor._tempDataBuffer)]


def unsent_bytes(transport: Transport) -> int:
    """Return how many bytes wait in user space for the kernel to take them.

    Over TLS that includes what OpenSSL does not take, as long as the peer leaves a TLS message
    unfinished.
    """
    descriptor = descriptor_of(transport)
    return blocked_bytes(transport) + (0 if descriptor is None else waiting_in(descriptor))


def blocked_bytes(transport: Transport) -> int:
    """Return how many bytes wait for OpenSSL, which has not taken them yet."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        return sum(map(len, transport._appSendBuffer))
    return 0


def tls_output(transport: Transport) -> int | None:
    """Return how many bytes TLS has passed to its descriptor so far; None without TLS."""
    return transport.output if isinstance(transport, TLSConnection) else None


def unacked_bytes(transport: Transport) -> int:
    """Return how many bytes of a descriptor's, in it and in the kernel, are not acknowledged.

    Twisted tells a producer only when everything has gone out, and the kernel asks for more only
    when a good part of its buffer is free. Only this count shows that a slow peer reads.
    """
    descriptor = descriptor_of(transport)
    sock = getattr(descriptor, "socket", None)
    if descriptor is None or sock is None:
        return 0
    unacked = waiting_in(descriptor) + _in_kernel(sock)
    if isinstance(descriptor, CarriedServer):
        # The edge has up to 64 KiB in between, which count as acknowledged a little early.
        unacked += _in_kernel(descriptor.client_socket)
    return unacked


def _in_kernel(sock: socket.socket) -> int:
    """Return how many bytes the kernel keeps until the other end has acknowledged them."""
    found = bytearray(_INT.size)
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, found)
    return int(_INT.unpack(found)[0])


def can_write_past(descriptor: Connection) -> bool:
    """Whether a write to the socket itself keeps the order of what a descriptor writes.

    It does while nothing waits in the descriptor and no close is pending, of the connection or of
    the sending direction.
    """
    closing = descriptor.disconnecting or descriptor._writeDisconnecting
    return bool(descriptor.connected and not closing and not waiting_in(descriptor))


def write_tls(transport: TLSMemoryBIOProtocol, data: bytes) -> bool:
    """Write over TLS, to the socket if it takes it; return whether some of it has to wait.

    A TLS transport would gather small writes until the reactor's next turn. The connection has
    gathered already, so this bypasses that part of the transport.
    """
    TLSMemoryBIOProtocol.write(transport, data)
    descriptor = descriptor_of(transport)
    if descriptor is None or not waiting_in(descriptor):
        return bool(transport._appSendBuffer)
    if not descriptor.disconnecting:
        # The result is ignored: the poller finds an error again when it lets this write.
        descriptor.doWrite()
    return bool(waiting_in(descriptor) or transport._appSendBuffer)


def half_close(transport: Transport) -> None:
    """Close the sending direction, and let the peer close the connection.

    A close at once, with input unread, would reset the connection, and a reset can overtake the
    last bytes written.
    """
    if ISSLTransport.providedBy(transport) or not hasattr(transport, "loseWriteConnection"):
        transport.loseConnection()  # TLS sends its close_notify and waits for the peer's.
    else:
        transport.loseWriteConnection()


def has_ended_below(transport: Transport) -> bool:
    """Whether the descriptor is closing and waits for its producer: TLS has ended."""
    descriptor = descriptor_of(transport)
    return descriptor is not None and bool(descriptor.disconnecting)
