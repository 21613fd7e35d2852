"""Queues take as much memory as the relay accounts for, whatever message an item came in.

Each test fills a queue in a way that a peer can choose. It then compares what the process has
allocated with what the relay accounts for.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import ClassVar

from pyrycode_relay.limits import OnReclaim
from tests.peers.frames import frame
from tests.unit.bench import Cases, cases
from tests.wire.harness import Binary, Client, Relay

FACTOR = 1.2
"""By how much what is allocated may exceed what is accounted for."""

FIXED = 4_096
"""Bytes that may be allocated in addition for each connection."""

Cut = Callable[[bytes], list[bytes]]
"""Cuts what a peer sends into the pieces in which it arrives."""


def whole(data: bytes) -> list[bytes]:
    """Everything arrives at once."""
    return [data]


def in_parts(data: bytes) -> list[bytes]:
    """A message arrives in pieces that make a buffer grow again and again."""
    size = max(9, len(data) // 50)
    return [data[at : at + size] for at in range(0, len(data), size)]


def fragments(message: bytes) -> bytes:
    """Return a message as ten fragments."""
    size = -(-len(message) // 10)
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    last = len(parts) - 1
    return b"".join(
        frame(0 if number else 1, part, fin=number == last) for number, part in enumerate(parts)
    )


SIZES = (1, 2, 20, 100, 256, 1_000, 4_000, 20_000, 100_000, 262_144)


def json_text(size: int) -> bytes:
    """Return a JSON value of ``size`` bytes."""
    return b"7" if size == 1 else b'"' + b"x" * (size - 2) + b'"'


class Measured:
    """How much has been allocated, and how much is accounted for, since the beginning."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        gc.collect()
        tracemalloc.start()
        self.before = tracemalloc.get_traced_memory()[0]
        self._accounted = relay.queued

    @property
    def accounted(self) -> int:
        return self._relay.queued - self._accounted

    @property
    def allocated(self) -> int:
        """What is allocated now. What waits for the garbage collector does not count."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self.before

    @property
    def peak(self) -> int:
        """The most that was allocated."""
        return tracemalloc.get_traced_memory()[1] - self.before


class MemoryTest(Cases):
    """A relay with limits that are in nobody's way."""

    factor = FACTOR

    def setUp(self) -> None:
        self.relay = self.new_relay()
        self.addCleanup(tracemalloc.stop)

    def new_relay(self, on_reclaim: OnReclaim = OnReclaim.KEEP) -> Relay:
        relay = Relay(
            None,
            on_reclaim=on_reclaim,
            outbox_bytes=1 << 30,
            hold_bytes=1 << 26,
            memory_budget=1 << 30,
            max_phones=1_000,
            grace=10_000,
        ).start()
        self.addCleanup(relay.service.stopService)
        return relay

    def send(self, peer: Client, data: bytes, cut: Cut = whole) -> None:
        for piece in cut(data):
            peer.send(piece)

    def see(self, measured: Measured, at_least: int, connections: int = 1) -> None:
        """Compare what is allocated with what is accounted for, which is at least ``at_least``."""
        allocated, accounted = measured.allocated, measured.accounted
        self.assertGreaterEqual(accounted, at_least)
        self.assertLessEqual(allocated, self.factor * accounted + FIXED * connections)


