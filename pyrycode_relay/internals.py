"""The libraries' private and undocumented names that the relay uses, all in one table.

A library may change such a name in any release. The relay checks each name when it starts. A test
finds names that are used but not listed.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from types import FunctionType, ModuleType
from typing import Final


@dataclass(frozen=True, slots=True)
class Internal:
    """A name of a library.

    ``owner`` is a class of ``module``, or empty if the module itself has the name. ``user`` is the
    relay's module that depends on it.
    """

    library: str
    module: str
    owner: str
    name: str
    user: str

    def is_in(self, module: ModuleType) -> bool:
        """Whether ``module``, which is loaded, still has the name."""
        if not self.owner:
            return hasattr(module, self.name)
        owner = getattr(module, self.owner, None)
        return isinstance(owner, type) and (
            hasattr(owner, self.name) or self.name in _set_on_instances(owner, self.name)
        )

    def problem(self) -> str:
        """Return a sentence about the missing name and the fix."""
        place = self.owner or self.module
        return (
            f"{self.library} {metadata.version(self.library)} has no {place}.{self.name}, used by "
            f"pyrycode_relay.{self.user}; install a version of {self.library} that the relay "
            "supports."
        )


def _set_on_instances(owner: type, name: str) -> Iterator[str]:
    """Yield ``name`` if a method of ``owner`` sets it on an object."""
    for base in owner.__mro__:
        for function in vars(base).values():
            # Disassembling is slow, so skip functions that do not use the name.
            if isinstance(function, FunctionType) and name in function.__code__.co_names:
                for step in dis.get_instructions(function):
                    if step.opname == "STORE_ATTR" and step.argval == name:
                        yield name


def _listed(library: str, place: str, names: str, user: str) -> Iterator[Internal]:
    module, _, owner = place.partition(":")
    for name in names.split():
        yield Internal(library, module, owner, name, user)


INTERNALS: Final = (
    *_listed(
        "Twisted",
        "twisted.internet.abstract:FileDescriptor",
        "connected dataBuffer disconnecting offset reactor _tempDataBuffer _tempDataLen "
        "_writeDisconnecting",
        "websocket.transports",
    ),
    *_listed("Twisted", "twisted.internet.tcp:Connection", "socket", "websocket.transports"),
    *_listed(
        "Twisted",
        "twisted.internet.unix:Port",
        "_bindPath _fromListeningDescriptor _shouldShutdown",
        "placement.sockets",
    ),
    *_listed("Twisted", "twisted.internet.tcp:Connection", "protocol", "http.proxy_protocol"),
    *_listed("Twisted", "twisted.internet.tcp:Connection", "protocol", "websocket.poller"),
    *_listed(
        "Twisted",
        "twisted.protocols.policies:ProtocolWrapper",
        "wrappedProtocol",
        "websocket.transports",
    ),
    *_listed(
        "Twisted",
        "twisted.protocols.tls:TLSMemoryBIOProtocol",
        "_aborted _checkHandshakeStatus _flushReceiveBIO _flushSendBIO _handshakeDone "
        "_lostTLSConnection _producer _reason _tlsConnection _tlsShutdownFinished",
        "tls.connection",
    ),
    *_listed(
        "Twisted", "twisted.protocols.tls:_ProducerMembrane", "_producerPaused", "tls.connection"
    ),
    *_listed(
        "Twisted",
        "twisted.protocols.tls:TLSMemoryBIOProtocol",
        "_appSendBuffer",
        "websocket.transports",
    ),
    *_listed(
        "Twisted",
        "twisted.web.http:HTTPChannel",
        "_abortingCall _respondToBadRequestAndDisconnect allHeadersReceived callLater "
        "forceAbortClient length lineLengthExceeded persistent requests timeOut timeoutConnection",
        "http.server",
    ),
    *_listed("Twisted", "twisted.web.http:HTTPChannel", "rawDataReceived", "websocket.connection"),
    *_listed("Twisted", "twisted.web.http:Request", "gotLength startedWriting", "http.server"),
    *_listed("Twisted", "twisted.web.http:Request", "clientproto", "http.relay_site"),
    *_listed(
        "Twisted",
        "twisted.internet.endpoints:TCP4ServerEndpoint",
        "_interface",
        "config.listen",
    ),
    *_listed(
        "autobahn",
        "autobahn.twisted.websocket:WebSocketServerProtocol",
        "_closeConnection _connectionMade _fail_connection _max_message_size_exceeded "
        "current_frame current_frame_masker data inside_message is_closed is_open "
        "message_data_total_length message_is_binary onCloseFrame onFrameBegin onFrameData "
        "onFrameEnd onMessageBegin onMessageEnd onMessageFrameData onMessageFrameEnd "
        "processData remoteCloseCode sendCloseFrame sendData state utf8validator",
        "websocket.autobahn",
    ),
    *_listed("autobahn", "autobahn.websocket.protocol", "FrameHeader", "websocket.autobahn"),
    *_listed("autobahn", "autobahn.websocket.xormasker", "create_xor_masker", "websocket.autobahn"),
    *_listed("requests", "requests.models:Response", "_content _content_consumed", "acme.client"),
    *_listed("acme", "acme.client:ClientNetwork", "session", "acme.client"),
)


def problems(internals: Iterable[Internal] | None = None, *, load: bool = False) -> Iterator[str]:
    """Yield a sentence for each name that its library lacks.

    Args:
        internals: The names to check; by default the whole table.
        load: Whether to import a library that is not loaded. By default its names are skipped,
            because the relay does not use it.

    """
    for each in INTERNALS if internals is None else internals:
        module = import_module(each.module) if load else sys.modules.get(each.module)
        if module is not None and not each.is_in(module):
            yield each.problem()
