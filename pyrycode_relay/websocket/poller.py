"""The upgraded connections, polled together one level below the reactor.

The reactor sees all of them as one reader: an epoll set is itself a descriptor that can be polled.
This has two advantages. The reactor's work for each event (a logging context, a dispatch) is done
once for many events. And a batch of input has an end: everything written to a peer in the batch,
by however many others, leaves in one system call there.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IReactorFDSet,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_bugs = Logger()

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT

_READ_SIZE: Final = 65_536
"""Bytes that are read at once: as many as Twisted's transports read."""

BATCH: Final = 128
"""Connections served in one batch. A larger batch gathers more for each peer. But the frames of the
first connection wait until the last one is read, and so do the reactor's timers: for 1 to 2 ms at
this size."""


class Gatherer(Protocol):
    """Something that gathers what it writes until the end of the batch."""

    def flush(self) -> None:
        """Write what was gathered."""

    def abort(self) -> None:
        """Drop the connection at once."""


class SocketReader:
    """A protocol that reads the socket of its transport itself.

    That takes fewer steps for every read, and touches fewer objects, which are out of the cache
    if there are thousands of connections. A subclass sets ``_socket`` when it is connected.
    """

    __slots__ = ("_socket",)

    transport: Any
    _socket: socket.socket | None

    def dataReceived(self, data: bytes) -> None:
        """Handle the bytes that were read."""
        raise NotImplementedError

    def doRead(self) -> Exception | None:
        """Read once, as a transport would; return why the connection is lost, None if not."""
        try:
            data = self._socket.recv(_READ_SIZE)  # type: ignore[union-attr]
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.dataReceived(data)
        return None


class Epoll(Protocol):
    """What the poller needs of `select.epoll`."""

    def fileno(self) -> int:
        """Return the descriptor of the set itself."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Poll ``fd`` from now on."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Poll ``fd`` for other events."""

    def unregister(self, fd: int, /) -> None:
        """Stop polling ``fd``."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Return what is ready, as (fd, events)."""

    def close(self) -> None:
        """Close the set."""


def _transport(reader: Any) -> Any:
    return reader.transport if isinstance(reader, SocketReader) else reader


