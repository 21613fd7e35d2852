"""Flow control: every buffer has a number, and a slow peer costs itself alone (section 5)."""

from __future__ import annotations

import errno
import gc
import weakref
from typing import ClassVar

from websockets.frames import Opcode

from pyrycode_relay.events import Event
from pyrycode_relay.limits import OnReclaim
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.websocket.transports import unsent_bytes
from tests.peers.frames import frame
from tests.wire.harness import Binary, Client, Relay, WireTest

TRANSPORT = 65_536
"""Bytes that Twisted's transport takes before it says stop."""


def text_of(size: int, number: int = 0) -> str:
    """Return a JSON text of ``size`` bytes that begins with a number."""
    return '"' + f"{number:06}" + "x" * (size - 8) + '"'


def addressed(phone: Client, *texts: bytes) -> bytes:
    """Return what a daemon sends to have ``phone`` get each of ``texts``."""
    conn_id = phone.conn_id.encode()
    return b"".join(frame(1, b'{"conn_id":"%s","frame":%s}' % (conn_id, text)) for text in texts)


class GatheringTest(WireTest):
    """How often the relay writes to a peer."""

    def test_many_to_one(self) -> None:
        """What many phones say in one turn of the reactor leaves to their binary in one call."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(5)]
        before = binary.socket.sends
        for number, phone in enumerate(phones):
            phone.socket.inbound += frame(1, b"%d" % number) * 2
        self.relay.pump()
        self.assertEqual(binary.socket.sends - before, 1)
        for number, phone in enumerate(phones):
            self.assertEqual(binary.data_from(phone), [number, number])

    def test_one_to_many(self) -> None:
        """Each phone gets its part of what a binary sends in one turn in one call, in order."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(3)]
        before = [phone.socket.sends for phone in phones]
        for number in range(4):
            for phone in phones:
                message = b'{"conn_id":"%s","frame":%d}' % (phone.conn_id.encode(), number)
                binary.socket.inbound += frame(1, message)
        self.relay.pump()
        self.assertEqual([phone.socket.sends for phone in phones], [each + 1 for each in before])
        self.assertEqual([phone.messages for phone in phones], [[b"0", b"1", b"2", b"3"]] * 3)

    def test_a_lone_frame(self) -> None:
        """A lone frame has left when the reactor's turn is over, without another one."""
        binary, phone = self.relay.pair()
        phone.socket.inbound += frame(1, b"1")
        before = binary.socket.sends
        self.relay.reactor.turn()
        self.assertEqual(binary.socket.sends - before, 1)
        self.assertEqual(self.relay.service._poller.getWriters(), [])

    def test_after_a_backlog(self) -> None:
        """A peer that has taken what waited for it is written to at once again."""
        binary, phone = self.relay.pair()
        for _ in range(3):
            phone.stop_reading(100)
            binary.forward(phone, text_of(1_000))
            self.assertTrue(unsent_bytes(self.relay.server_side(phone).transport))
            phone.resume_reading()
            before = phone.socket.sends
            binary.socket.inbound += addressed(phone, b"1", b"2")
            self.relay.reactor.turn()
            self.assertEqual(phone.socket.sends - before, 1)
            self.assertEqual(self.relay.service._poller.getWriters(), [])
            self.relay.pump()
        self.assertEqual(phone.messages, [text_of(1_000).encode(), b"1", b"2"] * 3)

    def test_a_part_in_the_midst_of_a_batch(self) -> None:
        """When the socket takes a part only, what the same batch writes after it comes after it.

        More than is gathered goes out before the batch is over, a part of it; the socket has
        room again before the next.
        """
        binary, phone = self.relay.pair()
        sock = phone.socket
        send, parts = sock.send, iter([1, 40_000, 0, 7])

        def take_a_part(data: bytes | memoryview) -> int:
            return send(data[: next(parts, len(data))])

        sock.send = take_a_part  # type: ignore[method-assign]
        sock.window = 1_000_000
        texts = [text_of(size, n).encode() for n, size in enumerate([50_000, 30_000, 9, 70_000, 9])]
        binary.socket.inbound += addressed(phone, *texts)
        self.relay.pump()
        self.assertEqual(phone.messages, texts)
        self.assertEqual(self.relay.queued, 0)

    def test_much_in_a_batch(self) -> None:
        """However much a batch had for a peer, the next one gathers again."""
        binary, phone = self.relay.pair()
        phone.socket.window = 1_000_000
        binary.socket.inbound += addressed(phone, *[text_of(50_000).encode()] * 3)
        self.relay.pump()
        before = phone.socket.sends
        binary.socket.inbound += addressed(phone, b"1", b"2", b"3")
        self.relay.pump()
        self.assertEqual(phone.socket.sends - before, 1)

    def test_to_one_that_has_gone(self) -> None:
        """Writes to a lost connection go nowhere, and leave no timer."""
        _, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        phone.text("1")
        phone.reset()
        timers = len(self.relay.reactor.getDelayedCalls())
        side.send(b"1")
        self.relay.service._poller.run(side.send, b"2")
        self.assertEqual(len(self.relay.reactor.getDelayedCalls()), timers)
        self.assertEqual(self.log_loud(), [])

    def test_the_upgrade(self) -> None:
        """An answer to a handshake, and a close right behind it, leave in one call."""
        phone = self.relay.phone("nobody")
        self.assertEqual(phone.closed, (4404, "no server with that id"))
        self.assertEqual(phone.socket.sends, 1)


