"""Links between workers: messages with descriptors, over UNIX sockets that keep their boundaries.

Each worker listens on a socket that its parent has bound, so a link can be made even while a
worker restarts: what is sent meanwhile waits in the kernel. Source: ``unix(7)``,
``SOCK_SEQPACKET`` and ``SCM_RIGHTS``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay.placement.messages import Message, Moving, decode, encode

_bugs = Logger()

_MAX_MESSAGE: Final = 2**18
"""Largest message in bytes. A peer sends at most 80 KiB behind its request."""
_MAX_FILES: Final = 2
_READS: Final = 64
"""Messages that are read at once."""
MAX_QUEUED: Final = 256
"""Messages that wait for a worker that does not read, in addition to those in the kernel."""
_CREDENTIALS: Final = struct.Struct("3i")

Files = Sequence[socket.socket]
Receive = Callable[["Link", Message, list[socket.socket]], None]
"""Takes a message that a link has received, and owns the sockets that came with it."""


@implementer(IReadWriteDescriptor)
class Link:
    """One end of a link. Messages arrive in order, each with its sockets.

    Args:
        reactor: Watches the socket.
        sock: A connected, non-blocking socket of type ``SOCK_SEQPACKET``.
        receive: Takes each message.
        lost: Called once, when the link is gone.

    """

    def __init__(
        self, reactor: Any, sock: socket.socket, receive: Receive, lost: Callable[[Link], None]
    ) -> None:
        self.moving = False
        """Whether the other end has asked to send nothing more."""
        self._reactor = reactor
        self._socket = sock
        self._receive = receive
        self._lost = lost
        self._queue: deque[tuple[bytes, Files]] = deque()
        self._open = True
        reactor.addReader(self)

    @property
    def queued(self) -> int:
        """How many messages wait to be sent."""
        return len(self._queue)

    def send(self, message: Message, files: Files = ()) -> None:
        """Send a message and close ``files``, now or once the other end reads."""
        self._queue.append((encode(message), files))
        if len(self._queue) == 1:
            self._write_all()

    def take_queue(self) -> list[tuple[Message, Files]]:
        """Return the messages that were not sent, and forget them."""
        queue = [(decode(data), files) for data, files in self._queue]
        self._queue.clear()
        return queue

    def finish(self) -> None:
        """Close the link once everything is sent."""
        self.moving = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        """Close the link, and the sockets that were not sent."""
        if not self._open:
            return
        self._open = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._socket.close()
        self._lost(self)
        for _, files in self._queue:
            _close_all(files)
        self._queue.clear()

    def _write_all(self) -> None:
        while self._queue:
            data, files = self._queue[0]
            try:
                socket.send_fds(self._socket, [data], [each.fileno() for each in files])
            except BlockingIOError:
                self._reactor.addWriter(self)
                return
            except ConnectionError:
                self._reactor.removeWriter(self)
                return  # The other end is gone. Reading finds that too, and sends all again.
            except OSError:
                _bugs.failure("a connection cannot be passed to another worker, and is closed")
            self._queue.popleft()
            _close_all(files)
        self._reactor.removeWriter(self)
        if self.moving:
            self.close()

    # For the reactor

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the link's name in the reactor's log."""
        return "link"

    def doWrite(self) -> None:
        """Send what is queued."""
        self._write_all()

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """Receive messages; return why the link is lost, None if it is not."""
        for _ in range(_READS):
            try:
                data, numbers, _, _ = socket.recv_fds(self._socket, _MAX_MESSAGE, _MAX_FILES)
            except BlockingIOError:
                return None
            except OSError:
                return CONNECTION_LOST
            files = [socket.socket(fileno=number) for number in numbers]
            for each in files:
                # Python's recv_fds ignores its flags, and with them MSG_CMSG_CLOEXEC.
                each.set_inheritable(False)
            if not data:
                _close_all(files)
                return CONNECTION_DONE
            self._take(data, files)
            if not self._open:
                return None
        return None

    def _take(self, data: bytes, files: list[socket.socket]) -> None:
        try:
            message = decode(data)
            if isinstance(message, Moving):
                self.finish()
            else:
                self._receive(self, message, files)
        except Exception:
            _bugs.failure("a bug costs this connection")
            _close_all(files)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002
        """Close the link; called by the reactor."""
        self.close()


class Links:
    """The links to one worker, made when they are needed.

    Args:
        reactor: Watches the sockets.
        path: The path of the worker's socket.

    """

    def __init__(self, reactor: Any, path: str) -> None:
        self._reactor = reactor
        self._path = path
        self._link: Link | None = None

    def has_room(self) -> bool:
        """Whether a message can be sent now; the worker may be too busy, or gone for good."""
        try:
            return self._connected().queued < MAX_QUEUED
        except OSError:
            return False

    def send(self, message: Message, files: Files = ()) -> None:
        """Send a message and close ``files``, now or later.

        Raises `OSError` if the worker's socket cannot be reached; ``files`` are closed then, too.
        """
        try:
            link = self._connected()
        except OSError:
            _close_all(files)
            raise
        link.send(message, files)

    def close(self) -> None:
        """Close the link."""
        if self._link is not None:
            self._link.close()

    def _connected(self) -> Link:
        link = self._link
        if link is None or link.moving:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.setblocking(False)
                sock.connect(self._path)
            except OSError:
                sock.close()
                raise
            link = self._link = Link(self._reactor, sock, _refuse, self._forget)
        return link

    def _forget(self, link: Link) -> None:
        """Send again, on a new link, what the worker that is gone did not take."""
        queue = link.take_queue()
        if self._link is link:
            self._link = None
        for message, files in queue:
            with contextlib.suppress(OSError):
                self.send(message, files)


def _refuse(_link: Link, message: Message, files: list[socket.socket]) -> None:
    """Refuse a message from a worker that was only ever sent to."""
    _close_all(files)
    raise ValueError(f"an unexpected message: {type(message).__name__}")


@implementer(IReadWriteDescriptor)
class LinkListener:
    """Accepts links from the other workers.

    Args:
        reactor: Watches the sockets.
        sock: A listening, non-blocking socket of type ``SOCK_SEQPACKET``.
        receive: Takes each message.

    """

    def __init__(self, reactor: Any, sock: socket.socket, receive: Receive) -> None:
        self._reactor = reactor
        self._socket = sock
        self._receive = receive
        self._links: set[Link] = set()
        self._listening = False

    def start(self) -> None:
        """Accept links."""
        self._listening = True
        self._reactor.addReader(self)

    @property
    def idle(self) -> bool:
        """Whether no link is left."""
        return not self._links

    def move(self) -> None:
        """Stop accepting links, and ask the senders to connect to this worker's successor."""
        self._stop_listening()
        for link in self._links:
            link.send(Moving())

    def close(self) -> None:
        """Close everything."""
        self._stop_listening()
        for link in [*self._links]:
            link.close()

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._reactor.removeReader(self)
            self._socket.close()

    def doRead(self) -> None:
        """Accept the links that wait."""
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            sock.setblocking(False)
            if _user_of(sock) != os.geteuid():
                sock.close()
                continue
            self._links.add(Link(self._reactor, sock, self._receive, self._links.discard))

    def doWrite(self) -> None:
        """Do nothing: a listener is never written to."""

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the listener's name in the reactor's log."""
        return "links"

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002
        """Close everything; called by the reactor."""
        self.close()


def _user_of(sock: socket.socket) -> int:
    """Return the user of the process at a socket's other end."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1])


def _close_all(files: Files) -> None:
    for each in files:
        each.close()
