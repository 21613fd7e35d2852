"""Who holds a server-id when binaries drop, return, or claim what another one holds."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection

from tests.peers.frames import PING, TEXT, frame
from tests.peers.requests import binary_fields, phone_fields
from tests.peers.waiting import eventually, soon
from tests.system.harness import (
    BarePeer,
    Child,
    Relay,
    SystemTestCase,
    binary,
    bystanders,
    echo,
    ending,
    phone,
    receive,
    round_trip,
    send,
)

RECLAIMED = (4404, "binary reclaimed server-id")
CLAIMED = (4409, "server-id already claimed")


@asynccontextmanager
async def echoing(connection: ClientConnection) -> AsyncIterator[None]:
    """Have the binary send every frame back meanwhile."""
    task = asyncio.create_task(echo(connection))
    try:
        yield
    finally:
        task.cancel()


async def drop(connection: ClientConnection, relay: Relay) -> None:
    """Have a binary vanish without a word, and wait until the relay knows."""
    connection.transport.abort()
    await soon("the binary is missed", lambda: relay.counts()[0] == 0)


class GraceTests(SystemTestCase):
    """A binary that drops, and comes back or does not."""

    def test_expiry(self) -> None:
        """Phones outlive their binary by the grace and are closed 1000; then the id is free."""
        relay = self.relay("--grace=1.5")

        async def scenario() -> None:
            async with binary(relay, "b") as server, phone(relay, "b") as old:
                await round_trip_through(server, old)
                await drop(server, relay)
                async with phone(relay, "b") as late:
                    await send(old, "held, then dropped")
                    await soon("the newcomer has its place", lambda: relay.counts() == (0, 2))
                    self.assertEqual(await ending(late), (1000, ""))
                self.assertEqual(await ending(old), (1000, ""))
            self.assertEqual(relay.counts(), (0, 0))
            async with phone(relay, "b") as refused:
                self.assertEqual(await ending(refused), (4404, "no server with that id"))

        self.perform(scenario())
        events = [line.split()[2] for line in relay.log().splitlines()]
        released, expired = events.index("server_released"), events.index("server_expired")
        self.assertLess(released, expired)
        self.assertEqual(events.count("server_expired"), 1)

    def test_reclaim_evicts(self) -> None:
        """Phones are closed 4404 when their binary is back, redial, and nothing old comes."""
        relay = self.relay("--grace=20")

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                first = await stack.enter_async_context(binary(relay, "b"))
                phones = [await stack.enter_async_context(phone(relay, "b")) for _ in range(3)]
                await drop(first, relay)
                for each in phones:
                    await send(each, "for the binary that has gone")
                # What a phone has sent is with the relay once it answers the phone's ping.
                for each in phones:
                    await (await each.ping())
                second = await stack.enter_async_context(binary(relay, "b"))
                for each in phones:
                    self.assertEqual(await ending(each), RECLAIMED)
                redialled = await stack.enter_async_context(phone(relay, "b"))
                await send(redialled, "new")
                self.assertEqual((await receive(second))["frame"], "new")
                self.assertEqual(relay.counts(), (1, 1))

        self.perform(scenario())
        self.assertNotIn("server_expired", relay.log())

    def test_a_reclaim_stops_the_clock(self) -> None:
        """A grace that was ended by a reclaim never expires later."""
        relay = self.relay("--grace=1", "--on-reclaim=keep")

        async def scenario() -> None:
            async with binary(relay, "b") as first, phone(relay, "b") as handset:
                await drop(first, relay)
                async with binary(relay, "b") as second, echoing(second):
                    for number in range(8):
                        await round_trip(handset, number)
                        await asyncio.sleep(0.2)

        self.perform(scenario())
        self.assertNotIn("server_expired", relay.log())

    def test_grace_may_be_very_short(self) -> None:
        """With a grace of a tenth of a second a dropped binary's phones are soon closed 1000."""
        relay = self.relay("--grace=0.1")

        async def scenario() -> None:
            async with binary(relay, "b") as server, phone(relay, "b") as handset:
                await drop(server, relay)
                self.assertEqual(await ending(handset), (1000, ""))

        self.perform(scenario())


async def round_trip_through(server: ClientConnection, handset: ClientConnection) -> None:
    """See a frame go to the binary and back."""
    async with echoing(server):
        await round_trip(handset, "there and back")


