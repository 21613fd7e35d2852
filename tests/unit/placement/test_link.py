"""Links between workers: messages and sockets over real UNIX sockets, one step at a time."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure

from pyrycode_relay.placement.link import MAX_QUEUED, Link, LinkListener, Links
from pyrycode_relay.placement.messages import CloseCarried, Message
from tests.unit.bench import Cases
from tests.unit.placement.test_messages import ARRIVAL


class Turns:
    """A reactor that reads and writes only in `turn`."""

    def __init__(self) -> None:
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}

    def addReader(self, reader: Any) -> None:
        self.readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        self.writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        self.readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self.writers.pop(writer, None)

    def turn(self) -> None:
        """Let everything read and write until nothing changes."""
        for _ in range(20):
            for each in [*self.readers]:
                if each in self.readers and each.doRead() is CONNECTION_DONE:
                    each.connectionLost(Failure(CONNECTION_DONE))
            for each in [*self.writers]:
                if each in self.writers:
                    each.doWrite()


class LinkCase(Cases):
    """A worker that listens, and one that sends to it."""

    def setUp(self) -> None:
        self.reactor = Turns()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "0.sock")
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(self.listening.close)
        self.listening.bind(self.path)
        self.listening.listen(8)
        self.listening.setblocking(False)
        self.received: list[tuple[Message, list[socket.socket]]] = []
        self.listener = self.listen()
        self.links = Links(self.reactor, self.path)
        self.addCleanup(self.links.close)

    def listen(self) -> LinkListener:
        """Return a listener on the parent's socket."""
        listener = LinkListener(self.reactor, self.listening.dup(), self.receive)
        self.addCleanup(listener.close)
        return listener

    def receive(self, _link: Link, message: Message, sockets: list[socket.socket]) -> None:
        """Keep what arrives."""
        self.received.append((message, sockets))
        for each in sockets:
            self.addCleanup(each.close)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the messages that have arrived."""
        return [each.carried for each, _ in self.received if isinstance(each, CloseCarried)]


class LinkTests(LinkCase):
    """Messages and sockets."""

    def test_socket(self) -> None:
        """A socket arrives with its message, open; the sender's own is closed."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.listener.start()
        self.links.send(ARRIVAL, [theirs])
        self.reactor.turn()
        message, [found] = self.received[0]
        self.assertEqual(ARRIVAL, message)
        self.assertEqual(-1, theirs.fileno())
        ours.sendall(b"hello")
        self.assertEqual(b"hello", found.recv(16))
        self.assertFalse(found.get_inheritable())

    def test_before_the_listener(self) -> None:
        """What is sent to a worker that is not there yet waits for it."""
        self.links.send(CloseCarried(1))
        self.reactor.turn()
        self.assertEqual([], self.numbers)
        self.listener.start()
        self.reactor.turn()
        self.assertEqual([1], self.numbers)

    def test_order_and_bound(self) -> None:
        """A worker that does not read gets all in order later; the sender says when it is full."""
        sent = 0
        while self.links.has_room():
            sent += 1
            self.links.send(CloseCarried(sent))
        self.assertGreater(sent, MAX_QUEUED)
        self.listener.start()
        self.reactor.turn()
        self.assertEqual([*range(1, sent + 1)], self.numbers)
        self.assertTrue(self.links.has_room())

    def test_worker_dies(self) -> None:
        """What a dead worker did not get goes to its successor; what it got is lost."""
        self.listener.start()
        self.links.send(CloseCarried(1))
        self.reactor.turn()
        self.listener.close()
        self.reactor.turn()
        self.links.send(CloseCarried(2))
        self.listen().start()
        self.reactor.turn()
        self.assertEqual([1, 2], self.numbers)

    def test_moving(self) -> None:
        """A worker that moves gets nothing more, and loses nothing that was sent before."""
        self.listener.start()
        self.links.send(CloseCarried(1))
        self.reactor.turn()
        self.links.send(CloseCarried(2))
        self.listener.move()
        self.reactor.turn()
        self.assertTrue(self.listener.idle)
        self.links.send(CloseCarried(3))
        self.assertEqual([1, 2], self.numbers)
        self.listen().start()
        self.reactor.turn()
        self.assertEqual([1, 2, 3], self.numbers)

    def test_no_worker(self) -> None:
        """Without the parent's socket nothing can be sent, and the socket is closed."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        links = Links(self.reactor, self.path + "x")
        self.assertFalse(links.has_room())
        self.assertRaises(OSError, links.send, ARRIVAL, [theirs])
        self.assertEqual(-1, theirs.fileno())

    def test_nonsense(self) -> None:
        """A message that cannot be read costs its sockets, and nothing else."""
        self.listener.start()
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(stranger.close)
        stranger.connect(self.path)
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        socket.send_fds(stranger, [b"nonsense"], [theirs.fileno()])
        theirs.close()
        stranger.send(b"\xc0")
        self.reactor.turn()
        self.assertEqual([], self.received)
        self.assertEqual(b"", ours.recv(1))
        self.assertEqual(2, len(self.flushLoggedErrors(ValueError)))
        self.links.send(CloseCarried(1))
        self.reactor.turn()
        self.assertEqual([1], self.numbers)

    def test_no_leak(self) -> None:
        """Links leave no descriptor open."""
        before = len(os.listdir("/proc/self/fd"))
        listener = LinkListener(self.reactor, self.listening.dup(), self.receive)
        listener.start()
        for _ in range(20):
            self.links.send(CloseCarried(1))
            self.reactor.turn()
            self.links.close()
            self.reactor.turn()
        listener.close()
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
