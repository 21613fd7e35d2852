"""Heartbeat and message deadline (section 5)."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import ClassVar

from websockets.frames import Opcode

from pyrycode_relay.websocket.transports import unsent_bytes
from tests.peers.frames import frame
from tests.wire.harness import Binary, Client, WireTest


class HeartbeatTest(WireTest):
    """Pings, what counts as life, and what does not."""

    limits: ClassVar = {"grace": 600.0}

    def pings(self, client: Client) -> int:
        """Return how many pings a client has got."""
        return client.count(Opcode.PING)

    def ping_times(self, client: Client, seconds: float) -> list[float]:
        """Let time pass and return when pings came."""
        times = []
        end = self.relay.now + seconds
        while self.relay.now < end:
            before = self.pings(client)
            self.relay.advance(0.25)
            times += [self.relay.now] * (self.pings(client) - before)
        return times

    def test_first_ping(self) -> None:
        """A silent connection is pinged after 27 to 33 s, and connections spread over that."""
        clients = [self.relay.binary(str(number)) for number in range(40)]
        self.relay.advance(26.875)
        self.assertEqual([self.pings(each) for each in clients], [0] * 40)
        self.relay.advance(3.125)
        early = sum(self.pings(each) for each in clients)
        self.assertGreater(early, 5)
        self.assertLess(early, 35)
        self.relay.advance(3.125)
        self.assertEqual([self.pings(each) for each in clients], [1] * 40)

    def test_every_ping(self) -> None:
        """Every ping, not only the first, comes 27 to 33 s after the last sign of life."""
        binary, phone = self.relay.pair()
        for client in (binary, phone):
            start = self.relay.now
            times = self.ping_times(client, 200)
            gaps = [b - a for a, b in pairwise([start, *times])]
            if client is phone:
                gaps = gaps[1:]
            self.assertGreaterEqual(len(gaps), 5, f"pings at {times}")
            for gap in gaps:
                self.assertGreaterEqual(gap, 26.5, f"pings at {times}")
                self.assertLessEqual(gap, 33.5, f"pings at {times}")

    def test_jitter_differs(self) -> None:
        """The interval is drawn anew, so that connections do not fall into step."""
        binary = self.relay.binary()
        times = self.ping_times(binary, 400)
        gaps = {round(b - a, 2) for a, b in pairwise(times)}
        self.assertGreater(len(gaps), 2)

    def test_any_data_is_life(self) -> None:
        """Any byte puts the ping off: messages, pings, pongs, half a frame."""
        signs = (
            frame(1, b'{"push_wake":{}}'), frame(9), frame(10), frame(10, b"unasked"),
            frame(1, b"{}")[:3], frame(1, b"{}")[3:],
        )  # fmt: skip
        binary = self.relay.binary()
        for sign in signs:
            self.relay.advance(26)
            binary.send(sign)
        self.assertEqual(self.pings(binary), 0)
        self.relay.advance(33.125)
        self.assertEqual(self.pings(binary), 1)

    def test_late_sign_of_life(self) -> None:
        """Any byte within 30 s of the ping saves the connection, even if no pong ever comes."""
        _, phone = self.relay.pair()
        phone.answers = False
        for _ in range(4):
            while self.pings(phone) == 0:
                self.relay.advance(0.25)
            self.relay.advance(29)
            phone.send(frame(1, b"1"))
            phone.frames.clear()
            self.relay.advance(26)
            self.assertIsNone(phone.closed)

    def test_silence_after_an_answered_ping(self) -> None:
        """A peer that answered once and then falls silent is closed within 63 s of that."""
        _, phone = self.relay.pair()
        self.relay.advance(33.125)
        self.assertEqual(self.pings(phone), 1)
        phone.answers = False
        self.relay.advance(33.125 + 30.125)
        self.assertEqual(phone.closed, (1011, "heartbeat timeout"))

    def test_what_is_sent_is_no_life(self) -> None:
        """Bytes sent to a peer are no sign of its life while they all fit into the kernel."""
        binary, phone = self.relay.pair()
        phone.answers = False
        for _ in range(64):
            binary.forward(phone, "1")
            self.relay.advance(1)
        self.assertEqual(phone.closed, (1011, "heartbeat timeout"))

    def test_times_that_round(self) -> None:
        """A heartbeat at a time that has no exact number comes, though the clock stands still."""
        for endpoint in self.relay.service.site.backend.endpoints.values():
            endpoint.factory.random = Random(1)
        for number in range(10):
            self.relay.advance(0.1)
            binary = self.relay.binary(str(number))
            binary.answers = False
            self.relay.advance(65)
            self.assertEqual(binary.closed, (1011, "heartbeat timeout"))

    def test_suspended_while_not_read(self) -> None:
        """A phone that is not being read is not pinged and not given up for its silence."""
        binary, phone = self.relay.pair()
        binary.reset()
        phone.answers = False
        while not phone.socket.inbound:
            phone.send(frame(1, b'"' + b"x" * 60_000 + b'"'))
        self.relay.advance(300)
        self.assertEqual(self.pings(phone), 0)
        self.assertIsNone(phone.closed)

    def test_suspended_while_stalled(self) -> None:
        """A peer that takes nothing is left to the write stall: its code is that one's."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        self.relay.advance(26)
        for _ in range(20):
            binary.forward(phone, '"' + "x" * 50_000 + '"')
        self.relay.advance(31)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])
        phone.resume_reading()
        self.assertEqual(phone.closed, (1011, "phone write stalled"))

    def pinged(self) -> tuple[Binary, Client]:
        """Return a daemon and a phone with a ping under way that the phone does not answer."""
        binary, phone = self.relay.pair()
        phone.answers = False
        while not self.pings(phone):
            self.relay.advance(0.25)
        return binary, phone

    def test_not_read_while_pinged(self) -> None:
        """A phone that is no longer read when its ping runs out stays; when it is read again, its
        deadlines start anew."""
        binary, phone = self.pinged()
        binary.stop_reading()
        side = self.relay.server_side(phone)
        side.pause_reading()
        self.relay.advance(29.5)
        side.resume_reading()
        self.relay.advance(26.5)
        self.assertIsNone(phone.closed)
        self.assertEqual(self.pings(phone), 1)
        side.pause_reading()
        self.relay.advance(100)
        self.assertIsNone(phone.closed)
        side.resume_reading()

    def test_not_read_when_the_ping_runs_out(self) -> None:
        """A phone that is not being read at that moment stays."""
        _, phone = self.pinged()
        side = self.relay.server_side(phone)
        side.pause_reading()
        self.relay.advance(31)
        self.assertIsNone(phone.closed)
        side.resume_reading()

    def test_stalled_when_the_ping_runs_out(self) -> None:
        """A phone that takes nothing, not even the ping, is left to the write stall."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        transport = self.relay.server_side(phone).transport
        while not unsent_bytes(transport):
            self.relay.advance(0.25)
        for _ in range(3):
            binary.forward(phone, '"' + "x" * 50_000 + '"')
        self.relay.advance(29.5)
        self.assertEqual(binary.notices, [])
        self.relay.advance(1)
        phone.resume_reading()
        self.assertEqual(phone.closed, (1011, "phone write stalled"))

    def test_everything_taken_is_no_answer(self) -> None:
        """A phone that has taken all that waited has the ping too, and has 30 s to answer it."""
        binary, phone = self.relay.pair()
        phone.answers = False
        self.relay.advance(25)
        phone.stop_reading()
        binary.forward(phone, '"' + "x" * 1_000 + '"')
        self.relay.advance(10)
        phone.resume_reading()
        self.assertEqual(self.pings(phone), 1)
        self.relay.advance(29)
        self.assertIsNone(phone.closed)
        self.relay.advance(3)
        self.assertEqual(phone.closed, (1011, "heartbeat timeout"))

    def test_taken_steadily_is_no_answer(self) -> None:
        """A phone that takes whatever comes, and answers nothing, is pinged and closed as soon as
        one to which nothing is sent."""
        binary, phone = self.relay.pair()
        phone.answers = False
        for number in range(66 * 4):
            phone.socket.window = 40_000
            phone.reading = number % 2 == 0
            binary.forward(phone, '"' + "x" * 50_000 + '"')
            self.relay.advance(0.25)
        phone.resume_reading()
        self.assertEqual(phone.closed, (1011, "heartbeat timeout"))

    def test_ping_behind_a_backlog(self) -> None:
        """A phone that still reads up to the ping stays; its 30 s begin when it has the ping."""
        binary, phone = self.relay.pair()
        self.relay.advance(25)
        phone.stop_reading()
        binary.forward(phone, '"' + "x" * 60_000 + '"')
        for _ in range(100):
            self.relay.advance(1)
            phone.socket.window = 500
            phone.read(500)
        self.assertIsNone(phone.closed)
        self.assertEqual(self.pings(phone), 0)
        phone.answers = False
        phone.resume_reading()
        self.assertEqual(self.pings(phone), 1)
        self.relay.advance(29)
        self.assertIsNone(phone.closed)
        self.relay.advance(3)
        self.assertEqual(phone.closed, (1011, "heartbeat timeout"))

    def test_ping_is_answered(self) -> None:
        """A peer's ping is answered with its own bytes, at once."""
        _, phone = self.relay.pair()
        for payload in (b"", b"x", b"\x00\xff" * 62):
            phone.frames.clear()
            phone.ping(payload)
            self.assertEqual([bytes(each.data) for each in phone.frames], [payload])
            self.assertIs(phone.frames[0].opcode, Opcode.PONG)


