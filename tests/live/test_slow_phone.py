"""Phones that read slowly or not at all: what it costs them, and that it costs no one else."""

from __future__ import annotations

import time

from pyrycode_relay.events import Event
from pyrycode_relay.protocol.close_codes import EndCause
from tests.live.harness import Peer, RelayCase, resident_bytes, round_trip
from tests.peers.blocking import Gone
from tests.peers.envelopes import envelope, numbered

STALL = 1.0
MIB = 1 << 20
MESSAGE = 262_144


class SlowPhoneOverTcp(RelayCase):
    """Phones on TCP."""

    large_buffer_stall = STALL
    """Below what a default send buffer needs at 60 KiB/s to take more, above what a peer's
    kernel needs to report what was read."""

    def _trips_until_stopped(self, phone: Peer, binary: Peer) -> int:
        """Make round trips until told to stop; return how many there were."""
        number = 0
        while not self.stop.is_set():
            round_trip(phone, binary, number)
            number += 1
        return number

    async def test_slow_but_steady_reader_stays(self) -> None:
        """A phone that takes longer than the write stall for one message, but never stops
        reading, gets every byte in order, while a sibling's round trips go on."""
        relay = self.relay(write_stall=STALL, send_buffer=16_384)
        binary = await self.binary(relay)
        slow = await self.phone(relay, receive_buffer=16_384)
        sibling = await self.phone(relay)
        frames = [numbered("binary", number, MESSAGE - 200) for number in range(2)]
        for frame in frames:
            await self.in_thread(binary.send, envelope(slow.conn_id, frame))

        started = time.monotonic()
        reading = self.in_thread(slow.read_slowly, len(frames) * (MESSAGE - 200), 8192, 0.05)
        trips = self.in_thread(self._trips_until_stopped, sibling, binary)
        await reading
        took = time.monotonic() - started
        self.stop.set()
        self.assertGreater(await trips, 10, "the sibling had to wait")

        self.assertGreater(took / len(frames), STALL, "too quick to prove anything")
        self.assertEqual(frames, await self.in_thread(slow.messages, len(frames)))
        self.assertEqual((1, 2), relay.counts())
        self.assertEqual([], relay.recorder.of(Event.PHONE_UNREGISTERED))
        await self.in_thread(round_trip, slow, binary, 0)

    async def test_slow_reader_with_a_large_kernel_buffer_stays(self) -> None:
        """That the phone reads counts as progress also while the kernel, with a large buffer of
        its own, takes no more from the relay."""
        relay = self.relay(write_stall=self.large_buffer_stall)
        binary = await self.binary(relay)
        slow = await self.phone(relay, receive_buffer=16_384)
        frames = [numbered("binary", number, 200_000) for number in range(6)]
        for frame in frames:
            await self.in_thread(binary.send, envelope(slow.conn_id, frame))
        await self.until(lambda: relay.queued > 200_000, "the backlog")
        # A few KiB every 100 ms, for three times the write stall.
        pieces = int(3 * self.large_buffer_stall / 0.1)
        await self.in_thread(slow.read_slowly, pieces * 6144, 6144, 0.1)
        self.assertGreater(relay.queued, 200_000, "too much was read to prove anything")
        self.assertEqual(frames, await self.in_thread(slow.messages, len(frames)))
        self.assertEqual((1, 1), relay.counts())

    def _flood(self, binary: Peer, victim: str, sibling: Peer) -> tuple[int, list[int]]:
        """Send 100 MiB to ``victim``, with a sibling's round trips all along.

        Return how many round trips there were, and the codes of the victim's close notices.
        """
        frame = envelope(victim, numbered("binary", 0, MESSAGE))
        notices: list[int] = []
        trips = 0
        for number in range(100 * MIB // MESSAGE):
            binary.send(frame)
            if number % 8:
                continue
            question = numbered("sibling", trips)
            sibling.send(question)
            while True:
                got = binary.envelope()
                if got["conn_id"] == sibling.conn_id:
                    break
                if got["conn_id"] != victim or "frame" in got:
                    raise AssertionError(f"unexpected: {got!r}")
                notices.append(got["close_code"])
            binary.send(envelope(sibling.conn_id, question))
            if sibling.message() != question:
                raise AssertionError("the sibling got something else")
            trips += 1
        return trips, notices

    async def test_stopped_reader_costs_only_itself(self) -> None:
        """A phone that stops reading while 100 MiB come for it is closed 1011, memory stays
        bounded, and neither its sibling nor its binary notices more than a close notice."""
        relay = self.relay(outbox_bytes=4 * MIB)
        limits = relay.service.settings.limits
        binary = await self.binary(relay)
        stopped = await self.phone(relay, receive_buffer=16_384)
        sibling = await self.phone(relay)
        before = most = resident_bytes()
        flooding = self.in_thread(self._flood, binary, stopped.conn_id, sibling)
        while not flooding.called:
            most = max(most, resident_bytes())
            await self.wait(0.01)
        trips, notices = await flooding

        self.assertEqual(50, trips)
        self.assertEqual([1011], notices)
        [ended] = relay.recorder.of(Event.PHONE_UNREGISTERED)
        self.assertEqual(
            (stopped.conn_id, 1011, EndCause.PHONE_BACKLOG_FULL),
            (ended["conn_id"], ended["close_code"], ended["reason"]),
        )
        self.assertLessEqual(relay.queued_at_most, limits.outbox_bytes + MESSAGE + 64)
        self.assertGreater(relay.queued_at_most, limits.outbox_bytes - 2 * MESSAGE)
        self.assertLess(most - before, 48 * MIB)
        self.assertEqual((1, 1), relay.counts())
        await self.in_thread(round_trip, sibling, binary, 0)

    async def test_phone_that_reads_nothing_is_closed_at_the_write_stall(self) -> None:
        """A backlog within the budget of which nothing is taken for the write stall's time
        closes the phone 1011, and frees what it held."""
        relay = self.relay(write_stall=STALL, close_timeout=0.5, send_buffer=16_384)
        binary = await self.binary(relay)
        stopped = await self.phone(relay, receive_buffer=16_384)
        sibling = await self.phone(relay)
        for number in range(4):
            frame = numbered("binary", number, MESSAGE)
            await self.in_thread(binary.send, envelope(stopped.conn_id, frame))
        await self.until(lambda: relay.queued > MESSAGE, "the backlog")
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": stopped.conn_id, "close_code": 1011}, notice)
        [ended] = relay.recorder.of(Event.PHONE_UNREGISTERED)
        self.assertIs(EndCause.PHONE_WRITE_STALLED, ended["reason"])
        await self.until(lambda: relay.queued == 0, "the backlog's end")
        await self.in_thread(round_trip, sibling, binary, 0)
        self.assertEqual((1, 1), relay.counts())

    async def test_phone_that_resumes_in_time_gets_the_backlog(self) -> None:
        """A phone that stops reading, and begins again before the write stall, gets all that
        was queued for it, once and in order."""
        relay = self.relay(write_stall=8.0, send_buffer=16_384)
        binary = await self.binary(relay)
        phone = await self.phone(relay, receive_buffer=16_384)
        frames = [numbered("binary", number, 40 * (number % 200)) for number in range(600)]
        for frame in frames:
            await self.in_thread(binary.send, envelope(phone.conn_id, frame))
        await self.until(lambda: relay.queued > MIB, "the backlog")
        self.assertEqual(frames, await self.in_thread(phone.messages, len(frames)))
        await self.until(lambda: relay.queued == 0, "the backlog's end")

    async def test_nothing_follows_the_answer_to_a_close(self) -> None:
        """A phone that says goodbye with a backlog waiting gets a close frame as the last
        thing, and then the end of the stream; its binary gets the phone's code."""
        relay = self.relay(send_buffer=16_384, close_timeout=10.0)
        binary = await self.binary(relay)
        phone = await self.phone(relay, receive_buffer=16_384)
        for number in range(8):
            frame = numbered("binary", number, MESSAGE)
            await self.in_thread(binary.send, envelope(phone.conn_id, frame))
        await self.until(lambda: relay.queued > MIB, "the backlog")
        await self.in_thread(phone.say_close, 4001)
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 4001}, notice)
        messages, code, _ = await self.in_thread(phone.closing, False)
        self.assertEqual(4001, code)
        self.assertEqual([numbered("binary", n, MESSAGE) for n in range(len(messages))], messages)
        with self.assertRaises(Gone) as caught:
            frame_after = await self.in_thread(phone.frame)
            self.fail(f"a frame of opcode {frame_after.opcode} after the close frame")
        self.assertFalse(caught.exception.reset, "aborted, not closed")


class SlowPhoneOverUnix(SlowPhoneOverTcp):
    """The same on a UNIX socket, whose kernel buffers work in another way."""

    unix = True
    large_buffer_stall = 2 * STALL