class KeepTests(SystemTestCase):
    """``--on-reclaim=keep``: nothing a phone sends is lost, doubled or out of order."""

    phones = 4
    before = 30
    meanwhile = 300

    def test_every_frame_of_a_restart_arrives_once_in_order(self) -> None:
        """A binary that vanishes and returns within grace sees all its phones sent meanwhile.

        That is more than the relay holds, so it has to stop reading the phones for a while.
        """
        relay = self.relay("--on-reclaim=keep", "--grace=20", "--hold-bytes=32K")

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                first = await stack.enter_async_context(binary(relay, "b"))
                handsets = [
                    await stack.enter_async_context(phone(relay, "b")) for _ in range(self.phones)
                ]
                for number in range(self.before):
                    for name, handset in enumerate(handsets):
                        await send(handset, [name, number])
                told = [await receive(first) for _ in range(self.before * self.phones)]
                await drop(first, relay)
                sent = [0] * self.phones
                talking = [
                    asyncio.create_task(self.talk(name, handset, sent))
                    for name, handset in enumerate(handsets)
                ]
                # 100 frames of 1 KB are three times what is held.
                await soon("the phones talk to nobody", lambda: min(sent) >= 100)
                second = await stack.enter_async_context(binary(relay, "b"))
                told += [await receive(second) for _ in range(self.meanwhile * self.phones)]
                await asyncio.gather(*talking)
                names = self.check(told)
                # And back, to the very connections that were there before.
                for conn_id, name in names.items():
                    await send(second, {"conn_id": conn_id, "frame": f"for {name}"})
                for name, handset in enumerate(handsets):
                    self.assertEqual(await receive(handset), f"for {name}")

        self.perform(scenario())
        self.assertEqual(relay.log().count(" phone_registered "), self.phones)

    async def talk(self, name: int, handset: ClientConnection, sent: list[int]) -> None:
        """Send one phone's frames, and count them."""
        for number in range(self.meanwhile):
            await send(handset, [name, self.before + number, "x" * 1000])
            sent[name] += 1

    def check(self, told: list[dict[str, Any]]) -> dict[str, int]:
        """See that all frames are there, each once, in its phone's order; return whose is what."""
        names = {each["conn_id"]: each["frame"][0] for each in told}
        self.assertEqual(sorted(names.values()), list(range(self.phones)), "a conn_id each")
        for conn_id, name in names.items():
            frames = [each["frame"] for each in told if each["conn_id"] == conn_id]
            expected = [(name, number) for number in range(self.before + self.meanwhile)]
            self.assertEqual([(frame[0], frame[1]) for frame in frames], expected)
        return names

    def test_a_phone_that_went_meanwhile(self) -> None:
        """The binary that returns gets its last frames and then one close notice."""
        relay = self.relay("--on-reclaim=keep", "--grace=20")

        async def scenario() -> None:
            async with binary(relay, "b") as first:
                handset = await phone(relay, "b")
                await drop(first, relay)
                for number in range(3):
                    await send(handset, number)
                await handset.close(4321, "bye")
                await soon("the phone has gone", lambda: relay.counts() == (0, 0))
            async with binary(relay, "b") as second, phone(relay, "b") as other:
                await send(other, "last")
                seen = [await receive(second) for _ in range(5)]
            conn_id = seen[0]["conn_id"]
            expected = [{"conn_id": conn_id, "frame": number} for number in range(3)]
            self.assertEqual(seen[:3], expected)
            self.assertEqual(seen[3], {"conn_id": conn_id, "close_code": 4321})
            self.assertEqual(seen[4]["frame"], "last")

        self.perform(scenario())