class MessageDeadlineTest(WireTest):
    """A message begun must end in 30 s."""

    def begun(self, first: bytes) -> Client:
        """Return a phone that has begun a message."""
        _, phone = self.relay.pair()
        phone.send(first)
        return phone

    def test_each_way_to_begin(self) -> None:
        """One byte of a frame's header, a fragment, half a payload: each starts the deadline."""
        beginnings = (
            b"\x81",
            frame(1, b'"abc"')[:5],
            frame(1, b'"abc"')[:-1],
            frame(1, b'"abc', fin=False),
            frame(1, b"", fin=False),
            frame(1, b"1") + b"\x81",
            frame(9, b"abc")[:4],
        )
        for number, first in enumerate(beginnings):
            self.relay.binary(str(number))
            phone = self.relay.phone(str(number))
            phone.answers = False  # a pong would end up inside the frame
            phone.send(first)
            self.relay.advance(29.875)
            self.assertIsNone(phone.closed, repr(first))
            self.relay.advance(0.25)
            self.assertEqual(phone.closed, (1008, "message not completed in time"), repr(first))

    def test_dribble_does_not_help(self) -> None:
        """Bytes and fragments that keep coming do not put the deadline off."""
        for dribble in (lambda: b'"'[:0] + frame(0, b"x", fin=False), lambda: frame(9)):
            phone = self.begun(frame(1, b'"', fin=False))
            for _ in range(29):
                self.relay.advance(1)
                phone.send(dribble())
                self.assertIsNone(phone.closed)
            self.relay.advance(1.125)
            self.assertEqual((phone.closed or (0,))[0], 1008)
            self.relay.advance(31)
            self.relay.peers[-2].reset()
            self.relay.advance(31)

    def test_completed_in_time(self) -> None:
        """A message that ends just in time is delivered."""
        binary, phone = self.relay.pair()
        phone.send(frame(1, b'"a', fin=False))
        self.relay.advance(29.875)
        phone.send(frame(0, b'b"'))
        self.relay.advance(5)
        self.assertIsNone(phone.closed)
        self.assertEqual(binary.data_from(phone), ["ab"])

    def test_not_across_messages(self) -> None:
        """Each message has its own 30 s, though every packet ends one and begins the next."""
        binary, phone = self.relay.pair()
        whole = frame(1, b'"0123456789"')
        phone.answers = False
        phone.send(whole[:4])
        for _ in range(6):
            self.relay.advance(20)
            phone.send(whole[4:] + whole[:4])
            self.assertIsNone(phone.closed)
        self.assertEqual(len(binary.data_from(phone)), 6)
        self.relay.advance(30.125)
        self.assertEqual((phone.closed or (0,))[0], 1008)

    def test_later_message_has_its_full_time(self) -> None:
        """A message begun shortly after another ended has its own 30 s."""
        _, phone = self.relay.pair()
        phone.send(frame(1, b'"', fin=False))
        self.relay.advance(29)
        phone.send(frame(0, b'"'))
        phone.send(frame(1, b'"', fin=False))
        self.relay.advance(29.875)
        self.assertIsNone(phone.closed)
        self.relay.advance(0.25)
        self.assertEqual((phone.closed or (0,))[0], 1008)

    def test_control_frame_in_two_parts(self) -> None:
        """A ping cut in two, once whole, takes nothing off the time of the next message."""
        _, phone = self.relay.pair()
        phone.answers = False
        ping = frame(9, b"abc")
        phone.send(ping[:4])
        self.relay.advance(20)
        phone.send(ping[4:])
        phone.send(frame(1, b'"', fin=False))
        self.relay.advance(29.875)
        self.assertIsNone(phone.closed)
        self.relay.advance(0.25)
        self.assertEqual((phone.closed or (0,))[0], 1008)

    def test_idle_between_messages(self) -> None:
        """Between messages a connection may idle for ever."""
        binary, phone = self.relay.pair()
        phone.text("1")
        self.relay.advance(3600)
        phone.text("2")
        self.assertEqual(binary.data_from(phone), [1, 2])

    def test_times_that_round(self) -> None:
        """A deadline at a time that has no exact number ends, though the clock stands meanwhile."""
        for _ in range(40):
            self.relay.advance(0.1)
            binary = self.relay.binary(str(self.relay.now))
            binary.answers = False
            binary.send(frame(1, b"{", fin=False))
            self.relay.advance(7.3)
            binary.send(frame(0, b"}"))
            binary.send(frame(1, b"{", fin=False))
            self.relay.advance(31.3)
            self.assertEqual(binary.closed, (1008, "message not completed in time"))

    def test_not_while_reading_is_paused(self) -> None:
        """The time of a message that has begun rests while its sender is not read."""
        _, phone = self.relay.pair()
        phone.answers = False
        phone.send(frame(1, b'"', fin=False))
        side = self.relay.server_side(phone)
        side.pause_reading()
        self.relay.advance(100)
        self.assertIsNone(phone.closed)
        side.resume_reading()
        self.relay.advance(26)
        self.assertIsNone(phone.closed)
        self.relay.advance(5)
        self.assertEqual((phone.closed or (0,))[0], 1008)

    def test_not_while_unread(self) -> None:
        """The deadline rests while the phone is not being read, and starts anew after."""
        binary, phone = self.relay.pair()
        phone.answers = False
        binary.stop_reading()
        part = frame(1, b'"' + b"x" * 3_000 + b'"')
        count = 0
        while not phone.socket.inbound:
            phone.send(frame(1, b'"' + b"x" * 60_000 + b'"'))
            count += 1
        phone.send(part[:2_000])
        for _ in range(30):
            self.relay.advance(2)
            binary.socket.window = 100
            binary.read(100)
        self.assertIsNone(phone.closed)
        binary.resume_reading()
        self.relay.advance(29)
        self.assertIsNone(phone.closed)
        phone.send(part[2_000:])
        self.assertEqual(len(binary.data_from(phone)), count + 1)
