"""Twisted's transports below a connection: real TCP transports over real socket pairs."""

from __future__ import annotations

import os
import socket

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from pyrycode_relay.websocket import transports
from tests.unit.bench import Cases, cases

LARGE = 16 * 2**20
"""More bytes than the kernel takes."""


class TransportTests(Cases):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        listener = socket.create_server(("127.0.0.1", 0))
        self.far = socket.create_connection(listener.getsockname())
        near, address = listener.accept()
        self.near = near
        for each in (listener, self.far, near):
            self.addCleanup(each.close)
        self.protocol = Protocol()
        self.transport = Server(near, self.protocol, address, None, 1, self.reactor)  # type: ignore[arg-type]
        self.protocol.makeConnection(self.transport)

    def test_nothing_waits(self) -> None:
        """A new transport has nothing to write, so its socket can be written to."""
        self.assertEqual(transports.unsent_bytes(self.transport), 0)
        self.assertTrue(transports.can_write_past(self.transport))

    @cases(
        {
            "what_waits": ("write", (b"x",)),
            "a_close": ("loseConnection", ()),
            "the_end_of_its_own_direction": ("loseWriteConnection", ()),
        }
    )
    def test_nothing_is_written_past(self, method: str, arguments: tuple[bytes, ...]) -> None:
        """Nobody writes past a transport that has something to do when it next writes: bytes
        would come before earlier ones, or after the end of the stream."""
        getattr(self.transport, method)(*arguments)
        self.assertFalse(transports.can_write_past(self.transport))

    def test_nothing_is_written_past_one_that_is_lost(self) -> None:
        """Nor past a transport whose connection is lost."""
        self.transport.connectionLost(Failure(CONNECTION_LOST))
        self.assertFalse(transports.can_write_past(self.transport))

    def test_many_pieces(self) -> None:
        """Small writes that wait become one piece now and again, and go out as they came."""
        written = [b"%03d" % number for number in range(1000)]
        for each in written:
            self.transport.write(each)
            transports.join_pieces(self.transport)
            self.assertLessEqual(len(self.transport._tempDataBuffer), 256)
        self.assertEqual(transports.unsent_bytes(self.transport), 3000)
        self.transport.doWrite()
        self.assertEqual(self.far.recv(4096), b"".join(written))

    def test_after_a_write(self) -> None:
        """When everything has gone out, the socket can be written to again."""
        self.transport.write(b"x")
        self.assertEqual(transports.unsent_bytes(self.transport), 1)
        self.transport.doWrite()
        self.assertTrue(transports.can_write_past(self.transport))
        self.assertEqual(self.far.recv(10), b"x")

    def test_unacknowledged(self) -> None:
        """Unacknowledged bytes are those that wait here and those in the kernel."""
        self.transport.write(bytes(LARGE))
        self.transport.doWrite()
        unsent = transports.unsent_bytes(self.transport)
        self.assertGreater(unsent, 0)
        self.assertLess(unsent, LARGE)
        self.assertGreater(transports.unacked_bytes(self.transport), unsent)

    def test_no_count(self) -> None:
        """A socket of which the kernel has no count counts for nothing."""
        self.transport.write(b"12")
        self.transport.socket = self.enterContext(open(os.devnull, "wb"))  # type: ignore[assignment]
        self.assertEqual(transports.unacked_bytes(self.transport), 2)

    def test_half_close(self) -> None:
        """The peer reads the end of the stream behind the last byte, and can still send."""
        self.transport.write(b"last")
        transports.half_close(self.transport)
        self.transport.doWrite()
        self.assertEqual((self.far.recv(10), self.far.recv(10)), (b"last", b""))
        self.far.send(b"x")
        self.assertEqual(self.near.recv(10), b"x")

    def test_prepare_socket(self) -> None:
        """The kernel's buffer is bounded, and nothing waits for a larger segment."""
        before = self.near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        transports.prepare_socket(self.transport, 0)
        self.assertEqual(self.near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), before)
        transports.prepare_socket(self.transport, 20_000)
        # Linux doubles the number, for its own books.
        self.assertEqual(self.near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 40_000)
        self.assertEqual(self.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)

    def test_a_unix_socket(self) -> None:
        """A socket without Nagle's algorithm is prepared as far as it can be."""
        pair = socket.socketpair()
        for each in pair:
            self.addCleanup(each.close)
        self.transport.socket = pair[0]
        transports.prepare_socket(self.transport, 20_000)
        self.assertEqual(pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 40_000)

    def test_below_a_wrapper(self) -> None:
        """The descriptor below wrappers is found; one with a wrapper above is not written past."""
        self.assertIs(transports.plain_descriptor(self.transport), self.transport)
        wrapper = ProtocolWrapper(WrappingFactory(None), Protocol())
        wrapper.transport = self.transport
        self.assertIs(transports.descriptor_of(wrapper), self.transport)
        self.assertIsNone(transports.plain_descriptor(wrapper))
        self.assertIsNone(transports.descriptor_of(object()))

    def test_move(self) -> None:
        """A transport that is moved is polled elsewhere; what it has to write is written there."""
        self.transport.startReading()
        self.transport.write(b"x")
        other = MemoryReactorClock()
        transports.move(self.transport, other)
        self.assertEqual((self.reactor.getReaders(), self.reactor.getWriters()), ([], []))
        self.assertEqual((other.getReaders(), other.getWriters()), ([], [self.transport]))
