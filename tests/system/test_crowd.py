"""Many phones, and one that does not read: what a relay has to bear, and what that costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection, connect

from tests import needs
from tests.peers.frames import TEXT, frame
from tests.peers.requests import phone_fields
from tests.peers.waiting import soon
from tests.system.harness import (
    BarePeer,
    Relay,
    SystemTestCase,
    binary,
    bystanders,
    echo,
    ending,
    phone,
    receive,
    round_trip,
    slow_phone,
)

MEBIBYTE = 2**20


class CrowdTests(SystemTestCase):
    """2,000 phones of 125 binaries."""

    binaries = 125
    phones = 2000
    at_once = 100
    """Connections that are being opened at a time."""

    def test_come_talk_and_go(self) -> None:
        """All are counted, all are served, all are forgotten; another crowd costs no more."""
        needs.descriptors(self.binaries + self.phones + 200)
        relay = self.relay()
        before = relay.rss()
        after = []
        for _ in range(3):
            self.perform(self.visit(relay))
            after.append(relay.rss())
        # Had every connection left 1 KiB behind, the last visit would show more than 2 MiB. The
        # first two may differ in how many were there at a time.
        self.assertLess(after[2] - after[1], 1.5 * MEBIBYTE, (before, after))
        # What the first one leaves is the allocator's, for the next.
        self.assertLess(after[0] - before, 48 * MEBIBYTE, (before, after))

    async def visit(self, relay: Relay) -> None:
        """Have all come, idle, talk, and go."""
        ids = [f"server-{number}" for number in range(self.binaries)]
        async with self.connected([binary(relay, each) for each in ids]) as servers:
            answering = [asyncio.create_task(echo(each)) for each in servers]
            per_id = self.phones // self.binaries
            async with self.connected(
                [phone(relay, each) for each in ids for _ in range(per_id)]
            ) as handsets:
                self.assertEqual(relay.counts(), (self.binaries, self.phones))
                await asyncio.gather(
                    *(round_trip(each, number) for number, each in enumerate(handsets))
                )
                self.assertEqual(relay.counts(), (self.binaries, self.phones))
            await soon("the phones are gone", lambda: relay.counts() == (self.binaries, 0))
        await asyncio.gather(*answering)
        await soon("the binaries are gone", lambda: relay.counts() == (0, 0))
        self.assertEqual(relay.health()["status"], "ok")

    @asynccontextmanager
    async def connected(self, peers: list[connect]) -> AsyncIterator[list[ClientConnection]]:
        """Connect all, a few at a time, and close them all at the end."""
        turn = asyncio.Semaphore(self.at_once)

        async def open_one(peer: connect) -> ClientConnection:
            async with turn:
                return await peer

        connections = await asyncio.gather(*map(open_one, peers))
        try:
            yield connections
        finally:
            await asyncio.gather(*(each.close() for each in connections))


class SlowPhoneTests(SystemTestCase):
    """A phone that does not read what its binary sends."""

    frame_size = 100_000
    frames = 1_000

    def test_a_hundred_megabytes_for_a_phone_that_does_not_read(self) -> None:
        """It is closed 1011, the relay stays small, and a sibling's round trips go on."""
        relay = self.relay("--close-timeout=30", "--outbox-bytes=4M")
        before = relay.rss()
        over = asyncio.Event()
        trips: list[int] = []

        async def scenario() -> None:
            async with binary(relay, "b") as server, bystanders(relay):
                with BarePeer(relay, "/v1/client", phone_fields("b")) as stalled:
                    stalled.send(frame(TEXT, b'"I shall read no more"'))
                    conn_id = (await receive(server))["conn_id"]
                    async with phone(relay, "b") as sibling:
                        talking = asyncio.create_task(self.talk(sibling, over, trips))
                        answering = asyncio.create_task(echo(server))
                        message = json.dumps({"conn_id": conn_id, "frame": "x" * self.frame_size})
                        sent = 0
                        while sent < self.frames or len(trips) < 4:
                            await server.send(message)
                            sent += 1
                            self.assertLess(sent, 10 * self.frames, "the sibling has to wait")
                        over.set()
                        await talking
                        answering.cancel()
                    code = await asyncio.to_thread(stalled.ending)
                    self.assertEqual(code, (1011, "phone backlog full"))

        self.perform(scenario())
        # Its outbox, 4 MiB, may exist twice for a moment; the other 90 MB never.
        self.assertLess(relay.peak() - before, 16 * MEBIBYTE)
        self.assertIn("close_code=1011", relay.log())

    async def talk(self, sibling: ClientConnection, over: asyncio.Event, trips: list[int]) -> None:
        """Talk until it is over; note each round trip."""
        while not over.is_set():
            await round_trip(sibling, len(trips))
            trips.append(len(trips))

    def test_a_phone_that_takes_nothing_is_closed(self) -> None:
        """One that stalls with less than its budget waiting is closed after the write stall."""
        relay = self.relay("--write-stall=1", "--send-buffer=8K", "--close-timeout=30")

        async def scenario() -> None:
            async with binary(relay, "b") as server:
                async with slow_phone(relay, server) as (stalled, conn_id):
                    await server.send(json.dumps({"conn_id": conn_id, "frame": "x" * 250_000}))
                    await server.send(json.dumps({"conn_id": conn_id, "frame": "x" * 250_000}))
                    notice = await receive(server)
                    self.assertEqual(notice, {"conn_id": conn_id, "close_code": 1011})
                    code = await asyncio.to_thread(stalled.ending)
                    self.assertEqual(code, (1011, "phone write stalled"))
                async with phone(relay, "b") as other:
                    await other.close(4000)
                    self.assertEqual(await ending(other), (4000, ""))

        self.perform(scenario())
