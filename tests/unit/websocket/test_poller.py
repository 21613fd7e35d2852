"""The poller: real epoll, real socket pairs, and a reactor that does only what it is told."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from pyrycode_relay.websocket.poller import BATCH, Poller, SocketReader


class Counting:
    """`select.epoll`, with a count of the calls that are system calls."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.changes = 0
        self.fileno = self._epoll.fileno
        self.poll = self._epoll.poll
        self.close = self._epoll.close

    def register(self, fd: int, eventmask: int) -> None:
        self.changes += 1
        self._epoll.register(fd, eventmask)

    def modify(self, fd: int, eventmask: int) -> None:
        self.changes += 1
        self._epoll.modify(fd, eventmask)

    def unregister(self, fd: int) -> None:
        self.changes += 1
        self._epoll.unregister(fd)


@implementer(IReadDescriptor, IWriteDescriptor)
class End:
    """A transport as the poller sees one: the near end of a socket pair."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.sock, self.far = socket.socketpair()
        for each in (self.sock, self.far):
            each.setblocking(False)
        self.fileno = self.sock.fileno
        self.read: list[bytes] = []
        self.unwritten = b""
        self.lost: list[type[BaseException] | None] = []
        self.on_read: Callable[[], object] = lambda: None
        self.protocol: object = None
        poller.addReader(self)

    def logPrefix(self) -> str:
        return "end"

    def doRead(self) -> Any:
        data = self.sock.recv(65536)
        if not data:
            return CONNECTION_DONE
        self.read.append(data)
        return self.on_read()

    def write(self, data: bytes) -> None:
        self.unwritten += data
        self.poller.addWriter(self)

    def doWrite(self) -> Any:
        try:
            taken = self.sock.send(self.unwritten)
        except BlockingIOError:
            taken = 0
        except OSError:
            return CONNECTION_LOST
        self.unwritten = self.unwritten[taken:]
        if not self.unwritten:
            self.poller.removeWriter(self)
        return None

    def close(self) -> None:
        """Do what a transport does that is lost."""
        self.poller.removeReader(self)
        self.poller.removeWriter(self)
        self.sock.close()

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason.type)
        self.close()


class Reader(SocketReader):
    """A protocol that reads its transport's socket itself."""

    def __init__(self, end: End) -> None:
        self.transport = end
        self.read: list[bytes] = []

    def doRead(self) -> Exception | None:
        data: bytes = self.transport.sock.recv(65536)
        if not data:
            return CONNECTION_DONE
        self.read.append(data)
        return None


class PollerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poller = Poller(self.reactor, Counting)
        self.poller.start()
        self.ends: list[End] = []
        self.addCleanup(self.leave)

    def leave(self) -> None:
        self.poller.stop()
        for each in self.ends:
            each.sock.close()
            each.far.close()

    def end(self) -> End:
        """Make a connection."""
        self.ends.append(End(self.poller))
        return self.ends[-1]

    @property
    def changes(self) -> int:
        """How often the epoll set was changed."""
        epoll = self.poller._epoll
        assert isinstance(epoll, Counting)
        return epoll.changes

    def test_one_reader(self) -> None:
        """To the reactor it is one reader, until it stops; its descriptor is the set's."""
        self.assertEqual(self.reactor.getReaders(), [self.poller])
        self.assertGreaterEqual(self.poller.fileno(), 0)
        self.assertEqual(self.poller.logPrefix(), "connections")
        self.poller.stop()
        self.poller.stop()
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.poller.fileno(), -1)

    def test_readable_in_an_outer_set(self) -> None:
        """Its descriptor is ready when one of its connections is: an epoll set in an epoll set."""
        end = self.end()
        with select.epoll() as outer:
            outer.register(self.poller.fileno(), select.EPOLLIN)
            self.assertEqual(outer.poll(0), [])
            end.far.send(b"x")
            self.assertEqual(outer.poll(1), [(self.poller.fileno(), select.EPOLLIN)])
            self.poller.doRead()
            self.assertEqual((end.read, outer.poll(0)), ([b"x"], []))

    def test_writes_leave_at_the_end_of_the_batch(self) -> None:
        """Writes of several connections to one go out at once, without asking epoll first."""
        one, other, target = self.end(), self.end(), self.end()
        one.on_read = lambda: target.write(b"1")
        other.on_read = lambda: target.write(b"2")
        for each in (one, other):
            each.far.send(b"x")
        before = self.changes
        self.poller.doRead()
        self.assertEqual(target.far.recv(10), b"12")
        self.assertEqual(self.changes, before)
        self.assertFalse(self.poller.busy)

    def test_what_the_socket_does_not_take(self) -> None:
        """The rest of a write waits for the socket, and asks for it no longer than needed."""
        end = self.end()
        size = 4 * 2**20
        self.poller.run(end.write, bytes(size))
        self.poller.doRead()
        self.assertTrue(end.unwritten)
        self.assertEqual(self.poller.getWriters(), [end])
        came = 0
        while end.unwritten:
            came += len(end.far.recv(2**20))
            self.poller.doRead()
        self.assertEqual(self.poller.getWriters(), [])
        self.assertEqual(self.poller.getReaders(), [end])
        while came < size:
            came += len(end.far.recv(2**20))
        self.poller.doRead()
        self.assertEqual(came, size)

    def test_outside_a_batch(self) -> None:
        """A write at another time waits until epoll says that it can be."""
        end = self.end()
        end.write(b"later")
        with self.assertRaises(BlockingIOError):
            end.far.recv(10)
        self.assertEqual(self.poller.getWriters(), [end])
        self.poller.doRead()
        self.assertEqual(end.far.recv(10), b"later")

    def test_nobody_is_lost_under_a_call(self) -> None:
        """A transport that writes, and finds its peer gone, is lost when the caller has returned.

        The caller may be the transport's protocol, which takes input.
        """
        end = self.end()
        end.far.close()
        self.poller.run(end.write, b"x")
        self.assertEqual(end.lost, [])
        self.poller.removeReader(end)
        self.poller.doRead()
        self.assertEqual(end.lost, [ConnectionLost])

    def test_what_cannot_be_polled(self) -> None:
        """A descriptor that epoll refuses leaves no trace."""
        end = self.end()
        end.close()
        self.assertRaises(ValueError, self.poller.addReader, end)
        self.assertEqual((self.poller.getReaders(), self.poller.removeAll()), ([], []))

    def test_gatherers(self) -> None:
        """Gatherers are flushed at the end of the outermost batch; a bug costs its own."""
        order: list[str] = []

        class Flushed:
            def __init__(self, name: str, fails: bool = False) -> None:
                self.name, self.fails = name, fails

            def flush(self) -> None:
                order.append(self.name)
                if self.fails:
                    raise RuntimeError("a bug")

            def abort(self) -> None:
                order.append(f"{self.name} aborted")

        def inner() -> None:
            self.poller.gather(Flushed("inner"))
            order.append("inner over")

        def outer() -> None:
            self.poller.gather(Flushed("bad", fails=True))
            self.poller.run(inner)
            order.append("outer over")

        self.poller.run(outer)
        self.assertEqual(order[:2], ["inner over", "outer over"])
        self.assertEqual(sorted(order[2:]), ["bad", "bad aborted", "inner"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_an_error_in_a_batch(self) -> None:
        """An error goes to the caller; earlier writes go out, and the poller goes on."""
        end = self.end()

        def fail() -> None:
            end.write(b"x")
            raise RuntimeError("a bug")

        self.assertRaises(RuntimeError, self.poller.run, fail)
        self.poller.doRead()
        self.assertEqual(end.far.recv(10), b"x")
        self.assertFalse(self.poller.busy)

    def test_closed_by_another(self) -> None:
        """One that is ready and closed by another's message meanwhile is not served."""
        one, other = self.end(), self.end()
        one.on_read, other.on_read = other.close, one.close
        for each in (one, other):
            each.far.send(b"x")
        self.poller.doRead()
        self.assertEqual(len(one.read) + len(other.read), 1)

    def test_more_than_a_batch(self) -> None:
        """No more are served at a time than a batch has; the others are next."""
        ends = [self.end() for _ in range(BATCH + 5)]
        for each in ends:
            each.far.send(b"x")
        self.poller.doRead()
        self.assertEqual(sum(len(each.read) for each in ends), BATCH)
        self.poller.doRead()
        self.assertEqual([len(each.read) for each in ends], [1] * len(ends))

    def test_kernel_without_memory(self) -> None:
        """A transport that epoll has no room for at the end of a batch is lost, and no other."""
        end, other = self.end(), self.end()
        epoll = self.poller._epoll
        assert isinstance(epoll, Counting)

        def full(fd: int, eventmask: int) -> None:
            raise OSError(errno.ENOMEM, "no memory")

        epoll.modify = full  # type: ignore[method-assign]
        end.on_read = lambda: end.write(bytes(4 * 2**20))
        for each in (end, other):
            each.far.send(b"x")
        self.poller.doRead()
        self.assertFalse(self.poller.busy)
        self.reactor.advance(0)
        self.assertEqual((end.lost, other.lost, other.read), ([ConnectionLost], [], [b"x"]))

    def test_the_peer_closes(self) -> None:
        """The end of input, a reset and a hang-up are told as the reactor would tell them."""
        done, paused = self.end(), self.end()
        done.far.close()
        self.poller.doRead()
        self.assertEqual(done.lost, [ConnectionDone])
        self.poller.removeReader(paused)
        paused.write(b"x")
        paused.far.close()
        self.poller.doRead()
        self.assertEqual(paused.lost, [ConnectionLost])
        self.assertEqual(self.poller.removeAll(), [])

    def test_nothing_but_a_hang_up(self) -> None:
        """A hang-up of one that is polled for nothing readable is the end, not a busy loop."""
        reading, writing = os.pipe()
        end = self.end()
        self.poller.removeReader(end)
        end.fileno = lambda: writing
        self.poller.addReader(end)
        os.close(reading)
        self.poller.doRead()
        self.assertEqual(end.lost, [ConnectionDone])
        os.close(writing)

    def test_bugs(self) -> None:
        """An error in reading costs that connection, one in its end costs nothing more."""
        bad, good = self.end(), self.end()

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        bad.on_read = fail
        for each in (bad, good):
            each.far.send(b"x")
        self.poller.doRead()
        self.assertEqual((bad.lost, good.read, good.lost), ([ConnectionLost], [b"x"], []))
        worse = self.end()
        worse.on_read = fail
        self.patch(worse, "connectionLost", fail)
        for each in (worse, good):
            each.far.send(b"y")
        self.poller.doRead()
        self.assertEqual(good.read, [b"x", b"y"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def reader(self) -> tuple[End, Reader]:
        """Make a connection whose protocol reads for it."""
        end = self.end()
        self.poller.removeReader(end)
        reader = Reader(end)
        end.protocol = reader
        self.poller.addReader(end)
        return end, reader

    def test_a_protocol_that_reads(self) -> None:
        """A protocol that reads its socket itself is asked to, not its transport; the transport
        is what is polled, what writes, and what is told of the end."""
        end, reader = self.reader()
        end.far.send(b"x")
        self.poller.doRead()
        self.assertEqual((reader.read, end.read), ([b"x"], []))
        self.assertEqual(self.poller.getReaders(), [end])
        self.poller.run(end.write, bytes(4 * 2**20))
        self.assertEqual(self.poller.getWriters(), [end])
        self.poller.doRead()
        self.assertLess(len(end.unwritten), 4 * 2**20)
        end.far.shutdown(socket.SHUT_WR)
        self.poller.doRead()
        self.assertEqual(end.lost, [ConnectionDone])
        self.assertEqual(self.poller.removeAll(), [])

    def test_read_now(self) -> None:
        """A connection can be read out of turn, if it is polled for input, as a batch."""
        end, reader = self.reader()
        other = self.end()
        for each in (end, other):
            each.far.send(b"x")
        self.poller.read(end)
        self.assertEqual((reader.read, other.read), ([b"x"], []))
        self.assertFalse(self.poller.busy)
        self.poller.removeReader(other)
        self.poller.read(other)
        self.assertEqual(other.read, [])
        end.far.shutdown(socket.SHUT_WR)
        self.poller.read(end)
        self.assertEqual(end.lost, [ConnectionDone])

    def test_a_bug_in_a_protocol_that_reads(self) -> None:
        """An error in such a protocol's reading costs its connection, and no other."""
        (bad, reader), good = self.reader(), self.end()

        def fail() -> None:
            raise RuntimeError("a bug")

        reader.doRead = fail  # type: ignore[method-assign]
        for each in (bad, good):
            each.far.send(b"x")
        self.poller.doRead()
        self.assertEqual((bad.lost, good.read), ([ConnectionLost], [b"x"]))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_hang_up_of_a_protocol_that_reads(self) -> None:
        """A hang-up with nothing to read is the transport's end, who reads for it or not."""
        end, reader = self.reader()
        end.write(b"x")
        self.poller.removeReader(end)
        end.far.close()
        self.poller.doRead()
        self.assertEqual((end.lost, reader.read), ([ConnectionLost], []))

    def test_who_reads_next(self) -> None:
        """A connection that is no longer polled leaves no reader behind for the next one with its
        number. One that is polled again is read by the protocol that it has then."""
        end, reader = self.reader()
        self.poller.removeReader(end)
        self.assertFalse(any(self.poller._readers))
        end.far.send(b"x")
        self.poller.doRead()
        self.assertEqual(reader.read, [])
        end.protocol = None
        self.poller.addReader(end)
        self.poller.doRead()
        self.assertEqual((reader.read, end.read), ([], [b"x"]))
        end.close()
        self.assertFalse(any(self.poller._readers) or self.poller.getReaders())

    def test_twice_is_once(self) -> None:
        """Asking twice to be polled, or twice not to be, changes nothing."""
        end = self.end()
        before = self.changes
        self.poller.addReader(end)
        self.poller.removeWriter(end)
        self.assertEqual(self.changes, before)
        self.poller.removeReader(end)
        self.poller.removeReader(end)
        self.assertEqual(self.changes, before + 1)
        self.assertEqual((self.poller.getReaders(), self.poller.removeAll()), ([], []))

    def test_the_reactor_ends(self) -> None:
        """All connections hear that the reactor ends, whatever one of them does about it."""
        one, other = self.end(), self.end()

        def fail(_: Failure) -> None:
            raise RuntimeError("a bug")

        self.patch(one, "connectionLost", fail)
        self.poller.connectionLost(Failure(CONNECTION_LOST))
        self.assertEqual(other.lost, [ConnectionLost])
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