class ReadingTest(WireTest):
    """How a connection reads its socket, in its transport's place."""

    def test_nothing_there(self) -> None:
        """A read of a socket that has nothing after all costs nothing."""
        binary, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        self.assertIsNone(side.doRead())
        phone.text("1")
        self.assertEqual(binary.data_from(phone), [1])

    def test_errors(self) -> None:
        """Whatever the error, it costs this connection, is a loss, and none of the log's lines."""
        binary = self.relay.binary()
        for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET):
            phone = self.relay.phone()

            def fail(_: int, number: int = number) -> bytes:
                raise OSError(number, "unreachable")

            self.patch(phone.socket, "recv", fail)
            phone.send(b"x")
            self.assertTrue(phone.gone)
            self.assertEqual(binary.notices[-1], (phone.conn_id, 1001))
        self.assertEqual(self.log_loud(), [])

    def test_the_last_words(self) -> None:
        """Bytes before the end of the stream are read before the end is."""
        binary, phone = self.relay.pair()
        phone.socket.inbound += frame(1, b"1") * 30_000
        phone.finish()
        self.assertEqual(binary.data_from(phone), [1] * 30_000)
        self.assertEqual(binary.notices, [(phone.conn_id, 1001)])

    def test_aborted(self) -> None:
        """An aborted connection reads nothing, though reading is resumed."""
        binary, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        side.pause_reading()
        side.abort()
        side.resume_reading()
        phone.send(frame(1, b"1"))
        self.assertEqual(binary.data_from(phone), [])
        self.assertTrue(phone.was_reset)

    def test_nothing_is_left(self) -> None:
        """When its socket goes, a connection is freed at once: the collector has nothing to find,
        and the poller keeps nobody."""
        for leave in (Client.reset, Client.finish, Client.close):
            binary, phone = self.relay.pair()
            phone.stop_reading(10)
            binary.forward(phone, text_of(200_000))
            phone.resume_reading()
            phone.text("1")
            sides = [weakref.ref(self.relay.server_side(each)) for each in (binary, phone)]
            gc.collect()
            gc.disable()
            self.addCleanup(gc.enable)
            leave(phone)
            leave(binary)
            self.relay.advance(31)
            self.assertEqual([each() for each in sides], [None, None])
            self.assertFalse(any(self.relay.service._poller._readers))
            gc.enable()


class QueueTest(WireTest):
    """Whose a queue is."""

    def test_made_for_who_needs_it(self) -> None:
        """A phone that reads has no outbox; each phone that does not read has one."""
        binary, phone = self.relay.pair()
        slow, other = self.relay.phone(), self.relay.phone()
        for each in (slow, other):
            each.stop_reading()
        for each in (phone, slow, other):
            for number in range(4):
                binary.forward(each, text_of(70_000, number))
        sides = [self.relay.server_side(each) for each in (phone, slow, other)]
        nobody = sides[0].factory.no_outbox
        self.assertEqual([each.outbox is nobody for each in sides], [True, False, False])
        self.assertIsNot(sides[1].outbox, sides[2].outbox)
        for each in (slow, other):
            each.resume_reading()
            self.assertEqual([int(text[1:7]) for text in each.messages], [0, 1, 2, 3])
        self.assertEqual((self.relay.queued, len(phone.messages)), (0, 4))


