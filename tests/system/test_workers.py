"""Several workers: one relay to the outside, whatever happens to its processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from tests.peers.waiting import eventually, soon
from tests.system.harness import (
    Relay,
    SystemTestCase,
    binary,
    echo,
    ending,
    phone,
    round_trip,
)
from tests.system.test_tls import TLSTestCase

WORKERS = 3


def children(relay: Relay) -> dict[int, int]:
    """Return the process of each worker, by its index: the newest, if there are two."""
    found = {}
    for each in sorted(map(int, _children_of(relay.pid))):
        command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
        if b"pyrycode_relay.worker_process" in command:
            found[int(command[-2])] = each
    return found


def _children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def worker_of(relay: Relay, server_id: str) -> int:
    """Return the worker that has claimed a server-id, as the log has it."""
    lines = re.findall(rf"server_claimed server_id={server_id} .*worker=(\d+)", relay.log())
    return int(lines[-1])


class WorkersCase(SystemTestCase):
    """Starts relays with several workers."""

    def workers(self, *options: str, count: int = WORKERS, **more: object) -> Relay:
        """Start a relay with several workers, and wait until all serve."""
        relay = self.relay(f"--workers={count}", *options, **more)  # type: ignore[arg-type]
        eventually("all workers serve", lambda: " ready\n" in relay.log())
        return relay


class OwnershipTests(WorkersCase):
    """Each connection gets to the worker that owns its server-id."""

    def test_plain(self) -> None:
        """Binaries and phones meet, and the workers share the server-ids."""
        relay = self.workers()
        self.perform(self.crowd(relay))
        owners = {worker_of(relay, f"id{number}") for number in range(30)}
        self.assertEqual({0, 1, 2}, owners)

    async def crowd(self, relay: Relay) -> None:
        """Let 30 binaries and 60 phones talk."""
        async with AsyncExitStack() as stack:
            for number in range(30):
                server = await stack.enter_async_context(binary(relay, f"id{number}"))
                task = asyncio.create_task(echo(server))
                stack.callback(task.cancel)
            handsets = [
                await stack.enter_async_context(phone(relay, f"id{number % 30}"))
                for number in range(60)
            ]
            for number in range(20):
                await asyncio.gather(*(round_trip(each, number) for each in handsets))
            await soon("the sums are shown", lambda: relay.counts() == (30, 60))


class CarriedTests(TLSTestCase):
    """TLS connections, most of which end their TLS in another worker than their owner."""

    def test_talk_and_drain(self) -> None:
        """Frames of every size pass, and a drain closes all with 1001."""
        door = self.door(f"--workers={WORKERS}")
        eventually("all workers serve", lambda: " ready\n" in door.relay.log())

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                handsets = []
                for number in range(8):
                    server = await stack.enter_async_context(door.binary(f"id{number}"))
                    task = asyncio.create_task(echo(server))
                    stack.callback(task.cancel)
                    handset = await stack.enter_async_context(door.phone(f"id{number}"))
                    handsets.append(handset)
                for size in (1, 1000, 16_384, 262_140):
                    await asyncio.gather(*(round_trip(each, "x" * size) for each in handsets))
                await soon("the sums are shown", lambda: door.relay.counts() == (8, 8))
                door.relay.signal(signal.SIGTERM)
                for each in handsets:
                    self.assertEqual((1001, "shutting down"), await ending(each))

        self.perform(scenario())
        self.assertEqual(0, door.relay.wait())


class KillTests(WorkersCase):
    """Workers that are killed."""

    def test_killed(self) -> None:
        """Others' connections do not notice, and the server-ids are served again."""
        relay = self.workers()

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                connections = {}
                for number in range(12):
                    server_id = f"id{number}"
                    server = await stack.enter_async_context(binary(relay, server_id))
                    task = asyncio.create_task(echo(server))
                    stack.callback(task.cancel)
                    handset = await stack.enter_async_context(phone(relay, server_id))
                    connections[server_id] = handset
                victim = worker_of(relay, "id0")
                os.kill(children(relay)[victim], signal.SIGKILL)
                for server_id, handset in connections.items():
                    if worker_of(relay, server_id) == victim:
                        self.assertEqual((1006, ""), await ending(handset))
                    else:
                        await round_trip(handset, 1)
                async with binary(relay, "id0") as server:
                    task = asyncio.create_task(echo(server))
                    async with phone(relay, "id0") as handset:
                        await round_trip(handset, 2)
                    task.cancel()

        self.perform(scenario())
        self.assertIn("worker_ended worker=", relay.log())
        self.assertEqual(0, relay.stop())
