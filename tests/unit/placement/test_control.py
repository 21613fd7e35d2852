"""The lines between a parent and its workers."""

from __future__ import annotations

import socket

from twisted.internet.testing import StringTransport

from pyrycode_relay.placement.control import (
    Lines,
    Order,
    Seat,
    order_line,
    read_seat,
    report_line,
    report_of,
)
from tests.unit.bench import Cases

SEAT = Seat(
    index=1,
    column=4,
    workers=3,
    options=["--workers=3"],
    listeners=[("127.0.0.1:0", 5)],
    link=6,
    limits=7,
    paths=["/tmp/0.sock", "/tmp/1.sock", "/tmp/2.sock"],
    files={"/etc/key.pem": 8},
    key="ab" * 32,
    started=2.5,
)


class SeatTests(Cases):
    """The first line."""

    def setUp(self) -> None:
        self.parent, self.worker = socket.socketpair()
        for each in (self.parent, self.worker):
            self.addCleanup(each.close)

    def test_seat(self) -> None:
        """A worker reads its seat, and leaves what comes behind it."""
        self.parent.sendall(SEAT.line() + b"serve\n")
        found = read_seat(self.worker)
        self.assertEqual(SEAT.line(), found.line())
        self.assertEqual([["127.0.0.1:0", 5]], found.listeners)
        self.assertEqual(b"serve\n", self.worker.recv(64))

    def test_no_parent(self) -> None:
        """A process that no parent has started is told so."""
        self.parent.close()
        self.assertRaises(ValueError, read_seat, self.worker)


class LinesTests(Cases):
    """Orders and reports."""

    def setUp(self) -> None:
        self.taken: list[bytes] = []
        self.lost: list[bool] = []
        self.lines = Lines(self.taken.append, lambda: self.lost.append(True))
        self.transport = StringTransport()
        self.lines.makeConnection(self.transport)

    def test_lines(self) -> None:
        """Lines are passed on, whatever the pieces in which they arrive."""
        for piece in (b"ser", b"ve\nrel", b"oad\n"):
            self.lines.dataReceived(piece)
        self.assertEqual([Order.SERVE, Order.RELOAD], [Order(each.decode()) for each in self.taken])

    def test_reports_do_not_pile_up(self) -> None:
        """While the other process does not read, reports are left out, and orders are not."""
        self.lines.pauseProducing()
        self.lines.report(report_line({"cpu": 1}))
        self.assertEqual(b"", self.transport.value())
        self.lines.tell(order_line(Order.DRAIN))
        self.lines.resumeProducing()
        self.lines.report(report_line({"cpu": 2}))
        drain, report, _ = self.transport.value().split(b"\n")
        self.assertEqual((b"drain", {"cpu": 2}), (drain, report_of(report)))

    def test_end(self) -> None:
        """The end of the other process is reported, and nothing more is written."""
        self.lines.connectionLost()
        self.lines.tell(b"serve")
        self.assertEqual([True], self.lost)
        self.assertEqual(b"", self.transport.value())
