"""A connection's TLS: it bounds the handshake, and reports one that fails."""

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


class Refusal(Enum):
    """Why the relay refuses a handshake; the value is the reason in the log."""

    NAME = "a name that is not served"
    NO_CERTIFICATE = "no certificate"
    TOO_LONG = "too long"


class TLSConnection(BufferingTLSTransport):
    """A connection's TLS."""

    factory: TLSFactory
    refused: Refusal | None = None
    """Why the relay refuses the handshake; None if it does not."""
    _unfinished = 0

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

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End; report a handshake that was refused or not completed."""
        self.__dict__.pop("dataReceived", None)
        if self.refused is not None:
            self.factory.handshake_failed(self, self.refused.value)
        elif not self._handshakeDone:
            self.factory.handshake_failed(self, self._cause())
        super().connectionLost(reason)

    def _cause(self) -> str:
        failure = self._reason
        if failure is not None and isinstance(failure.value, SSL.Error):
            return words(failure.value)
        return "not completed" if self._aborted else "closed by the peer"


class TLSFactory(TLSMemoryBIOFactory):
    """Puts TLS around the connections of ``wrapped``.

    The handshake has no deadline here. ``wrapped`` knows of a connection from its start, and its
    deadline for the whole request covers the handshake.
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
