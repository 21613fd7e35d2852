"""How a relay ends: SIGTERM, SIGINT, a second signal, SIGKILL; and how it is there again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter
from contextlib import AsyncExitStack

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.peers.frames import CLOSE, TEXT
from tests.peers.requests import phone_fields, upgrade_request
from tests.peers.waiting import eventually, soon
from tests.system.harness import (
    BarePeer,
    Relay,
    SystemTestCase,
    binary,
    dial,
    echo,
    ending,
    fetch,
    phone,
    read_all,
    round_trip,
    send,
    slow_phone,
)

SHUTTING_DOWN = (1001, "shutting down")


def up_to_close(peer: BarePeer) -> list[tuple[int, bytes]]:
    """Return everything that comes up to the close frame."""
    came = []
    for opcode, payload in peer.frames():
        came.append((opcode, payload))
        if opcode == CLOSE:
            break
    return came


class DrainTests(SystemTestCase):
    """The first SIGTERM or SIGINT."""

    binaries = 10
    phones = 100

    def test_sigterm_under_load(self) -> None:
        """Every peer is told 1001, newcomers are turned away, and the process ends with 0."""
        self.drain_under_load(signal.SIGTERM)

    def test_sigint_under_load(self) -> None:
        """SIGINT, as from the keyboard, does the same."""
        self.drain_under_load(signal.SIGINT)

    def drain_under_load(self, number: int) -> None:
        """Stop a relay while all its phones talk and others keep coming and going."""
        relay = self.relay()

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                servers = [
                    await stack.enter_async_context(binary(relay, f"b{number}"))
                    for number in range(self.binaries)
                ]
                handsets = [
                    await stack.enter_async_context(phone(relay, f"b{number % self.binaries}"))
                    for number in range(self.phones)
                ]
                tasks = [asyncio.create_task(echo(each)) for each in servers]
                tasks += [asyncio.create_task(self.talk(each)) for each in handsets]
                visitors = Counter[object]()
                tasks.append(asyncio.create_task(self.visit(relay, visitors)))
                await soon("visitors come", lambda: visitors[1000] > 3)
                relay.signal(number)
                endings = Counter([await ending(each) for each in (*servers, *handsets)])
                self.assertEqual(endings, {SHUTTING_DOWN: self.binaries + self.phones})
                await asyncio.gather(*tasks)
                self.assertLessEqual(set(visitors), {1000, 1001, 1006, "turned away"})

        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)
        events = [line.split()[2] for line in relay.log().splitlines()]
        self.assertEqual(events.count("draining"), 1)
        self.assertEqual(events[-1], "drained")
        self.assertNotIn("server_released", events[: events.index("draining")])

    async def talk(self, handset: ClientConnection) -> None:
        """Have one round trip after the other until the connection ends."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await round_trip(handset, "x" * 100)

    async def visit(self, relay: Relay, endings: Counter[object]) -> None:
        """Come and go, until one is turned away because nobody listens."""
        while True:
            try:
                visitor = await phone(relay, "b0")
                await visitor.close()
                endings[visitor.close_code] += 1
            except (OSError, WebSocketException, TimeoutError):
                endings["turned away"] += 1
                if relay.process.poll() is not None:
                    return
                await asyncio.sleep(0.01)

    def test_what_is_queued_goes_out_first(self) -> None:
        """A slow phone gets all its frames, and then its 1001."""
        relay = self.relay("--send-buffer=8K")

        async def scenario() -> None:
            async with binary(relay, "b") as server, slow_phone(relay, server) as (slow, conn_id):
                for number in range(40):
                    answer = {"conn_id": conn_id, "frame": [number, "x" * 20_000]}
                    await send(server, answer)
                # The relay has read all that once it answers the ping behind it.
                await (await server.ping())
                relay.signal(signal.SIGTERM)
                await soon("it drains", lambda: " draining " in relay.log())
                came = await asyncio.to_thread(up_to_close, slow)
            numbers = [json.loads(payload)[0] for opcode, payload in came if opcode == TEXT]
            self.assertEqual(numbers, list(range(40)))
            self.assertEqual(came[-1], (CLOSE, b"\x03\xe9shutting down"))

        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)

    def test_a_peer_that_does_not_read_cannot_hold_it_up(self) -> None:
        """At the end of the drain time the process ends with 0, whatever is open."""
        relay = self.relay("--drain-timeout=1", "--close-timeout=600", "--send-buffer=8K")

        async def scenario() -> None:
            async with binary(relay, "b") as server, slow_phone(relay, server) as (_, conn_id):
                for _ in range(10):
                    await send(server, {"conn_id": conn_id, "frame": "x" * 200_000})
                await (await server.ping())
                relay.signal(signal.SIGTERM)
                self.assertEqual(await ending(server), SHUTTING_DOWN)
                self.assertEqual(await asyncio.to_thread(relay.wait), 0)

        self.perform(scenario())
        self.assertIn(" drained ", relay.log())

    def test_readiness_turns(self) -> None:
        """While it drains, connections that are open see 503, and new ones are not accepted."""
        relay = self.relay("--close-timeout=60", "--drain-timeout=120", "--header-timeout=60")
        with (
            dial(relay.address) as early,
            dial(relay.address) as late,
            BarePeer(relay, "/v1/client", phone_fields("nobody")),
        ):
            # The relay accepts in order: it has those two, which ask nothing yet.
            self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
            relay.signal(signal.SIGTERM)
            eventually("it drains", lambda: " draining " in relay.log())
            early.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            late.sendall(upgrade_request("/v1/client", phone_fields("nobody")))
            for each in (early, late):
                answer = read_all(each)
                self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
                self.assertIn(b"\r\nRetry-After: ", answer)
            with self.assertRaises(ConnectionRefusedError):
                dial(relay.address)
        self.assertEqual(relay.wait(), 0)

    def test_an_idle_relay_ends_at_once(self) -> None:
        """With nobody there, neither the drain time nor any other has to pass."""
        for number in (signal.SIGTERM, signal.SIGINT):
            relay = self.relay("--drain-timeout=86400", "--close-timeout=86400")
            self.assertEqual(relay.stop(number), 0)