class OutboxTest(WireTest):
    """What waits for a phone."""

    limits: ClassVar = {"outbox_bytes": 100_000}

    def stalled(self) -> tuple[Binary, Client]:
        """Return a daemon and a phone that reads nothing, with its transport full."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, text_of(TRANSPORT))
        return binary, phone

    def test_exact_budget(self) -> None:
        """Each item costs its length + 64; the one being written counts; the budget can be met."""
        binary, phone = self.stalled()
        left = 100_000 - (TRANSPORT + 64)
        binary.forward(phone, text_of(left - 64))
        self.assertEqual(self.relay.queued, 100_000)
        self.assertEqual(binary.notices, [])
        binary.forward(phone, "1")
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

    def test_small_frames_cost_too(self) -> None:
        """Tiny frames are not free: 64 bytes each."""
        binary, phone = self.stalled()
        count = 0
        while not binary.notices:
            binary.forward(phone, "1")
            count += 1
        self.assertEqual(count, (100_000 - TRANSPORT - 64) // 65 + 1)

    def test_burst_to_a_reader(self) -> None:
        """A burst far over the budget passes to a phone that reads."""
        binary, phone = self.relay.pair()
        for number in range(100):
            binary.forward(phone, text_of(5_000, number))
        self.assertEqual(len(phone.messages), 100)
        self.assertIsNone(phone.closed)

    def test_slow_reader_gets_everything(self) -> None:
        """A phone that reads slowly gets everything in order."""
        binary, phone = self.relay.pair()
        phone.stop_reading(1_000)
        for number in range(28):
            binary.forward(phone, text_of(5_000, number))
        for _ in range(150):
            phone.socket.window = 1_000
            phone.read(1_000)
            self.relay.advance(0.125)
        self.assertEqual([int(each[1:7]) for each in phone.messages], list(range(28)))
        self.assertEqual(self.relay.queued, 0)

    def test_nobody_else_is_slowed(self) -> None:
        """While one phone is stalled its daemon and its siblings are as fast as ever."""
        binary, phone = self.stalled()
        sibling = self.relay.phone()
        for number in range(50):
            sibling.text(str(number))
            binary.forward(sibling, str(number))
        self.assertEqual(binary.data_from(sibling), list(range(50)))
        self.assertEqual(len(sibling.messages), 50)
        phone.send(frame(1, b"1"))
        self.assertEqual(binary.data_from(phone), [1])

    def test_close_flushes_what_is_queued(self) -> None:
        """A phone's mistake closes it after what was queued for it."""
        binary, phone = self.stalled()
        binary.forward(phone, text_of(10_000, 1))
        phone.send(frame(1, b"oops"))
        self.assertEqual(binary.notices, [(phone.conn_id, 1007)])
        self.relay.advance(2)
        phone.resume_reading()
        self.assertEqual(len(phone.messages), 2)
        self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))
        self.assertTrue(phone.gone)

    def test_a_close_does_not_wait_for_ever(self) -> None:
        """A close frame waits for the queue for half of the close timeout; then it comes before
        the rest, whole frames apart, and the phone has the other half to take it."""
        for late, messages in ((False, 2), (True, 1)):
            with self.subTest(late=late):
                binary, phone = self.stalled()
                binary.forward(phone, text_of(10_000, 1))
                phone.send(frame(1, b"oops"))
                self.relay.advance(2.375 + late / 4)
                self.assertEqual(phone.messages, [])
                phone.resume_reading()
                self.assertEqual(len(phone.messages), messages)
                self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))
                self.assertFalse(phone.was_reset)
                binary.close(1000)

    def test_a_directive_waits_for_ever(self) -> None:
        """A directive comes after the frames before it, however long the phone takes for them."""
        binary, phone = self.stalled()
        binary.forward(phone, text_of(10_000, 1))
        binary.direct(phone, 4401, text_of(10_000, 2))
        for _ in range(10):
            self.relay.advance(7)
            phone.socket.window = 1_000
            phone.read(1_000)
        self.assertIsNone(phone.closed)
        phone.resume_reading()
        self.assertEqual((len(phone.messages), phone.closed), (3, (4401, "")))

    def test_a_violation_behind_a_close_that_waits(self) -> None:
        """A violation does not cut off what waits, nor the close behind it."""
        binary, phone = self.stalled()
        binary.forward(phone, text_of(10_000, 1))
        phone.send(frame(1, b"oops") + frame(3))
        self.assertEqual(binary.notices, [(phone.conn_id, 1007)])
        phone.resume_reading()
        self.assertEqual(len(phone.messages), 2)
        self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))

    def test_nothing_after_the_close_is_queued(self) -> None:
        """While a phone is closing, envelopes for it are for nobody and cost nothing."""
        binary, phone = self.stalled()
        binary.forward(phone, text_of(1_000, 1))
        phone.send(frame(1, b"oops"))
        before = self.relay.queued
        for _ in range(100):
            binary.forward(phone, text_of(1_000, 2))
        self.assertEqual(self.relay.queued, before)
        phone.resume_reading()
        self.assertEqual(len(phone.messages), 2)

    def test_closing_phone_sends_on(self) -> None:
        """The relay reads and drops what a closing phone still sends; it costs no memory."""
        binary, phone = self.stalled()
        binary.forward(phone, text_of(1_000, 1))
        phone.send(frame(1, b"oops"))
        for _ in range(50):
            phone.send(frame(1, b"1") + frame(9, b"x" * 125))
        self.assertEqual(binary.data_from(phone), [])
        self.assertLess(self.relay.queued, 100_000)