class ConflictTests(SystemTestCase):
    """A second binary claims what an incumbent, a process of its own, holds."""

    def incumbent(self, relay: Relay, server_id: str = "b") -> Child:
        """Start the example daemon as the holder of a server-id."""
        count = relay.counts()[0] + 1
        daemon = self.python("daemon.py", relay.url, server_id)
        eventually("the incumbent serves", lambda: relay.counts()[0] == count)
        return daemon

    def test_a_live_incumbent_stays(self) -> None:
        """The newcomer gets 4409; the incumbent and its phone notice nothing."""
        relay = self.relay()
        self.incumbent(relay)

        async def scenario() -> None:
            async with phone(relay, "b") as handset:
                for _ in range(3):
                    async with binary(relay, "b") as newcomer:
                        self.assertEqual(await ending(newcomer), CLAIMED)
                    await send(handset, "still there?")
                    self.assertEqual(await receive(handset), "STILL THERE?")

        self.perform(scenario())
        self.assertEqual(relay.log().count("server_id_conflict"), 3)
        self.assertNotIn("server_id_takeover", relay.log())

    def test_a_stopped_incumbent_is_replaced(self) -> None:
        """Its silence costs it the id: 1011 for it, 4404 for its phones, the id for the newcomer.

        Of several newcomers one gets it. The old one's end, later, does not start a grace.
        """
        relay = self.relay("--probe-timeout=1", "--grace=1")
        daemon = self.incumbent(relay)

        async def scenario() -> None:
            async with phone(relay, "b") as handset, AsyncExitStack() as stack:
                daemon.signal(signal.SIGSTOP)
                newcomers = [await stack.enter_async_context(binary(relay, "b")) for _ in range(4)]
                self.assertEqual(await ending(handset), RECLAIMED)
                for loser in newcomers[1:]:
                    self.assertEqual(await ending(loser), CLAIMED)
                daemon.signal(signal.SIGCONT)
                await soon("the old one ends", lambda: daemon.process.poll() is not None)
                await asyncio.sleep(1.2)  # longer than the grace
                async with phone(relay, "b") as redialled:
                    await round_trip_through(newcomers[0], redialled)
                    self.assertEqual(relay.counts(), (1, 1))

        self.perform(scenario())
        self.assertIn("closed: 1011 heartbeat timeout", daemon.errors())
        self.assertEqual(relay.log().count("server_id_takeover"), 1)
        self.assertNotIn("server_expired", relay.log())

    def test_a_stopped_incumbents_phones_can_be_kept(self) -> None:
        """With ``keep`` the phones stay, and what they sent to nobody reaches the newcomer.

        Only what had gone out to the incumbent before is lost with it.
        """
        relay = self.relay("--probe-timeout=1", "--on-reclaim=keep")
        daemon = self.incumbent(relay)

        async def scenario() -> None:
            async with phone(relay, "b") as handset:
                daemon.signal(signal.SIGSTOP)
                async with binary(relay, "b") as newcomer:
                    await soon("the takeover", lambda: "server_id_takeover" in relay.log())
                    await round_trip_through(newcomer, handset)
                self.assertIsNone(handset.close_code)

        self.perform(scenario())

    def test_a_killed_incumbent_is_followed_at_once(self) -> None:
        """A binary that is restarted gets its id back without a conflict."""
        relay = self.relay()
        self.incumbent(relay).kill()

        async def scenario() -> None:
            await soon("the binary is missed", lambda: relay.counts()[0] == 0)
            async with binary(relay, "b") as second, phone(relay, "b") as handset:
                await round_trip_through(second, handset)

        self.perform(scenario())
        self.assertNotIn("server_id_conflict", relay.log())

    def test_an_incumbent_busy_with_a_stalled_phone_stays(self) -> None:
        """A binary that reads nothing, so answers no ping, but sends, is alive.

        What it sends is for a phone that does not read.
        """
        relay = self.relay("--probe-timeout=2", "--outbox-bytes=64M", "--write-stall=60")
        enough = threading.Event()

        def blast(incumbent: BarePeer, conn_id: str) -> None:
            envelope = frame(TEXT, json.dumps({"conn_id": conn_id, "frame": "x" * 9999}).encode())
            while not enough.wait(0.01):
                incumbent.send(envelope)

        async def scenario() -> None:
            with (
                BarePeer(relay, "/v1/server", binary_fields("b")) as incumbent,
                BarePeer(relay, "/v1/client", phone_fields("b"), 4096) as stalled,
            ):
                stalled.send(frame(TEXT, b'"hello"'))
                coming = incumbent.frames()
                conn_id = json.loads(next(coming)[1])["conn_id"]
                writing = asyncio.create_task(asyncio.to_thread(blast, incumbent, conn_id))
                try:
                    async with bystanders(relay):
                        for _ in range(2):
                            async with binary(relay, "b") as newcomer:
                                self.assertEqual(await ending(newcomer), CLAIMED)
                finally:
                    enough.set()
                    await writing
                self.assertEqual(next(coming)[0], PING)

        self.perform(scenario())
        self.assertNotIn("server_id_takeover", relay.log())
