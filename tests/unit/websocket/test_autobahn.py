"""The adapter by itself: bytes go in, hooks are called, and Autobahn stops when it should."""

from __future__ import annotations

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.websocket.autobahn import AutobahnAdapter, AutobahnFactory, settled
from pyrycode_relay.websocket.stage import Stage
from tests.peers.frames import frame
from tests.unit.bench import Cases, cases

CAP = 1000


class Recorded(AutobahnAdapter):
    """Notes each call of a hook."""

    def __init__(self, factory: AutobahnFactory) -> None:
        super().__init__(factory)
        self.calls: list[tuple[object, ...]] = []
        self.written = b""
        self.fails = False

    def message(self, payload: bytes) -> None:
        self.calls.append(("message", bytes(payload)))
        if self.fails:
            raise RuntimeError("a bug")

    def binary_message(self, payload: bytes) -> None:
        self.calls.append(("binary message", payload))

    def bug(self) -> None:
        self.calls.append(("bug",))

    def violated(self, code: int, reason: str) -> None:
        self.calls.append(("violated", code))
        self.send_close(Close(code, reason))

    def peer_closed(self, code: int | None) -> None:
        self.calls.append(("peer closed", code))

    def write(self, data: bytes) -> None:
        self.written += data

    def unregisterProducer(self) -> None:
        """Do nothing: there is no transport."""