class WriteStallTest(WireTest):
    """How long a peer may take nothing."""

    def test_with_progress(self) -> None:
        """A peer that takes a little now and again is no stalled one, however slow."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for number in range(10):
            binary.forward(phone, text_of(20_000, number))
        for _ in range(20):
            self.relay.advance(7)
            phone.socket.window = 200
            phone.read(200)
        self.assertEqual(binary.notices, [])
        phone.resume_reading()
        self.assertEqual(len(phone.messages), 10)

    def test_with_more_to_come(self) -> None:
        """A peer that takes a little is no stalled one though it is sent more than it takes."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for number in range(60):
            binary.forward(phone, text_of(1_000, number))
            self.relay.advance(1)
            phone.socket.window = 200
            phone.read(200)
        self.assertEqual(binary.notices, [])
        phone.resume_reading()
        self.assertEqual([int(each[1:7]) for each in phone.messages], list(range(60)))

    def test_progress_ends(self) -> None:
        """The time counts from the last progress."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for number in range(10):
            binary.forward(phone, text_of(20_000, number))
        self.relay.advance(20)
        phone.socket.window = 200
        phone.read(200)
        self.relay.advance(29)
        self.assertEqual(binary.notices, [])
        self.relay.advance(9)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

    def test_trickling_frames_do_not_hide_it(self) -> None:
        """New frames queued for a stalled phone, or its own pings, are no progress of it."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, text_of(70_000))
        for _ in range(31):
            self.relay.advance(1)
            binary.forward(phone, "1")
            phone.send(frame(9, b"x"))
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

    def test_a_pong_does_not_end_the_watch(self) -> None:
        """A pong that comes while something waits does not hide what the peer takes after it."""
        binary, phone = self.relay.pair()
        phone.answers = False
        self.relay.advance(20)
        phone.stop_reading()
        binary.forward(phone, text_of(1_000))
        self.relay.advance(15)
        phone.send(frame(10))
        phone.socket.window = 100
        phone.read(100)
        self.relay.advance(26)
        self.assertEqual(binary.notices, [])
        self.relay.advance(12)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

    def test_drained_peer_has_no_deadline(self) -> None:
        """A peer that has taken everything is under no write deadline."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, text_of(70_000))
        self.relay.advance(29)
        phone.resume_reading()
        self.relay.advance(120)
        self.assertIsNone(phone.closed)


class PingBehindABacklogTest(WireTest):
    """A ping whose answer cannot come before the peer has taken a backlog."""

    limits: ClassVar = {"write_stall": 300.0}

    def test_progress_answers_it(self) -> None:
        """A peer that takes some of its backlog in time stays, one that takes nothing goes."""
        for taken in (100, 0):
            binary, phone = self.relay.binary(str(taken)), self.relay.phone(str(taken))
            phone.answers = False
            self.relay.advance(25)
            binary.send(frame(10))
            phone.stop_reading()
            binary.forward(phone, text_of(1_000))
            transport = self.relay.server_side(phone).transport
            before = unsent_bytes(transport)
            while unsent_bytes(transport) == before:
                self.relay.advance(0.25)
            self.relay.advance(29.5)
            phone.socket.window = taken
            phone.read(taken)
            self.relay.advance(1)
            closed = [] if taken else [(phone.conn_id, 1011)]
            self.assertEqual(binary.notices, closed)

    def test_progress_answers_a_claim(self) -> None:
        """A daemon that takes some of its backlog just before a claim is decided keeps its id."""
        for taken in (100, 0):
            binary, phone = self.relay.binary(str(taken)), self.relay.phone(str(taken))
            binary.stop_reading()
            phone.text(text_of(1_000))
            newcomer = self.relay.binary(str(taken))
            self.relay.advance(9.5)
            binary.socket.window = taken
            binary.read(taken)
            self.relay.advance(1)
            expected = (4409, "server-id already claimed") if taken else None
            self.assertEqual(newcomer.closed, expected)


class HoldTest(WireTest):
    """Frames that are held with phones while their daemon is slow."""

    limits: ClassVar = {"hold_bytes": 20_000}

    def test_only_its_own_phones_are_paused(self) -> None:
        """A slow daemon slows its own phones by not reading them, and nobody else."""
        slow, phone = self.relay.binary("slow"), self.relay.phone("slow")
        quick, other = self.relay.binary("quick"), self.relay.phone("quick")
        slow.stop_reading()
        for number in range(60):
            phone.text(text_of(5_000, number))
            other.text(text_of(5_000, number))
        self.assertGreater(len(phone.socket.inbound), 50_000)
        self.assertEqual(len(other.socket.inbound), 0)
        self.assertEqual(len(quick.data_from(other)), 60)
        self.assertLess(self.relay.queued, 20_000 + 2 * TRANSPORT)

    def test_resumes(self) -> None:
        """When the daemon reads again everything arrives, in order, once."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for number in range(60):
            phone.text(text_of(5_000, number))
        binary.resume_reading()
        self.assertEqual([int(each[:6]) for each in binary.data_from(phone)], list(range(60)))
        self.assertEqual(len(phone.socket.inbound), 0)
        self.assertEqual(self.relay.queued, 0)

    def test_quiet_phone_is_read(self) -> None:
        """A phone within its own budget is read on while a sibling's is used up."""
        binary = self.relay.binary()
        talker, quiet = self.relay.phone(), self.relay.phone()
        binary.stop_reading()
        for _ in range(60):
            talker.text(text_of(5_000))
        quiet.text("1")
        quiet.ping(b"there?")
        self.assertGreater(len(talker.socket.inbound), 0)
        self.assertEqual(len(quiet.socket.inbound), 0)
        self.assertEqual(quiet.count(Opcode.PONG), 1)
        binary.resume_reading()
        self.assertEqual(binary.data_from(quiet), [1])

    def test_slow_binary_still_serves_its_phones(self) -> None:
        """A daemon that does not read can still send to its phones."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for _ in range(60):
            phone.text(text_of(5_000))
        binary.forward(phone, "1")
        self.assertEqual(phone.messages, [b"1"])

    def test_slow_binary_with_progress(self) -> None:
        """A daemon that reads slowly gets everything and keeps its place."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for number in range(60):
            phone.text(text_of(5_000, number))
        for _ in range(400):
            binary.socket.window = 1_000
            binary.read(1_000)
            self.relay.advance(1)
        self.assertIsNone(binary.closed)
        self.assertEqual([int(each[:6]) for each in binary.data_from(phone)], list(range(60)))

    def test_stalled_binary_then_reclaim(self) -> None:
        """A stalled daemon is dropped after 30 s, and its place can be reclaimed."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for number in range(60):
            phone.text(text_of(5_000, number))
        self.relay.advance(30.125)
        self.assertEqual(self.relay.counts, (0, 1, 1))
        self.assertIsNone(self.relay.binary().closed)
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))

    def test_paused_phone_is_closed_promptly(self) -> None:
        """A phone that is not being read still gets its close, and can answer it."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for _ in range(60):
            phone.text(text_of(5_000))
        self.assertGreater(len(phone.socket.inbound), 0)
        binary.direct(phone, 4401)
        self.assertEqual(phone.closed, (4401, ""))
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)


