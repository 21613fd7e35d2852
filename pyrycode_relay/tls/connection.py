"""A connection's TLS: it bounds the handshake and OpenSSL's own output, and reports failures."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from pyrycode_relay import addresses
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.tls.contexts import words

_MAX_HELLO: Final = 2**14
"""Bytes that a client may send before its handshake is done. Clients send 2 KiB, with
post-quantum keys. Without this bound, OpenSSL would keep 128 KiB for each."""

_MAX_UNREAD: Final = 2**14
"""Bytes that OpenSSL may write by itself while the transport is full, or after the close.

OpenSSL answers each key update (TLS 1.3) and each request for renegotiation (TLS 1.2) with some 30
bytes. Clients send one in many gigabytes, or none."""

_PIECE: Final = 2**15
"""Bytes that are taken from OpenSSL at once."""


class Refusal(Enum):
    """Why the relay refuses a handshake; the value is the reason in the log."""

    NAME = "a name that is not served"
    NO_CERTIFICATE = "no certificate"
    TOO_LONG = "too long"


class TLSConnection(BufferingTLSTransport):
    """A connection's TLS.

    OpenSSL writes by itself whatever the protocol requires, and no queue accounts for it. A peer
    that requests such output and does not read it loses the connection.
    """

    factory: TLSFactory
    refused: Refusal | None = None
    """Why the relay refuses the handshake; None if it does not."""
    output = 0
    """Bytes that TLS has passed to the transport so far."""
    _unfinished = 0
    _flushed = 0
    """Bytes that the last flush passed to the transport."""
    _unread = 0
    """Bytes that OpenSSL wrote by itself and `_MAX_UNREAD` bounds."""

    def makeConnection(self, transport: ITransport) -> None:
        """Begin."""
        # Counts bytes until the handshake is done; no frame ever passes it.
        self.dataReceived = self._shake_hands  # type: ignore[method-assign]
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _shake_hands(self, data: bytes) -> None:
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if self._handshakeDone:
            self.__dict__.pop("dataReceived", None)
            return
        self._unfinished += len(data)
        if self._unfinished > _MAX_HELLO and not self._lostTLSConnection:
            self.refused = Refusal.TOO_LONG
            self.abortConnection()  # type: ignore[no-untyped-call]

    def _checkHandshakeStatus(self) -> None:
        super()._checkHandshakeStatus()  # type: ignore[no-untyped-call]
        if self._handshakeDone and self.refused is not None:
            # A session that resumes needs no certificate, so OpenSSL does not refuse it.
            self.abortConnection()  # type: ignore[no-untyped-call]

    def _flushSendBIO(self) -> None:
        """Pass everything that OpenSSL has written to the transport.

        Twisted would pass one piece, and the rest would pile up in OpenSSL.
        """
        self._flushed = 0
        while True:
            try:
                data = self._tlsConnection.bio_read(_PIECE)
            except SSL.WantReadError:
                return
            self._flushed += len(data)
            self.output += len(data)
            self.transport.write(data)  # type: ignore[union-attr]
            if len(data) < _PIECE:
                return

    def _flushReceiveBIO(self) -> None:
        super()._flushReceiveBIO()  # type: ignore[no-untyped-call]
        # What the application writes is flushed at once, so the last flush was OpenSSL's own.
        if self._flushed:
            self._bound_own_output(self._flushed)

    def _bound_own_output(self, size: int) -> None:
        """Abort the connection if the peer lets OpenSSL's own output pile up.

        As long as the transport is not full, its size bounds that output. Every connection has a
        producer until it closes.
        """
        producer = self._producer
        if producer is not None and not producer._producerPaused:
            self._unread = 0
            return
        self._unread += size
        if self._unread > _MAX_UNREAD and not self._aborted:
            self.abortConnection()  # type: ignore[no-untyped-call]

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # The error refers to frames, and one of them to the error. This cycle would keep in
        # memory what waits to be written.
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End; report a handshake that was refused or not completed."""
        self.__dict__.pop("dataReceived", None)
        if self.refused is not None:
            self.factory.handshake_failed(self, self.refused.value)
        elif not self._handshakeDone:
            self.factory.handshake_failed(self, self._cause())
        super().connectionLost(reason)
        self._producer = None  # Twisted keeps it, which is a cycle.

    def _cause(self) -> str:
        failure = self._reason
        if failure is not None and isinstance(failure.value, SSL.Error):
            return words(failure.value)
        return "not completed" if self._aborted else "closed by the peer"


class TLSFactory(TLSMemoryBIOFactory):
    """Puts TLS around the connections of ``wrapped``.

    The handshake has no deadline here. ``wrapped`` makes its protocol when a connection starts,
    and that protocol's deadline for the whole request covers the handshake.
    """

    protocol = TLSConnection

    def __init__(
        self,
        certificates: IOpenSSLServerConnectionCreator,
        wrapped: IProtocolFactory,
        observer: Observer,
        clock: IReactorTime,
    ) -> None:
        super().__init__(certificates, False, wrapped, clock)
        self._observer = observer

    def handshake_failed(self, connection: TLSConnection, reason: str) -> None:
        """Report a handshake that has failed."""
        remote = addresses.remote_address(cast(Any, connection).getPeer())
        self._observer.saw(Event.TLS_HANDSHAKE_FAILED, remote=remote, reason=reason)
