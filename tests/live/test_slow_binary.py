"""Binaries that read slowly, not at all, or are away: what happens to what phones send."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict

from pyrycode_relay.events import Event
from pyrycode_relay.limits import OnReclaim
from pyrycode_relay.protocol.close_codes import EndCause
from tests.live.harness import Peer, Relay, RelayCase, round_trip
from tests.peers.blocking import Gone
from tests.peers.envelopes import envelope, numbered

HOLD = 65_536
SIZE = 4096
READ = 65_536
"""What one read of a socket can bring, on top of a hold that is nearly full."""

Numbers = dict[str, list[int]]
"""Of each phone, by its conn_id, the numbers of the frames that arrived, in order."""


def say_all(phone: Peer, count: int) -> None:
    """Send ``count`` numbered frames; blocks for as long as the relay does not read."""
    for number in range(count):
        phone.send(numbered(phone.conn_id, number, SIZE))


def note(numbers: Numbers, message: bytes) -> None:
    """Take note of a data envelope that a binary has got."""
    got = json.loads(message)
    frame = got["frame"]
    if frame["from"] != got["conn_id"]:
        raise AssertionError(f"a frame of {frame['from']} came as one of {got['conn_id']}")
    numbers[got["conn_id"]].append(frame["n"])


def read_until_last(binary: Peer, phones: int, last: int) -> Numbers:
    """Return what arrives until frame ``last`` of every phone has."""
    numbers: Numbers = defaultdict(list)
    while sum(seen[-1] == last for seen in numbers.values()) < phones:
        note(numbers, binary.message())
    return numbers


class SlowBinaryOverTcp(RelayCase):
    """Binaries on TCP."""

    def held_at_most(self, phones: int) -> int:
        """Return what the queues of a slot may come to: budgets, and a read for each phone."""
        overhead = 1 + 64 / SIZE
        return int(phones * (HOLD + (READ + SIZE) * overhead))

    async def full(self, relay: Relay, phones: int) -> None:
        """Wait until every phone's hold is full, so that its socket is not read."""
        await self.until(lambda: relay.queued >= phones * HOLD, "full holds")

    async def test_stalled_binary_is_dropped_and_loses_nothing_held(self) -> None:
        """A binary that stops reading has its phones not read, within their budgets and with
        no harm to another server-id; at the write stall it is dropped and grace starts; under
        keep the next binary gets all that was held, once and in order."""
        relay = self.relay(
            hold_bytes=HOLD,
            write_stall=2.0,
            close_timeout=0.5,
            send_buffer=16_384,
            on_reclaim=OnReclaim.KEEP,
        )
        count = 400
        stalled = await self.binary(relay, receive_buffer=16_384)
        phones = [await self.phone(relay) for _ in range(3)]
        other_binary = await self.binary(relay, "other")
        other_phone = await self.phone(relay, "other")
        saying = [self.in_thread(say_all, phone, count) for phone in phones]
        await self.full(relay, len(phones))
        self.assertFalse(relay.recorder.of(Event.SERVER_RELEASED))
        for number in range(20):
            await self.in_thread(round_trip, other_phone, other_binary, number)

        await self.until(lambda: relay.recorder.of(Event.SERVER_RELEASED), "the drop")
        [released] = relay.recorder.of(Event.SERVER_RELEASED)
        self.assertEqual("s", released["server_id"])
        self.assertEqual(
            (1011, EndCause.BINARY_WRITE_STALLED), (released["close_code"], released["reason"])
        )
        self.assertEqual((1, 4), relay.counts())
        self.assertLessEqual(relay.queued_at_most, self.held_at_most(len(phones)))

        old: Numbers = defaultdict(list)

        def read_what_the_old_one_got() -> None:
            # A close frame behind it, a reset in the middle of it: all is well.
            with contextlib.suppress(Gone, AssertionError):
                while True:
                    note(old, stalled.message())

        await self.until(lambda: relay.service.context.registry.in_grace == 1, "grace")
        await self.in_thread(read_what_the_old_one_got)
        new = await self.binary(relay)
        numbers = await self.in_thread(read_until_last, new, len(phones), count - 1)
        for each in saying:
            await each
        self.assertEqual({phone.conn_id for phone in phones}, set(numbers))
        for conn_id, seen in numbers.items():
            self.assertEqual(list(range(seen[0], count)), seen, "not in order, or not all")
            self.assertEqual(list(range(len(old[conn_id]))), old[conn_id])
            self.assertGreaterEqual(seen[0], len(old[conn_id]), "doubled")
        lost = sum(seen[0] - len(old[phone]) for phone, seen in numbers.items())
        self.assertLess(lost * SIZE, 512 * 1024, "more than buffers can have")
        await self.until(lambda: relay.queued == 0, "empty queues")
        await self.in_thread(round_trip, phones[0], new, 0)

    async def test_evicting_reclaim_after_a_stall(self) -> None:
        """Under evict, phones whose sockets are not read because their binary stalls are
        closed 4404 when the next one comes, and what they sent is dropped."""
        relay = self.relay(hold_bytes=HOLD, write_stall=1.0, close_timeout=0.5, send_buffer=16_384)
        await self.binary(relay, receive_buffer=16_384)
        phones = [await self.phone(relay) for _ in range(2)]
        count = 100

        def say_and_listen(phone: Peer) -> tuple[int, str]:
            with contextlib.suppress(OSError):
                say_all(phone, count)
            return phone.closed_with()

        listening = [self.in_thread(say_and_listen, phone) for phone in phones]
        await self.full(relay, len(phones))
        await self.until(lambda: relay.recorder.of(Event.SERVER_RELEASED), "the drop")
        self.assertGreater(relay.queued, 0)
        new = await self.binary(relay)
        for each in listening:
            self.assertEqual((4404, "binary reclaimed server-id"), await each)
        self.assertEqual(0, relay.queued)
        self.assertEqual((1, 0), relay.counts())
        phone = await self.phone(relay)
        await self.in_thread(round_trip, phone, new, 0)

    async def test_binary_that_resumes_in_time_gets_everything(self) -> None:
        """A binary that stops reading, and begins again before the write stall, gets every
        frame of every phone once and in order, also what had to wait in the phones' kernels."""
        relay = self.relay(hold_bytes=HOLD, write_stall=10.0, send_buffer=16_384)
        count = 300
        binary = await self.binary(relay, receive_buffer=16_384)
        phones = [await self.phone(relay) for _ in range(4)]
        saying = [self.in_thread(say_all, phone, count) for phone in phones]
        await self.full(relay, len(phones))
        numbers = await self.in_thread(read_until_last, binary, len(phones), count - 1)
        for each in saying:
            await each
        self.assertEqual({phone.conn_id: list(range(count)) for phone in phones}, dict(numbers))
        self.assertLessEqual(relay.queued_at_most, self.held_at_most(len(phones)))
        self.assertEqual([], relay.recorder.of(Event.SERVER_RELEASED))
        await self.until(lambda: relay.queued == 0, "empty queues")
        await self.in_thread(round_trip, phones[0], binary, 0)

    async def test_held_frames_go_out_phone_by_phone_in_turn(self) -> None:
        """What is held goes out one frame a phone in turn, so that no phone's backlog stands
        before another's frame."""
        relay = self.relay(write_stall=10.0, send_buffer=16_384)
        binary = await self.binary(relay, receive_buffer=16_384)
        plug = await self.phone(relay)
        phones = [await self.phone(relay) for _ in range(3)]
        plugs = 0
        while not relay.queued:
            # A frame larger than what the transport takes: one at last has to be held.
            await self.in_thread(plug.send, numbered(plug.conn_id, plugs, 100_000))
            plugs += 1
            self.assertLess(plugs, 50, "the binary's connection takes everything")
            await self.in_thread(plug.send, b"", 9)
            await self.in_thread(plug.frame)  # the pong: the relay has read what was before it
        before = relay.queued
        for phone in phones:
            await self.in_thread(say_all, phone, 20)
        await self.until(lambda: relay.queued - before >= 60 * SIZE, "the frames")
        await self.until(lambda: relay.queued - before >= 60 * (SIZE + 64), "all frames")

        received = await self.in_thread(binary.messages, plugs + 60)
        order = [
            (got["conn_id"], got["frame"]["n"])
            for got in map(json.loads, received)
            if got["conn_id"] != plug.conn_id
        ]
        expected = [(phone.conn_id, number) for number in range(20) for phone in phones]
        self.assertEqual(expected, order)

    async def test_grace_loses_nothing_under_keep(self) -> None:
        """What phones send while no binary is there, far beyond what is held in memory, is
        all delivered to the next binary, once and in order, before anything newer."""
        relay = self.relay(hold_bytes=HOLD, on_reclaim=OnReclaim.KEEP)
        binary = await self.binary(relay)
        phones = [await self.phone(relay) for _ in range(3)]
        await self.in_thread(round_trip, phones[0], binary, 0)
        await self.in_thread(binary.release)
        await self.until(lambda: relay.counts() == (0, 3), "grace")
        count = 500
        saying = [self.in_thread(say_all, phone, count) for phone in phones]
        await self.full(relay, len(phones))
        self.assertLessEqual(relay.queued_at_most, self.held_at_most(len(phones)))
        new = await self.binary(relay)
        numbers = await self.in_thread(read_until_last, new, len(phones), count - 1)
        self.assertEqual({phone.conn_id: list(range(count)) for phone in phones}, dict(numbers))
        for each in saying:
            await each
        for phone in phones:
            await self.in_thread(round_trip, phone, new, 1)

    async def test_slow_phone_does_not_slow_its_binary(self) -> None:
        """While one phone reads nothing, the binary's frames for the other go through at once,
        for the relay goes on reading the binary."""
        relay = self.relay(write_stall=10.0, send_buffer=16_384)
        binary = await self.binary(relay)
        stopped = await self.phone(relay, receive_buffer=16_384)
        quick = await self.phone(relay)
        for number in range(200):
            frame = numbered("binary", number, 8192)
            await self.in_thread(binary.send, envelope(stopped.conn_id, frame))
            await self.in_thread(binary.send, envelope(quick.conn_id, frame))
            self.assertEqual(frame, await self.in_thread(quick.message))
        self.assertGreater(relay.queued, 1 << 20)


class SlowBinaryOverUnix(SlowBinaryOverTcp):
    """The same on a UNIX socket, whose kernel buffers work in another way."""

    unix = True
