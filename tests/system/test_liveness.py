"""Who is alive: frozen phones and daemons, slow ones, and a relay that was stopped itself.

A frozen process (a phone's app in the background) has a kernel that still acknowledges data.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.peers.blocking import RawPeer
from tests.peers.frames import text_frame
from tests.peers.requests import phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually, soon
from tests.system import harness
from tests.system.answering import ROOT, Answering, argument
from tests.system.harness import Child, ending, receive
from tests.system.test_tls import Door, TLSTestCase

RATES: Final = (0.1, 2, 20, 200)
"""Messages a second."""
WINDOWS: Final = (8_192, 4_194_304)
"""Receive buffers in bytes."""
KIBIBYTE: Final = "x" * 1000
CONFLICT: Final = (4409, "server-id already claimed")


async def send_at(connection: ClientConnection, value: object, rate: float) -> None:
    """Send a message ``rate`` times a second, until cancelled or closed."""
    message = json.dumps(value)
    start = time.monotonic()
    with contextlib.suppress(ConnectionClosed):
        for number in itertools.count(1):
            await connection.send(message)
            await asyncio.sleep(start + number / rate - time.monotonic())


class LivenessCase(TLSTestCase):
    """Relays that listen with and without TLS, and peers in processes of their own."""

    def ports(self, door: Door) -> Iterator[tuple[int, str]]:
        """Yield the ports without and with TLS, and what certificate to trust there."""
        yield door.relay.port, ""
        yield door.port, str(self.ca)

    def process(self, peers: Sequence[Answering]) -> Child:
        """Start a process with these peers, and wait until they are connected."""
        child = self.child(
            *(sys.executable, "-u", ROOT / "tests" / "system" / "answering.py"),
            argument([*peers]),
            environment={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )
        self.addCleanup(child.signal, signal.SIGCONT)
        eventually("the peers are connected", lambda: child.output() or self.ended(child))
        return child

    def ended(self, child: Child) -> bool:
        """Fail if a process has ended."""
        self.assertIsNone(child.process.poll(), child.errors())
        return False


class FrozenPhoneTests(LivenessCase):
    """Phones in a stopped process."""

    interval, timeout, stall = 1.0, 2.0, 2.0

    def test_frozen_and_slow_phones(self) -> None:
        """A frozen phone is closed, however much is acknowledged; a slow one stays.

        The frozen ones get 0.1 to 200 messages of 1 KB a second, over TLS and not, into large
        and small windows. The slow ones have 30 MB waiting, and read them at 400 KB/s.
        """
        door = self.door(
            f"--heartbeat-interval={self.interval}",
            f"--heartbeat-timeout={self.timeout}",
            f"--write-stall={self.stall}",
            "--outbox-bytes=64M",
        )
        ways = [(*port, window) for port in self.ports(door) for window in WINDOWS]

        async def scenario() -> None:
            async with (
                harness.binary(door.relay, "frozen") as frozen,
                harness.binary(door.relay, "slow") as slow,
            ):
                cases = [(rate, *way) for rate in RATES for way in ways]
                freezing = await asyncio.to_thread(
                    self.process,
                    [
                        Answering(port, "frozen", False, ca, window, hello=str(number))
                        for number, (_, port, ca, window) in enumerate(cases)
                    ],
                )
                await asyncio.to_thread(
                    self.process,
                    [
                        Answering(port, "slow", False, ca, window, hello="0", pace=0.02)
                        for port, ca, window in ways
                    ],
                )
                slow_ones = [(await receive(slow))["conn_id"] for _ in ways]
                for _ in range(30):
                    for conn_id in slow_ones:
                        for _ in range(13):
                            await slow.send(json.dumps({"conn_id": conn_id, "frame": "x" * 80_000}))
                hellos = [await receive(frozen) for _ in cases]
                sending = [
                    asyncio.create_task(
                        send_at(
                            frozen,
                            {"conn_id": each["conn_id"], "frame": KIBIBYTE},
                            cases[each["frame"]][0],
                        )
                    )
                    for each in hellos
                ]
                await asyncio.sleep(0.5)
                freezing.signal(signal.SIGSTOP)
                left = {each["conn_id"]: cases[each["frame"]] for each in hellos}
                start = time.monotonic()
                # The interval and its jitter, the time-out, and as long again for slow machines.
                longest = 2 * (1.1 * self.interval + self.timeout + self.stall)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(longest):
                        while left:
                            notice = json.loads(await frozen.recv())
                            self.assertEqual(notice["close_code"], 1011)
                            del left[notice["conn_id"]]
                self.assertEqual([*left.values()], [], f"not noticed in {longest} s")
                self.assertGreater(time.monotonic() - start, 0.5 * self.timeout)
                self.assertEqual(door.relay.counts(), (2, len(ways)), "a slow phone was closed")
                for task in sending:
                    task.cancel()

        self.perform(scenario())


class HungDaemonTests(LivenessCase):
    """Daemons in a stopped process, and slow ones."""

    probe = 2.0

    def test_hung_and_slow_daemons(self) -> None:
        """A hung daemon's place is taken after the probe timeout, though its phones keep sending;
        one that reads a long backlog slowly keeps its place."""
        door = self.door(f"--probe-timeout={self.probe}", "--hold-bytes=8M", "--write-stall=20")
        cases = [(rate, *port) for rate in RATES for port in self.ports(door)]
        daemons = [
            Answering(port, f"hung{number}", True, ca) for number, (_, port, ca) in enumerate(cases)
        ]
        slow = [
            Answering(port, f"slow{number}", True, ca, WINDOWS[0], pace=0.05)
            for number, (port, ca) in enumerate(self.ports(door))
        ]

        async def contested(server_id: str) -> tuple[float, tuple[int | None, str | None] | None]:
            """Claim a server-id; return how long it took, and how it ended if it did."""
            start = time.monotonic()
            async with harness.binary(door.relay, server_id) as newcomer:
                done = asyncio.create_task(ending(newcomer))

                def taken() -> bool:
                    return f"server_id_takeover server_id={server_id} " in door.relay.log()

                await soon("a verdict", lambda: done.done() or taken(), DEADLINE)
                took = time.monotonic() - start
                if taken():
                    done.cancel()
                    return took, None
                return took, await done

        async def scenario() -> None:
            hanging = await asyncio.to_thread(self.process, daemons)
            await asyncio.to_thread(self.process, slow)
            async with AsyncExitStack() as stack:
                sending = []
                for number, (rate, *_) in enumerate(cases):
                    phone = await stack.enter_async_context(
                        harness.phone(door.relay, f"hung{number}")
                    )
                    # The relay may not read it, so that it would wait for an answer to its close.
                    stack.callback(phone.transport.abort)
                    sending.append(asyncio.create_task(send_at(phone, KIBIBYTE, rate)))
                for number in range(len(slow)):
                    phone = await stack.enter_async_context(
                        harness.phone(door.relay, f"slow{number}")
                    )
                    stack.callback(phone.transport.abort)
                    sending.append(asyncio.create_task(send_at(phone, "x" * 200_000, 20)))
                await asyncio.sleep(0.5)
                hanging.signal(signal.SIGSTOP)
                verdicts = await asyncio.gather(
                    *(contested(each.server_id) for each in (*daemons, *slow))
                )
                for task in sending:
                    task.cancel()
            for case, (took, end) in zip(cases, verdicts, strict=False):
                self.assertIsNone(end, case)
                self.assertGreater(took, self.probe - 0.1, case)
            for _, end in verdicts[len(cases) :]:
                self.assertEqual(end, CONFLICT)

        self.perform(scenario())


class StoppedRelayTests(LivenessCase):
    """A relay that is stopped itself, for longer than its deadlines."""

    deadline = 1.5
    stop = 3.0

    def pause(self, door: Door, *stops: float) -> None:
        """Stop the relay for each of these times, and let it run for 0.12 s between them."""
        for number, seconds in enumerate(stops):
            if number:
                time.sleep(0.12)  # too short for much to be read
            door.relay.signal(signal.SIGSTOP)
            time.sleep(seconds)  # the stop is the point
            door.relay.signal(signal.SIGCONT)

    def dial(self, port: int, ca: str) -> RawPeer:
        """Return a connected peer that has sent nothing."""
        peer = Answering(port, "", False, ca).dial()
        self.addCleanup(peer.sock.close)
        return peer

    def test_messages_and_requests_under_way(self) -> None:
        """60 phones whose message is half in the kernel stay, and so do requests; a phone and a
        request without a second half are given up."""
        door = self.door(
            f"--message-timeout={self.deadline}",
            f"--header-timeout={self.deadline}",
            "--max-phones=100",
        )
        whole = text_frame(json.dumps("x" * 250_000).encode())
        request = upgrade_request("/v1/client", phone_fields("b"))
        half = len(whole) // 2

        async def scenario() -> None:
            async with harness.binary(door.relay, "b") as server:
                phones, requests = [], []
                for port, ca in self.ports(door):
                    for _ in range(31):
                        phones.append(await asyncio.to_thread(self.dial, port, ca))
                        await asyncio.to_thread(phones[-1].upgrade, "/v1/client", phone_fields("b"))
                    for _ in range(11):
                        requests.append(await asyncio.to_thread(self.dial, port, ca))
                dead = [phones.pop(), requests.pop()]
                for each in (*phones, dead[0]):
                    await asyncio.to_thread(each.write, whole[:half])
                for each in (*requests, dead[1]):
                    each.write(request[:40])
                # The relay has read the halves once it has answered this.
                await (await server.ping())
                stopping = asyncio.create_task(asyncio.to_thread(self.pause, door, self.stop))
                await asyncio.sleep(0.2)
                for each in requests:
                    each.write(request[40:])
                await asyncio.gather(
                    *(asyncio.to_thread(each.write, whole[half:]) for each in phones)
                )
                await stopping
                came = [await receive(server) for _ in phones]
                self.assertEqual({len(each["frame"]) for each in came}, {250_000})
                for each in requests:
                    self.assertEqual((await asyncio.to_thread(each.head))[0], 101)
                notice = await receive(server)
                self.assertEqual(notice["close_code"], 1008)
                self.assertEqual(await asyncio.to_thread(dead[1].read_to_end), b"")
                self.assertEqual(door.relay.counts(), (1, len(phones) + len(requests)))

        self.perform(scenario())

    def test_idle_peers(self) -> None:
        """300 idle peers whose pongs are in the kernel survive two stops in a row; dead ones
        do not."""
        interval, timeout = 1.0, 2.0
        door = self.door(
            f"--heartbeat-interval={interval}",
            f"--heartbeat-timeout={timeout}",
            "--max-phones=400",
        )

        def phones(count: int) -> Child:
            ports = self.ports(door)
            return self.process(
                [Answering(port, "b", False, ca) for port, ca in ports for _ in range(count // 2)]
            )

        async def scenario() -> None:
            async with harness.binary(door.relay, "b") as server:
                live, dead = await asyncio.gather(
                    asyncio.to_thread(phones, 300), asyncio.to_thread(phones, 20)
                )
                for each in (live, dead):
                    each.signal(signal.SIGSTOP)
                # Meanwhile all of them are pinged, and none has to have answered.
                await asyncio.sleep(1.3 * interval)
                pausing = asyncio.create_task(
                    asyncio.to_thread(self.pause, door, 1.5 * timeout, 1.5 * timeout)
                )
                await asyncio.sleep(0.1)
                live.signal(signal.SIGCONT)
                await pausing
                notices = [await receive(server) for _ in range(20)]
                self.assertEqual({each["close_code"] for each in notices}, {1011})
                # Those that stay are pinged again, and answer.
                await asyncio.sleep(1.3 * interval + timeout)
                self.assertEqual(door.relay.counts(), (1, 300))

        self.perform(scenario())
