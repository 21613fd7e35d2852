"""What a peer's kernel acknowledges, over a real socket pair with small buffers."""

from __future__ import annotations

import socket

from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock

from pyrycode_relay.websocket.acknowledgements import Acknowledgements, AwaitedPing
from tests.peers.waiting import eventually
from tests.unit.bench import Cases

LARGE = 2**20
"""More bytes than both kernels take."""


class AcknowledgementTests(Cases):
    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = socket.socket()
            self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            self.far.connect(listener.getsockname())
            near, address = listener.accept()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        for each in (self.far, near):
            self.addCleanup(each.close)
        protocol = Protocol()
        self.transport = Server(near, protocol, address, None, 1, MemoryReactorClock())  # type: ignore[arg-type]
        protocol.makeConnection(self.transport)
        self.counted = Acknowledgements(self.transport)

    def write(self, size: int) -> None:
        """Write to the transport, which writes what the kernel takes."""
        self.counted.written += size
        self.transport.write(bytes(size))
        self.transport.doWrite()

    def read(self, size: int) -> None:
        """Have the peer read, and the transport write on."""
        left = size
        while left:
            left -= len(self.far.recv(left))
            self.transport.doWrite()

    def ping(self, now: float = 0.0) -> AwaitedPing:
        """Write a ping."""
        self.write(10)
        self.counted.sample()
        return AwaitedPing(self.counted, now)

    def test_what_the_kernel_takes(self) -> None:
        """Whatever is acknowledged counts once, whether the peer's process reads or not."""
        for number in range(1, 5):
            self.write(1_000)
            eventually("it is acknowledged", lambda: self.counted.sample() == 1_000 * number)  # noqa: B023
        self.assertEqual(self.counted.end(), 4_000)

    def test_what_the_peer_reads(self) -> None:
        """With a full window, what the peer reads is what it acknowledges, in the end all."""
        self.write(LARGE)
        before = self.counted.sample()
        self.assertLess(before, LARGE // 2)
        self.assertEqual(self.counted.end(), LARGE)
        self.read(LARGE // 2)
        eventually("it is acknowledged", lambda: self.counted.sample() > before)
        self.read(LARGE // 2)
        eventually("all is acknowledged", lambda: self.counted.sample() == LARGE)

    def test_ping_that_is_acknowledged(self) -> None:
        """Once the ping is acknowledged, nothing that is acknowledged later matters."""
        ping = self.ping()
        eventually("it is acknowledged", lambda: self.counted.sample() == 10)
        self.assertFalse(ping.is_waited_for(self.counted.total, 1.0, backlog=False))
        since = ping.since
        for now in (2.0, 3.0):
            total = self.counted.total
            self.write(1_000)
            eventually("it is acknowledged", lambda: self.counted.sample() > total)  # noqa: B023
            self.assertFalse(ping.is_waited_for(self.counted.total, now, backlog=False))
        self.assertEqual(ping.since, since)

    def test_ping_behind_a_backlog(self) -> None:
        """As long as the peer reads up to the ping, its time begins anew."""
        self.write(LARGE)
        before = self.counted.sample()
        ping = self.ping()
        self.assertFalse(ping.is_waited_for(self.counted.total, 1.0, backlog=False))
        self.read(LARGE // 2)
        self.write(LARGE)
        eventually("some is acknowledged", lambda: self.counted.sample() > before)
        self.assertTrue(ping.is_waited_for(self.counted.total, 2.0, backlog=False))
        self.assertFalse(ping.is_waited_for(self.counted.total, 3.0, backlog=False))
        self.assertEqual(ping.since, 2.0)
        self.read(LARGE // 2 + 10)
        eventually("the ping, too", lambda: self.counted.sample() >= LARGE + 10)
        self.assertFalse(ping.is_waited_for(self.counted.total, 4.0, backlog=False))
        self.assertEqual(ping.since, 4.0)

    def test_backlog_behind_a_ping(self) -> None:
        """While data waits in the relay, the peer is alive as long as it reads."""
        ping = self.ping()
        eventually("it is acknowledged", lambda: self.counted.sample() == 10)
        self.write(LARGE)
        self.read(LARGE // 2)
        eventually("some is acknowledged", lambda: self.counted.sample() > LARGE // 2)
        self.assertTrue(ping.is_waited_for(self.counted.total, 1.0, backlog=True))
        self.assertFalse(ping.is_waited_for(self.counted.total, 2.0, backlog=True))
        self.assertEqual(ping.since, 1.0)
