"""The sockets that the relay listens on."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyrycode_relay.config.listen import endpoint_string
from pyrycode_relay.startup_error import StartupError

_bugs = Logger()

Listen = Callable[[str, IProtocolFactory], IListeningPort]
"""Begins to listen on an address, as the settings have it; raises an exception if it cannot."""


class Purpose(enum.Enum):
    """What a listener serves: a name, and the scheme of its URLs."""

    PLAIN = ("WebSockets without encryption", "ws")
    TLS = ("WebSockets over TLS", "wss")
    CHALLENGES = ("an ACME CA's challenges", "http")
    ADMIN = ("the status page and the metrics", "http")

    def __init__(self, text: str, scheme: str) -> None:
        self.text = text
        self.scheme = scheme


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on, and the factory that serves its connections."""

    address: str
    factory: IProtocolFactory
    purpose: Purpose = Purpose.PLAIN
    fix: str = ""
    """The fix that ends the error sentence if listening fails; may be empty."""


def listen(reactor: Any, address: str, factory: IProtocolFactory) -> IListeningPort:
    """Listen on an address by means of Twisted's endpoints; see `Listen`."""
    # Server endpoints answer at once; only those of clients take time.
    outcome: list[IListeningPort | Failure] = []
    endpoint = serverFromString(reactor, endpoint_string(address))
    endpoint.listen(factory).addBoth(outcome.append)
    if not outcome:
        raise RuntimeError("the endpoint did not answer at once")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]


class Listeners:
    """The open listeners. ``listen`` opens one, or gets a socket that is open already."""

    def __init__(self, listen: Listen) -> None:
        self.ports: list[IListeningPort] = []
        """The open ones, in the order of `open`."""
        self._purposes: list[Purpose] = []
        self._listen = listen

    def open(self, listeners: Iterable[Listener]) -> None:
        """Open all of ``listeners``, or none.

        Raises `StartupError` for the first that fails, after closing all that are open.
        """
        for each in listeners:
            try:
                self.ports.append(self._listen(each.address, each.factory))
                self._purposes.append(each.purpose)
            except Exception as error:
                self.close()
                raise StartupError(
                    f"Cannot listen on {each.address}: {_cause(error)}{each.fix}."
                ) from error

    @property
    def addresses(self) -> list[str]:
        """Where the open ones listen: host and port, or a path."""
        return [address_of(port.getHost()) for port in self.ports]

    @property
    def hosts(self) -> list[tuple[Purpose, Any]]:
        """The purpose of each open one, and where it listens, as Twisted reports it."""
        return [(p, port.getHost()) for p, port in zip(self._purposes, self.ports, strict=True)]

    def close(self) -> None:
        """Close all at once, even before the reactor runs, which `stop` needs."""
        ports = self._forget()
        for port in ports:
            cast(Any, port).connectionLost(Failure(CONNECTION_DONE))

    def stop(self) -> Deferred[None]:
        """Close all; the result fires when they are closed.

        A listener that fails to close, for example because the file of its UNIX socket is gone,
        is logged and does not keep the others open.
        """
        ports = self._forget()
        closed = [
            maybeDeferred(port.stopListening).addErrback(_log_close_failure) for port in ports
        ]
        return gatherResults(closed).addCallback(lambda _: None)

    def _forget(self) -> list[IListeningPort]:
        """Return the open ones, of which none is left here."""
        ports, self.ports, self._purposes = self.ports, [], []
        return ports


def _log_close_failure(failure: Failure) -> None:
    _bugs.failure("a listener did not close cleanly", failure)


def _cause(error: BaseException) -> str:
    """Return why a listener cannot be opened, in the system's words."""
    reason = getattr(error, "socketError", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def address_of(host: Any) -> str:
    """Return where a listener listens: host and port, or a path.

    ``host`` is the address that Twisted reports.
    """
    if hasattr(host, "port"):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    name = getattr(host, "name", host)
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)