class OutboxTest(MemoryTest):
    """What waits for a phone that does not read."""

    def stuck(self) -> tuple[Binary, Client]:
        """Return a pair whose phone takes nothing more at all."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.send(self.envelope(phone, json_text(70_000)))
        self.assertGreater(self.relay.queued, 70_000)
        return binary, phone

    def envelope(
        self, phone: Client, text: bytes, before: bytes = b"", after: bytes = b""
    ) -> bytes:
        return frame(1, self.message(phone, text, before, after))

    def message(self, phone: Client, text: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
        conn_id = phone.conn_id.encode()
        return b'{%s"conn_id":"%s","frame":%s%s}' % (before, conn_id, text, after)

    @cases({str(size): (size,) for size in SIZES})
    def test_frames(self, size: int) -> None:
        """Frames of one size."""
        binary, phone = self.stuck()
        data = self.envelope(phone, json_text(size))
        count = max(3, 100_000 // (size + 64))
        measured = Measured(self.relay)
        for _ in range(count):
            binary.send(data)
        self.see(measured, count * (size + 64))

    @cases({"parts": (in_parts,), "whole": (whole,)})
    def test_what_stands_beside_them(self, cut: Cut) -> None:
        """Whatever else an envelope has, before the frame or behind it, is not kept."""
        binary, phone = self.stuck()
        junk, less = (b'"x":"' + b"x" * size + b'"' for size in (250_000, 220_000))
        datas = [
            self.envelope(phone, json_text(1), before=junk + b","),
            self.envelope(phone, json_text(1), after=b"," + junk),
            self.envelope(phone, json_text(20_000), after=b"," + less),
        ]
        measured = Measured(self.relay)
        for _ in range(10):
            for data in datas:
                self.send(binary, data, cut)
        self.see(measured, 30 * 65)

    def test_fragments(self) -> None:
        """Messages that come in fragments."""
        binary, phone = self.stuck()
        for size in (100, 20_000, 200_000):
            data = fragments(self.message(phone, json_text(size)))
            count = max(3, 100_000 // (size + 64))
            measured = Measured(self.relay)
            for _ in range(count):
                binary.send(data)
            self.see(measured, count * (size + 64))

    def test_given_to_the_transport(self) -> None:
        """Small writes that wait in a transport take hardly more than their bytes."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        data = self.envelope(phone, b"7") * 1_000
        measured = Measured(self.relay)
        for _ in range(20):
            binary.send(data)
        self.assertEqual(measured.accounted, 0)
        self.assertLess(measured.allocated, 2 * 65_536)

    def test_on_their_way_out(self) -> None:
        """What is gathered for one write has left the queue, and is bounded like a queue.

        It is at most 64 KiB, by what frames cost, and one frame.
        """
        binary, phone = self.stuck()
        for _ in range(20):
            binary.send(self.envelope(phone, b"7") * 1_000)
        send, sizes = phone.socket.send, []

        def measured_send(data: bytes | memoryview) -> int:
            sizes.append(len(data))
            return send(data)

        phone.socket.send = measured_send  # type: ignore[method-assign]
        phone.socket.window += 1_000_000
        self.relay.pump()
        self.assertEqual(self.relay.queued, 0)
        frames = max(sizes[1:]) // 3  # the first is what made it stuck
        self.assertLessEqual(frames * 65, 65_536 + 65)


class HoldTest(MemoryTest):
    """What is held for a daemon."""

    factor = 1.05  # a buffer that grows has room for another eighth

    SHAPES: ClassVar = {
        f"{size}_{name}": (size, name) for size in SIZES for name in ("whole", "parts", "fragments")
    }

    def data(self, message: bytes, shape: str) -> tuple[bytes, Cut]:
        """Return what is sent for ``message``, and how it arrives."""
        if shape == "fragments":
            return fragments(message), whole
        return frame(1, message), in_parts if shape == "parts" else whole

    @cases(SHAPES)
    def test_daemon_away(self, size: int, shape: str) -> None:
        """Frames of phones whose daemon is away."""
        binary, phone = self.relay.pair()
        binary.reset()
        data, cut = self.data(json_text(size), shape)
        count = min(500, max(3, 100_000 // (size + 64)))
        measured = Measured(self.relay)
        for _ in range(count):
            self.send(phone, data, cut)
        self.see(measured, count * (size + 64))

    @cases(SHAPES)
    def test_before_the_claim_is_decided(self, size: int, shape: str) -> None:
        """What a daemon says while another one is asked whether it lives."""
        old = self.relay.binary()
        old.answers = False
        new = self.relay.binary()
        data, cut = self.data(json_text(size), shape)
        count = min(500, max(3, 100_000 // (size + 64)))
        measured = Measured(self.relay)
        for _ in range(count):
            self.send(new, data, cut)
        self.see(measured, count * (size + 64))
        old.reset()


class DepartedTest(MemoryTest):
    """What phones leave behind that go while their daemon is away or does not read."""

    COUNT = 50

    @cases({"nothing": (0,), "a_frame": (1,), "frames": (30,)})
    def test_away(self, frames: int) -> None:
        """Their notices, their frames, and what stands for them."""
        self.leave("home", frames)

    def test_long_names(self) -> None:
        """A long server-id counts each time that it is kept: plain and quoted."""
        self.leave("\\" * 256, 1)

    def leave(self, server_id: str, frames: int) -> None:
        binary = self.relay.binary(server_id)
        self.relay.phone(server_id).reset()  # what there is but once
        binary.reset()
        self.relay.phone(server_id).reset()
        self.relay.seen.clear()
        measured = Measured(self.relay)
        sides = []
        for _ in range(self.COUNT):
            phone = self.relay.phone(server_id)
            sides.append(weakref.ref(self.relay.server_side(phone)))
            for _ in range(frames):
                phone.send(frame(1, b'"hello"'))
            phone.reset()
            self.relay.peers.remove(phone)
            self.relay.seen.clear()
        # The list of phones that have left lately has a bound of its own.
        self.relay.service.context.registry._departures._left.clear()
        self.see(measured, self.COUNT * (frames + 1) * 64)
        del phone
        gc.collect()
        self.assertEqual([side for side in sides if side() is not None], [])
