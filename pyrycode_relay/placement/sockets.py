"""The sockets that the parent of several workers opens, and that its workers share."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from twisted.internet import unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory

from pyrycode_relay.config.listen import LISTEN_BACKLOG
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.listeners import Listener, Listeners, Purpose, listen
from pyrycode_relay.startup_error import StartupError

_LONGEST_PATH: Final = 90
"""Characters that the path of the links' folder may have; the kernel allows 107 in all."""


# Listeners


@dataclass(frozen=True, slots=True)
class Opened:
    """Addresses that the parent has opened together."""

    wanted: Sequence[tuple[str, Purpose]]
    listeners: Listeners

    @classmethod
    def open(cls, reactor: Any, wanted: Sequence[tuple[str, Purpose]]) -> Opened:
        """Open addresses. Raises `StartupError`, with none of them left open."""
        listeners = Listeners(partial(_listen_only, reactor))
        listeners.open(Listener(address, Factory(), purpose) for address, purpose in wanted)
        return cls(wanted, listeners)

    def sockets(self) -> Iterator[tuple[str, int]]:
        """Yield each address with its descriptor."""
        ports: Any = self.listeners.ports
        for (address, _), port in zip(self.wanted, ports, strict=True):
            yield address, port.fileno()


def wanted(settings: Settings) -> list[tuple[str, Purpose]]:
    """Return the addresses to listen on, in the order in which a relay opens them."""
    return [
        *((each, Purpose.PLAIN) for each in settings.insecure_listen),
        *((each, Purpose.TLS) for each in settings.tls_listen),
        *((each, Purpose.CHALLENGES) for each in settings.acme_listen),
    ]


def _listen_only(reactor: Any, address: str, factory: Factory) -> Any:
    """Open a listener, and accept nothing: the workers do."""
    factory.noisy = False
    port: Any = listen(reactor, address, factory)
    port.stopReading()
    return port


class SharedUnixPort(unix.Port):
    """A worker's listener on a UNIX socket that the parent has bound, and other workers share.

    Twisted's own class would change the permissions of the socket's file when it starts, and
    remove the file when it stops.
    """

    @classmethod
    def adopt(cls, reactor: Any, number: int, factory: IProtocolFactory) -> SharedUnixPort:
        """Listen on a descriptor."""
        port: SharedUnixPort = cls._fromListeningDescriptor(reactor, number, factory)  # type: ignore[no-untyped-call]
        port.backlog = LISTEN_BACKLOG
        port._bindPath = b"\0" + port._bindPath
        port._shouldShutdown = False
        port.startListening()  # type: ignore[no-untyped-call]
        return port


def adopt_listener(reactor: Any, number: int, factory: IProtocolFactory) -> IListeningPort:
    """Listen on a socket that is open already; its descriptor is closed here."""
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            family = sock.family
        if family == socket.AF_UNIX:
            port: IListeningPort = SharedUnixPort.adopt(reactor, number, factory)
        else:
            port = reactor.adoptStreamPort(number, family, factory)
        return port
    finally:
        os.close(number)


# Links


class LinkSockets:
    """The sockets on which ``count`` workers reach each other, in a folder for this relay only.

    Raises `StartupError` if they cannot be made.
    """

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket] = []
        self._folder: Path | None = None
        parent = os.environ.get("RUNTIME_DIRECTORY") or tempfile.gettempdir()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="pyrycode-relay-", dir=parent))
            if len(str(self._folder)) > _LONGEST_PATH:
                raise OSError(None, "its path is too long for the name of a socket")
            self.paths = [f"{self._folder}/{index}.sock" for index in range(count)]
            """The path of each worker's socket, by index."""
            for path in self.paths:
                self._bind(path)
        except OSError as error:
            self.remove()
            raise StartupError(
                f"The workers' sockets cannot be made in {parent}: {error.strerror}; set TMPDIR, "
                "or RuntimeDirectory= in a systemd unit, to a short path that the relay may write."
            ) from error

    def _bind(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.bind(path)
        Path(path).chmod(0o600)
        sock.listen(LISTEN_BACKLOG)

    def fileno(self, index: int) -> int:
        """Return the descriptor of a worker's socket."""
        return self._sockets[index].fileno()

    def remove(self) -> None:
        """Close the sockets, and remove them with their folder."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def remove_link(path: str) -> None:
    """Remove a worker's socket, and the folder if it is empty: the parent is gone.

    Each worker does so, and the last one removes the folder.
    """
    with contextlib.suppress(OSError):
        Path(path).unlink()
    with contextlib.suppress(OSError):
        Path(path).parent.rmdir()