class PingFloodTest(WireTest):
    """Pings of a peer that does not read."""

    def test_one_pong_waits(self) -> None:
        """The flood fills one transport buffer; after that one pong at most waits."""
        _, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        phone.stop_reading()
        for number in range(3_000):
            phone.socket.inbound += frame(9, f"{number:0125}".encode())
        self.relay.pump()
        self.assertLess(unsent_bytes(side.transport), TRANSPORT + 1_000)
        phone.resume_reading()
        pongs = [bytes(each.data) for each in phone.frames if each.opcode is Opcode.PONG]
        self.assertLess(len(pongs), TRANSPORT // 127 + 10)
        self.assertEqual(int(pongs[-1]), 2_999, "the last ping is the one that is answered")

    def test_one_pong_behind_a_backlog(self) -> None:
        """Behind a backlog of frames the latest ping alone is answered, once."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, text_of(TRANSPORT + 10))
        for number in range(100):
            phone.send(frame(9, str(number).encode()))
        phone.resume_reading()
        pongs = [bytes(each.data) for each in phone.frames if each.opcode is Opcode.PONG]
        self.assertEqual(pongs, [b"99"])


class MemoryBudgetTest(WireTest):
    """All queues together."""

    limits: ClassVar = {
        "memory_budget": 400_000,
        "outbox_bytes": 10_000_000,
        "hold_bytes": 1_000_000,
        "on_reclaim": OnReclaim.KEEP,
    }

    def test_largest_goes_first(self) -> None:
        """Of phones that read nothing, the one with the largest queue is closed, not the last."""
        binary = self.relay.binary()
        large, small, last = (self.relay.phone() for _ in range(3))
        for phone in (large, small, last):
            phone.stop_reading()
            binary.forward(phone, text_of(70_000))
        binary.forward(large, text_of(100_000))
        binary.forward(small, text_of(10_000))
        for _ in range(8):
            binary.forward(last, text_of(10_000))
        self.assertEqual(binary.notices, [(large.conn_id, 1011)])
        self.assertLessEqual(self.relay.queued, 400_000)
        large.resume_reading()
        self.assertEqual(large.closed, (1011, "phone backlog full"))
        for phone in (small, last):
            phone.resume_reading()
            self.assertIsNone(phone.closed)

    def test_a_reader_stays(self) -> None:
        """A phone that reads keeps its queue, the largest of all, while others that read less fill
        the budget; a phone that stops reading loses this within seconds."""
        binary = self.relay.binary()
        reader, *others = (self.relay.phone() for _ in range(4))
        for phone in (reader, *others):
            phone.stop_reading()
            binary.forward(phone, text_of(70_000))
        binary.forward(reader, text_of(100_000))
        for _ in range(6):
            self.relay.advance(1)
            reader.socket.window = 10_000
            reader.read(10_000)
            others[0].socket.window = 10
            others[0].read(10)
        lost = []
        for other in (others[1], others[2], others[0]):
            binary.forward(reader, text_of(60_000))
            lost.append((other.conn_id, 1011))
            self.assertEqual(binary.notices, lost)
        new = self.relay.phone()
        new.stop_reading()
        self.relay.advance(6)
        binary.forward(new, text_of(70_000))
        binary.forward(new, text_of(40_000))
        self.assertEqual(binary.notices[3:], [(reader.conn_id, 1011)])

    def test_held_frames_drain_as_their_daemon_takes_them(self) -> None:
        """Frames for a daemon that reads stay, those for one that reads nothing go."""
        homes = {name: self.relay.binary(name) for name in ("reads", "stuck")}
        phones = {name: self.relay.phone(name) for name in homes}
        for name, binary in homes.items():
            binary.stop_reading()
            for _ in range(2):
                phones[name].text(text_of(70_000))
        for _ in range(6):
            self.relay.advance(1)
            homes["reads"].socket.window = 5_000
            homes["reads"].read(5_000)
        for _ in range(2):
            phones["reads"].text(text_of(70_000))
        self.assertEqual(phones["stuck"].closed, (1011, "phone backlog full"))
        self.assertIsNone(phones["reads"].closed)

    def test_held_frames_count(self) -> None:
        """Frames held for an absent daemon count, and the largest queue's phone is closed."""
        old, talker = self.relay.pair()
        quiet = self.relay.phone()
        old.reset()
        quiet.text("1")
        for _ in range(50):
            if talker.closed:
                break
            talker.text(text_of(10_000))
        self.assertEqual(talker.closed, (1011, "phone backlog full"))
        self.assertIsNone(quiet.closed)
        self.assertLess(self.relay.queued, 1_000)
        new = self.relay.binary()
        self.assertEqual(new.data_from(quiet), [1])
        self.assertEqual(new.data_from(talker), [])

    def test_never_over_the_budget(self) -> None:
        """However many phones of however many daemons, the sum stays within the budget."""
        for number in range(6):
            binary = self.relay.binary(str(number))
            for _ in range(4):
                phone = self.relay.phone(str(number))
                phone.stop_reading()
                for _ in range(6):
                    binary.forward(phone, text_of(30_000))
                    self.assertLessEqual(self.relay.queued, 400_000)
        self.assertEqual(self.relay.counts[0], 6, "no daemon is lost")
        self.assertLessEqual(self.relay.service.context.memory_budget.highest, 400_000 + 30_064)

    def stalled(self, server_id: str, size: int) -> Binary:
        """Return a daemon that reads nothing, with one frame of ``size`` bytes on its way to it."""
        binary, phone = self.relay.binary(server_id), self.relay.phone(server_id)
        binary.stop_reading()
        phone.text(text_of(size))
        return binary

    def test_slow_daemons_go_for_slow_daemons(self) -> None:
        """What daemons do not read costs the one of them that takes the most, and no phone."""
        home, phone = self.relay.pair()
        phone.stop_reading()
        home.forward(phone, text_of(90_000))
        small, large = self.stalled("small", 100_000), self.stalled("large", 120_000)
        self.assertIsNone(large.closed)
        last = self.stalled("last", 110_000)
        self.assertLess(self.relay.queued, 310_000)
        self.assertEqual(self.relay.counts, (3, 1, 4), "its grace has begun")
        for each in (phone, small, large, last):
            each.resume_reading()
        self.assertEqual(large.closed, (1011, "binary backlog full"))
        self.assertEqual([small.closed, last.closed, phone.closed], [None] * 3)
        self.assertEqual(self.relay.service.context.memory_budget.shed, 1)
        (fields,) = [
            each for each in self.relay.seen.of(Event.BINARY_CLOSED) if each["close_code"] == 1011
        ]
        self.assertEqual(
            (fields["server_id"], fields["reason"]), ("large", EndCause.BINARY_BACKLOG_FULL)
        )

    def test_no_daemon_goes_for_phones(self) -> None:
        """What waits for phones costs no daemon, though it be the one that takes the most."""
        slow = self.stalled("slow", 150_000)
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(5)]
        for phone in phones:
            phone.stop_reading()
            binary.forward(phone, text_of(70_000))
        self.assertEqual([code for _, code in binary.notices], [1011] * 2)
        slow.resume_reading()
        self.assertIsNone(slow.closed)

    def test_notices_are_not_in_the_way(self) -> None:
        """A close notice is kept, whatever it is that fills the memory."""
        home = self.stalled("home", 240_000)
        self.stalled("other", 150_000)
        gone = []
        while self.relay.counts[0] == 2:
            gone.append(self.relay.phone())
            gone[-1].close(1000)
            self.assertLess(len(gone), 1000)
        self.assertGreater(len(gone), 10)
        home.resume_reading()
        self.assertEqual(home.closed, (1011, "binary backlog full"))
        new = self.relay.binary()
        self.assertEqual(new.notices, [(phone.conn_id, 1000) for phone in gone])

    def test_a_notice_that_costs_its_daemon(self) -> None:
        """A notice that brings its own slow daemon down is for nobody then, where none is kept."""
        relay = Relay(None, memory_budget=100_000).start()
        binary, phone = relay.pair()
        leaver = relay.phone()
        binary.stop_reading()
        phone.text(text_of(99_850))
        self.assertEqual(relay.counts, (1, 0, 2))
        leaver.close(1000)
        self.assertEqual((relay.counts, relay.queued), ((0, 1, 1), 0))
        new = relay.binary()
        self.assertEqual((new.notices, phone.closed), ([], (4404, "binary reclaimed server-id")))

    def test_counted_once(self) -> None:
        """A phone that is closed for the budget's sake counts once, whatever its daemon is owed."""
        binary, phone = self.relay.pair()
        talker = self.relay.phone()
        phone.stop_reading()
        for _ in range(2):
            binary.forward(phone, text_of(140_000))
        binary.stop_reading()
        talker.text(text_of(100_000))
        talker.text(text_of(100_000))
        self.assertEqual(self.relay.service.context.memory_budget.shed, 1)
        binary.resume_reading()
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

    def test_directive_to_a_phone_that_its_frame_costs(self) -> None:
        """A directive whose own frame has the phone closed costs its daemon nothing."""
        binary, phone = self.relay.pair()
        others = [self.relay.phone() for _ in range(2)]
        for each in (phone, *others):
            each.stop_reading()
        for each in others:
            binary.forward(each, text_of(90_000))
        talker = self.relay.phone()
        binary.stop_reading()
        talker.text(text_of(100_000))
        binary.direct(phone, 4401, text_of(200_000))
        for each in (binary, phone):
            each.resume_reading()
        self.assertEqual(phone.closed, (1011, "phone backlog full"))
        self.assertEqual((binary.closed, binary.notices), (None, [(phone.conn_id, 1011)]))
        self.assertEqual(self.log_loud(), [])

    def test_held_frame_that_costs_its_phone(self) -> None:
        """A phone that is closed for the frame it sent is not paused, however low its budget."""
        relay = Relay(None, memory_budget=150_000, hold_bytes=1).start()
        binary, first = relay.pair()
        binary.stop_reading()
        first.text(text_of(70_000))
        talker = relay.phone()
        talker.text(text_of(100_000))
        self.assertEqual(talker.closed, (1011, "phone backlog full"))
        self.assertEqual(self.log_loud(), [])
        binary.resume_reading()
        self.assertEqual(binary.notices, [(talker.conn_id, 1011)])

    def test_nothing_stays_on_the_books(self) -> None:
        """When all is delivered or gone, the sum is nought."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(5):
            binary.forward(phone, text_of(30_000))
        self.assertGreater(self.relay.queued, 0)
        phone.reset()
        self.assertEqual(self.relay.queued, 0)


class SharedFateTest(WireTest):
    """The end of one connection does not concern the others."""

    def test_many_bad_phones(self) -> None:
        """Phones that violate, stall, flood or vanish leave their daemon and siblings alone."""
        binary, good = self.relay.pair()
        for bad in (
            frame(3), frame(1, b"oops"), frame(1, b"\xff"), b"\x00" * 1000, frame(8, b"\x03\xe9"),
            frame(1, b"", length=1 << 62),
        ):  # fmt: skip
            self.relay.phone().send(bad)
        self.relay.phone().reset()
        good.text("1")
        binary.forward(good, "2")
        self.assertEqual(binary.data_from(good), [1])
        self.assertEqual(good.messages, [b"2"])
        self.assertEqual(len(binary.notices), 7)
        self.assertEqual(self.relay.counts, (1, 0, 1))