class EndTests(SystemTestCase):
    """Ends that are not polite."""

    def test_a_second_signal_ends_it_at_once(self) -> None:
        """While it waits for a peer that does not go, another signal ends the process."""
        for first, second in (
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGINT, signal.SIGINT),
            (signal.SIGTERM, signal.SIGINT),
        ):
            relay = self.relay("--drain-timeout=86400", "--close-timeout=86400")
            with BarePeer(relay, "/v1/client", phone_fields("nobody")):
                relay.signal(first)
                eventually("it drains", lambda r=relay: " draining " in r.log())
                self.assertIsNone(relay.process.poll())
                self.assertEqual(relay.stop(second), -second)
            self.assertNotIn(" drained ", relay.log())

    def test_killed_and_started_again(self) -> None:
        """After SIGKILL a new relay takes the same port, and everybody comes back and talks."""
        relay = self.relay()
        port = relay.port

        async def come_and_talk(relay: Relay, stack: AsyncExitStack) -> list[ClientConnection]:
            server = await stack.enter_async_context(binary(relay, "b"))
            task = asyncio.create_task(echo(server))
            stack.callback(task.cancel)
            handsets = [await stack.enter_async_context(phone(relay, "b")) for _ in range(5)]
            for number, each in enumerate(handsets):
                await round_trip(each, number)
            return [server, *handsets]

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                before = await come_and_talk(relay, stack)
                self.assertEqual(relay.stop(signal.SIGKILL), -signal.SIGKILL)
                for each in before:
                    self.assertEqual((await ending(each))[0], 1006)
                again = await asyncio.to_thread(self.relay, listen=f"127.0.0.1:{port}")
                await come_and_talk(again, stack)
                self.assertEqual(again.counts(), (1, 5))

        self.perform(scenario())