@implementer(IReactorFDSet, IReadDescriptor)
class Poller:
    """A reader for the reactor, and a reactor for the transports that are moved to it.

    To move a transport, set its ``reactor`` while it neither reads nor writes. If a transport asks
    to write during a batch, it writes at the end of the batch, without a system call to ask first.
    It is polled for writing only if its socket does not take everything.
    """

    def __init__(self, reactor: Any, epoll: Callable[[], Epoll] = select.epoll) -> None:
        self.callLater = reactor.callLater
        self.busy = False
        """Whether a batch is under way."""
        self.now = 0.0
        """When the batch began. All connections note this one float: a float for each would be one
        cache miss more per connection."""
        self._seconds = reactor.seconds
        self._reactor = reactor
        self._new_epoll = epoll
        self._epoll: Epoll | None = None
        # Indexed by descriptor: the kernel gives out the lowest free number.
        self._readers: list[Any] = []
        """The reader of each descriptor: its transport, or the transport's protocol."""
        self._polled: dict[int, int] = {}
        self._writers: dict[IWriteDescriptor, None] = {}
        self._gatherers: list[Gatherer] = []

    # For the service

    def start(self) -> None:
        """Start polling."""
        self._epoll = self._new_epoll()
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Stop polling, and leave the transports as they are."""
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    # For the connections

    def run(self, call: Callable[..., None], *args: object) -> None:
        """Call ``call`` as a batch, or as part of the batch that is under way.

        If ``call`` is the whole batch, a transport that asks to write is polled, not written to at
        the end. A write may end its connection, and one of its methods may be the caller.
        """
        if self.busy:
            call(*args)
            return
        self.busy = True
        self.now = self._seconds()
        try:
            call(*args)
        finally:
            self._finish(self._wait_to_write)

    def read(self, descriptor: Any) -> None:
        """Read a transport's socket now, as a batch, if it is polled for input."""
        number = descriptor.fileno()
        if self._polled.get(number, 0) & _READ:
            self.run(self._serve, self._readers[number], _READ)

    def gather(self, gatherer: Gatherer) -> None:
        """Flush ``gatherer`` at the end of the batch that is under way."""
        self._gatherers.append(gatherer)

    # The batch

    def doRead(self) -> None:
        """Serve the connections that are ready."""
        assert self._epoll is not None  # noqa: S101 - it is polled, so it is there
        readers = self._readers
        self.busy = True
        self.now = self._seconds()
        try:
            for number, events in self._epoll.poll(0, BATCH):
                reader = readers[number]
                # Another connection's message may have closed this one since the poll.
                if reader is not None:
                    self._serve(reader, events)
        finally:
            self._finish(self._write)

    def _serve(self, reader: Any, events: int) -> None:
        why: Exception | None = None
        try:
            if events & _READ:
                why = reader.doRead()
            if not why and events & _WRITE:
                why = _transport(reader).doWrite()
            elif not events & (_READ | _WRITE):
                reading = self._polled.get(_transport(reader).fileno(), 0) & _READ
                why = CONNECTION_DONE if reading else CONNECTION_LOST
        except Exception:
            _bugs.failure("a bug costs this connection")
            why = CONNECTION_LOST
        if why:
            self._lose(_transport(reader), why, bool(events & _READ))

    def _lose(self, descriptor: Any, why: Exception, reading: bool) -> None:
        """Tell a transport ``why`` it is lost; one that has read the end may still write."""
        try:
            self.removeReader(descriptor)
            ended = reading and isinstance(why, ConnectionDone)
            if ended and IHalfCloseableDescriptor.providedBy(descriptor):
                descriptor.readConnectionLost(Failure(why))
            else:
                self.removeWriter(descriptor)
                descriptor.connectionLost(Failure(why))
        except Exception:
            _bugs.failure("a bug in taking note of a lost connection")

    def _finish(self, write: Callable[[IWriteDescriptor], None]) -> None:
        """Write what the batch has gathered, and end the batch."""
        try:
            while self._gatherers or self._writers:
                while self._gatherers:
                    self._flush(self._gatherers.pop())
                for writer in [*self._writers]:
                    write(writer)
        finally:
            self.busy = False

    def _flush(self, gatherer: Gatherer) -> None:
        try:
            gatherer.flush()
        except Exception:
            _bugs.failure("a bug costs this connection")
            gatherer.abort()

    def _write(self, writer: IWriteDescriptor) -> None:
        """Let a transport write, and poll it if something is left."""
        if writer not in self._writers:
            return
        self._serve(writer, _WRITE)
        if writer in self._writers:
            self._wait_to_write(writer)

    def _wait_to_write(self, writer: IWriteDescriptor) -> None:
        del self._writers[writer]
        try:
            self._poll_for(writer, self._polled.get(writer.fileno(), 0) | _WRITE)
        except OSError:  # the kernel has no memory for one more
            self.callLater(0, self._lose, writer, CONNECTION_LOST, False)

    # For the transports

    def addReader(self, reader: IReadDescriptor) -> None:
        """Poll for input."""
        self._poll_for(reader, self._polled.get(reader.fileno(), 0) | _READ)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        """Let ``writer`` write: at the end of a batch, or between batches once epoll says so."""
        polled = self._polled.get(writer.fileno(), 0)
        if polled & _WRITE:
            return
        if self.busy:
            self._writers[writer] = None
        else:
            self._poll_for(writer, polled | _WRITE)

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Stop polling for input."""
        self._poll_less(reader, _READ)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        """Stop letting ``writer`` write."""
        self._writers.pop(writer, None)
        self._poll_less(writer, _WRITE)

    def _poll_less(self, descriptor: Any, event: int) -> None:
        polled = self._polled.get(descriptor.fileno(), 0)
        if polled & event:
            self._poll_for(descriptor, polled & ~event)

    def _poll_for(self, descriptor: Any, events: int) -> None:
        number = descriptor.fileno()
        before = self._polled.get(number, 0)
        if events == before or self._epoll is None:
            return
        if not events:
            del self._polled[number]
            self._readers[number] = None
            self._epoll.unregister(number)
            return
        if before:
            self._epoll.modify(number, events)
        else:
            self._epoll.register(number, events)
            self._readers += [None] * (number + 1 - len(self._readers))
            protocol = getattr(descriptor, "protocol", None)
            self._readers[number] = protocol if isinstance(protocol, SocketReader) else descriptor
        self._polled[number] = events

    def removeAll(self) -> list[Any]:
        """Stop polling, and return the transports that were polled."""
        all_of_them = [_transport(self._readers[number]) for number in self._polled]
        for each in all_of_them:
            self._poll_for(each, 0)
        return all_of_them

    def getReaders(self) -> list[Any]:
        """Return the transports that are polled for input."""
        return self._polled_for(_READ)

    def getWriters(self) -> list[Any]:
        """Return the transports that want to write."""
        return [*self._polled_for(_WRITE), *self._writers]

    def _polled_for(self, event: int) -> list[Any]:
        polled: Iterable[tuple[int, int]] = self._polled.items()
        return [_transport(self._readers[number]) for number, events in polled if events & event]

    # For the reactor

    def fileno(self) -> int:
        """Return the number of the epoll set's own descriptor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the poller's name in the reactor's log."""
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """Report to all transports that the reactor has ended."""
        for each in self.removeAll():
            try:
                each.connectionLost(reason)
            except Exception:
                _bugs.failure("a bug in taking note of a lost connection")
        self.stop()
