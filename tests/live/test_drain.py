"""Stopping: what is queued arrives, everyone is told, and it ends in time whatever peers do."""

from __future__ import annotations

import os
import time
from typing import Any, cast

from twisted.internet.defer import Deferred

from pyrycode_relay.endpoints.phone import PhoneProtocol
from pyrycode_relay.events import Event
from pyrycode_relay.tally import FRAME
from tests.live.harness import Peer, Relay, RelayCase, server_end
from tests.peers.blocking import Gone
from tests.peers.envelopes import envelope, numbered
from tests.peers.frames import PING, PONG, text_frame
from tests.peers.requests import phone_fields, upgrade_request

GONE = (1001, "shutting down")
SPARE = 5.0
"""Seconds that a loaded machine may take on top of a deadline."""


class Draining(RelayCase):
    """What the peers of a relay that stops get."""

    def stop_relay(self, relay: Relay) -> Deferred[Any]:
        """Begin to stop a relay; the result fires at the end of the drain."""
        stopping: Deferred[Any] = relay.service.stopService()
        # Waited for at the end of the test too, whatever becomes of it.
        self._threads.append(stopping)
        return stopping

    async def assert_ended(self, relay: Relay, stopping: Deferred[Any], started: float) -> None:
        """Wait for the end of the drain, and see that it came in time and left nothing."""
        await stopping
        took = time.monotonic() - started
        self.assertLess(took, relay.service.settings.limits.drain_timeout + SPARE)
        self.assertEqual((0, 0), relay.counts())
        self.assertEqual(0, relay.queued)
        self.assertEqual(1, len(relay.recorder.of(Event.DRAINED)))

    async def all_read(self, phone: Peer) -> None:
        """Wait until the relay has read what a phone has sent so far: it answers a ping."""
        await self.in_thread(phone.send, b"", PING)
        self.assertEqual(PONG, (await self.in_thread(phone.frame)).opcode)

    async def test_idle_peers_are_told_to_go(self) -> None:
        """Every binary and phone gets 1001 `shutting down`, a binary after the notices of its
        phones, and the relay has stopped long before the drain timeout."""
        relay = self.relay(drain_timeout=60.0)
        binary = await self.binary(relay)
        phones = [await self.phone(relay) for _ in range(4)]
        other = await self.binary(relay, "other")
        closings = [self.in_thread(peer.closing) for peer in (*phones, other)]
        own = self.in_thread(binary.closing)
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        for each in closings:
            self.assertEqual(([], *GONE), await each)
        before, *closed = await own
        self.assertEqual(GONE, tuple(closed))
        expected = {
            b'{"conn_id":"%s","close_code":1001}' % phone.conn_id.encode() for phone in phones
        }
        self.assertEqual(expected, set(before))
        self.assertEqual(len(phones), len(before))
        await self.assert_ended(relay, stopping, started)
        self.assertLess(time.monotonic() - started, 30)

    async def test_backlogs_arrive_before_the_goodbye(self) -> None:
        """What waits for a phone and for a binary, both slow until then, arrives whole and in
        order, and then 1001."""
        relay = self.relay(close_timeout=20.0, drain_timeout=30.0, send_buffer=16_384)
        binary = await self.binary(relay, receive_buffer=16_384)
        phone = await self.phone(relay, receive_buffer=16_384)
        talker = await self.phone(relay)
        to_phone = [numbered("binary", number, 20_000) for number in range(60)]
        for frame in to_phone:
            await self.in_thread(binary.send, envelope(phone.conn_id, frame))
        await self.until(lambda: relay.queued > 500_000, "the phone's backlog")
        queued = relay.queued
        to_binary = [numbered(talker.conn_id, number, 20_000) for number in range(45)]
        await self.in_thread(talker.write, b"".join(map(text_frame, to_binary)))
        await self.all_read(talker)
        self.assertGreater(relay.queued, queued + 500_000)

        started = time.monotonic()
        stopping = self.stop_relay(relay)
        listening = self.in_thread(phone.closing)
        talking = self.in_thread(talker.closing)
        messages, *closed = await self.in_thread(binary.closing)
        self.assertEqual(GONE, tuple(closed))
        self.assertTrue((to_phone, *GONE) == await listening, "not what was sent")
        self.assertEqual(([], *GONE), await talking)
        data = [message for message in messages if b'"frame":' in message]
        expected = [envelope(talker.conn_id, frame) for frame in to_binary]
        self.assertTrue(expected == data, f"{len(data)} of {len(expected)}, or not in order")
        notices = [message for message in messages if b'"frame":' not in message]
        self.assertEqual(2, len(notices))
        self.assertLess(messages.index(data[-1]), messages.index(notices[-1]))
        await self.assert_ended(relay, stopping, started)

    async def test_busy_peers_go_in_time(self) -> None:
        """Phones and a binary that never stop talking get their close anyway."""
        relay = self.relay(close_timeout=0.5)
        binary = await self.binary(relay)
        phones = [await self.phone(relay) for _ in range(3)]

        def talk(peer: Peer) -> None:
            number = 0
            try:
                while not self.stop.is_set():
                    peer.send(numbered(peer.conn_id, number, 2000))
                    number += 1
            except OSError:
                pass  # told to go

        talking = [self.in_thread(talk, phone) for phone in phones]
        listening = self.in_thread(binary.closing)
        for phone in phones:
            ended = server_end(phone)
            await self.until(lambda: cast(PhoneProtocol, ended).traffic > 10 * FRAME, "talk")  # noqa: B023
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        self.assertEqual(GONE, tuple((await listening)[1:]))
        await self.assert_ended(relay, stopping, started)
        for each in talking:
            await each

    async def test_peers_that_do_nothing_do_not_hold_it_up(self) -> None:
        """Peers that do not read what is queued for them, and peers that never answer a close,
        are dropped at a deadline, and those that can read get what they should."""
        relay = self.relay(close_timeout=60.0, drain_timeout=1.5)
        binary = await self.binary(relay)
        stopped = await self.phone(relay, receive_buffer=16_384)
        mute = await self.phone(relay)
        half = await self.phone(relay)
        await self.in_thread(half.write, text_frame(numbered("half", 0, 500))[:100])
        for number in range(12):
            frame = numbered("binary", number, 250_000)
            await self.in_thread(binary.send, envelope(stopped.conn_id, frame))
        await self.until(lambda: relay.queued > 1 << 20, "the backlog")
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        self.assertEqual(GONE, tuple((await self.in_thread(mute.closing, False))[1:]))
        self.assertEqual(GONE, tuple((await self.in_thread(half.closing, False))[1:]))
        self.assertEqual(GONE, tuple((await self.in_thread(binary.closing, False))[1:]))
        await self.assert_ended(relay, stopping, started)
        for peer in (mute, half, binary):
            with self.assertRaises(Gone):
                await self.in_thread(peer.frame)

    async def test_stalled_binary_with_held_frames_does_not_hold_it_up(self) -> None:
        """A binary that reads nothing, with frames held for it, is dropped at the deadline."""
        relay = self.relay(drain_timeout=1.5, close_timeout=60.0, send_buffer=16_384)
        await self.binary(relay, receive_buffer=16_384)
        talker = await self.phone(relay)
        frames = [numbered("talker", number, 20_000) for number in range(60)]
        await self.in_thread(talker.write, b"".join(map(text_frame, frames)))
        await self.until(lambda: relay.queued > 500_000, "the backlog")
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        self.assertEqual(GONE, tuple((await self.in_thread(talker.closing))[1:]))
        await self.assert_ended(relay, stopping, started)

    async def test_phones_in_grace_are_told_to_go(self) -> None:
        """Phones whose binary is away get 1001 too, and no grace timer stays behind."""
        relay = self.relay(grace=60.0)
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        await self.in_thread(binary.reset)
        await self.until(lambda: relay.counts() == (0, 1), "grace")
        await self.in_thread(phone.send, b'"held"')
        await self.until(lambda: relay.queued, "the held frame")
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        self.assertEqual(GONE, await self.in_thread(phone.closed_with))
        await self.assert_ended(relay, stopping, started)

    async def test_nobody_new_comes_in(self) -> None:
        """While the drain lasts, new connections are refused, on TCP and on the UNIX socket,
        and a request that had begun before ends without an answer or with a 503."""
        relay = self.relay(drain_timeout=2.0, close_timeout=60.0, header_timeout=60.0)
        mute = await self.phone_of_a_binary(relay)
        head = upgrade_request("/v1/client", phone_fields("s"))
        begun, silent = await self.dial(relay), await self.dial(relay)
        await self.in_thread(begun.write, head[:-2])
        await self.until(lambda: len(relay.service.site.channels) == 2, "the channels")
        events = len(relay.recorder.of(Event.PHONE_REGISTERED))

        started = time.monotonic()
        stopping = self.stop_relay(relay)
        for unix in (False, True):
            await self.in_thread(self.dial_until_refused, relay, unix)
        for peer in (begun, silent):
            answer = await self.in_thread(peer.read_to_end)
            self.assertIn(answer.split(b"\r\n")[0], {b"", b"HTTP/1.1 503 Service Unavailable"})
        self.assertFalse(stopping.called, "it was over before it could be looked at")
        self.assertEqual(GONE, tuple((await self.in_thread(mute.closing, False))[1:]))
        await self.assert_ended(relay, stopping, started)
        self.assertEqual(events, len(relay.recorder.of(Event.PHONE_REGISTERED)))

    def dial_until_refused(self, relay: Relay, unix: bool) -> None:
        """Dial until no one listens, which is a moment after the drain has begun."""
        for _ in range(100):
            try:
                peer = relay.dial(unix=unix)
            except (ConnectionRefusedError, FileNotFoundError):
                return
            answer = peer.read_to_end()
            peer.release()
            if answer:
                raise AssertionError(f"someone answers: {answer!r}")
        raise AssertionError("someone listens still")

    async def phone_of_a_binary(self, relay: Relay) -> Peer:
        """Return a phone, with a binary behind it."""
        await self.binary(relay)
        return await self.phone(relay)

    async def test_a_listener_that_cannot_be_closed_cleanly(self) -> None:
        """A UNIX socket whose file someone has removed does not keep the drain from taking
        its course: peers are told to go, and the end is waited for."""
        relay = self.relay(drain_timeout=2.0)
        phone = await self.phone_of_a_binary(relay)
        os.unlink(relay.path)
        started = time.monotonic()
        stopping = self.stop_relay(relay)
        self.assertEqual(GONE, await self.in_thread(phone.closed_with))
        await self.assert_ended(relay, stopping, started)
        self.flushLoggedErrors(FileNotFoundError)  # it may be told of, or not

    async def test_stop_with_nobody_there(self) -> None:
        """A relay without peers stops at once."""
        relay = self.relay(drain_timeout=60.0)
        started = time.monotonic()
        await self.assert_ended(relay, self.stop_relay(relay), started)
        self.assertLess(time.monotonic() - started, 30)