class AdapterTests(Cases):
    def setUp(self) -> None:
        self.factory = AutobahnFactory(Recorded, Clock(), CAP)
        whole = type("Recorded", (Recorded,), settled(Recorded, self.factory))
        self.adapter: Recorded = whole(self.factory)
        self.adapter.begin()

    def consume(self, data: bytes, *, by: int | None = None) -> list[tuple[object, ...]]:
        """Feed the adapter, ``by`` bytes at a time, and return the calls."""
        step = by or len(data)
        for at in range(0, len(data), step):
            if not self.adapter.ignore_input:
                self.adapter.consume(data[at : at + step])
        return self.adapter.calls

    @cases({"whole": (None,), "in_pieces": (3,), "in_bytes": (1,)})
    def test_messages(self, by: int | None) -> None:
        """Each message is reported once, whole and in order, however it was sent and came."""
        stream = (
            frame(1, b"1")
            + frame(1, b"2" * 300)
            + frame(1, b"3", fin=False)
            + frame(9, b"ping")
            + frame(0, b"3")
            + frame(2, b"\xff")
            + frame(1, b"")
        )
        expected = [b"1", b"2" * 300, b"33"]
        calls: list[tuple[object, ...]] = [("message", each) for each in expected]
        calls += [("binary message", b"\xff"), ("message", b"")]
        self.assertEqual(self.consume(stream, by=by), calls)
        self.assertEqual(self.adapter.written, b"\x8a\x04ping")

    @cases(
        {
            "header": (frame(1, b"12")[:1],),
            "frame": (frame(1, b"12")[:-1],),
            "fragment": (frame(1, b"12", fin=False),),
            "control_frame": (frame(9, b"12")[:-1],),
            "behind_another": (frame(1, b"1") + frame(1, b"12")[:-1],),
        }
    )
    def test_incomplete(self, data: bytes) -> None:
        """Whether a message has begun is known after each piece."""
        self.assertTrue(self.adapter.consume(data))
        self.assertTrue(self.adapter.within_message)

    @cases({"message": (frame(1, b"1"),), "control_frame": (frame(9),)})
    def test_complete(self, data: bytes) -> None:
        """Between messages none has begun."""
        self.adapter.message_since = 1.0
        self.assertFalse(self.adapter.consume(data))
        self.assertEqual((self.adapter.within_message, self.adapter.message_since), (False, None))

    @cases(
        {
            "opcode": (frame(3), 1002),
            "too_large": (frame(1, b"", length=CAP + 1), 1009),
            "too_large_in_fragments": (
                frame(1, bytes(CAP), fin=False) + frame(0, b"12", fin=False),
                1009,
            ),
            "not_utf8": (frame(1, b"\xff"), 1007),
            "unfinished_utf8": (frame(1, b"\xc3"), 1007),
            "close_code": (frame(8, b"\x03\xe7"), 1002),
            "close_reason": (frame(8, b"\x03\xe8\xff"), 1007),
            "close_reason_beside_a_code_it_lacks": (frame(8, b"\x03\xf6\xff"), 1007),
        }
    )
    def test_violations(self, wrong: bytes, code: int) -> None:
        """A violation is reported once, and nothing behind it in the same read is parsed: no
        further violation, no message, no ping, no close."""
        tail = frame(3) + frame(1, b"1") + frame(9) + frame(8, b"\x03\xe8")
        self.assertEqual(self.consume(wrong + tail), [("violated", code)])
        self.assertTrue(self.adapter.ignore_input)
        self.assertEqual(self.adapter.written[:1], b"\x88")
        self.assertEqual(int.from_bytes(self.adapter.written[2:4], "big"), code)

    def test_input_that_is_ignored(self) -> None:
        """Autobahn's loop stops once input is to be ignored, whatever has been read with it."""

        def ignore(_: bytes) -> None:
            self.adapter.ignore_input = True

        self.patch(self.adapter, "onPing", ignore)
        self.consume(frame(9) + frame(10) + frame(8, b"\x03\xe8"))
        self.assertEqual((self.adapter.calls, self.adapter.written), ([], b""))

    @cases(
        {
            "code": (b"\x0f\xa1bye", 4001),
            "no_code": (b"", None),
            "code_that_autobahn_lacks": (b"\x03\xf6", 1014),
            "that_code_with_a_reason": (b"\x03\xf6b\xc3\xbc", 1014),
        }
    )
    def test_close(self, body: bytes, code: int | None) -> None:
        """The peer's close frame is answered with the same code and reported; then input ends."""
        calls = self.consume(frame(8, body) + frame(1, b"1"))
        self.assertEqual(calls, [("peer closed", code)])
        self.assertEqual(self.adapter.written, bytes([0x88, len(body)]) + body)
        self.assertTrue(self.adapter.ignore_input)

    def test_close_that_is_answered(self) -> None:
        """The peer's answer to a close frame is reported and not answered."""
        self.adapter.send_close(Close(4404, "gone"))
        self.assertEqual(self.adapter.written, b"\x88\x06\x11\x34gone")
        self.assertEqual(self.consume(frame(8, b"\x11\x34")), [("peer closed", 4404)])
        self.assertEqual(len(self.adapter.written), 8)

    def test_a_long_reason(self) -> None:
        """A reason is cut to what a control frame has room for."""
        self.adapter.send_close(Close(1002, "x" * 200))
        self.assertEqual(len(self.adapter.written), 2 + 125)

    def test_a_bug_in_a_message(self) -> None:
        """A hook that fails is reported, and the stream goes on behind its message."""
        self.adapter.fails = True
        stream = frame(1, b"1") + frame(1, b"2", fin=False) + frame(0, b"2")
        self.assertEqual(
            self.consume(stream),
            [("message", b"1"), ("bug",), ("message", b"22"), ("bug",)],
        )

    def test_a_frame_that_is_cut_by_the_end_of_service(self) -> None:
        """The rest of a frame that began before is skipped, and what follows it is parsed."""
        whole = frame(1, b"12345")
        self.adapter.consume(whole[:8])
        self.adapter.stage = Stage.CLOSING
        self.assertEqual(self.consume(whole[8:] + frame(9)), [])
        self.assertEqual(self.adapter.written, b"\x8a\x00")

    def test_after_the_connection(self) -> None:
        """A connection that is lost sends and parses nothing."""
        self.adapter.connectionLost(Failure(CONNECTION_LOST))
        self.adapter.sendPing()
        self.adapter.send_close(Close(1001, ""))
        self.assertEqual(self.adapter.written, b"")
        self.assertTrue(self.adapter.ignore_input)

    def test_after_service(self) -> None:
        """On a connection that has left service messages are dropped, and pings answered."""
        self.adapter.stage = Stage.CLOSING
        self.assertEqual(self.consume(frame(1, b"1") + frame(2, b"1") + frame(9)), [])
        self.assertEqual(self.adapter.written, b"\x8a\x00")
