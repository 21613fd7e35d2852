"""Floods of connections: whoever floods is refused, and nobody else notices.

The addresses are several of the loopback network, which are as different as any to the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import resource
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import needs
from tests.peers.frames import CLOSE, TEXT, frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually, soon
from tests.system.harness import (
    TWISTD,
    Address,
    BarePeer,
    Relay,
    SystemTestCase,
    binary,
    bystanders,
    fetch,
    phone,
    read_all,
    round_trip,
)
from tests.system.harness import echo as answer

FLOODER = "127.0.66.6"
"""Whose flood it is. The others are at 127.0.0.1 and up."""

DEFAULTS = ("--upgrade-rate=10", "--max-connections-per-address=64")
"""The limits of an address, which the harness lifts."""


def dial_from(host: str, address: Address) -> socket.socket:
    """Return a socket that is connected from an address of its own."""
    assert not isinstance(address, str)
    sock = socket.create_connection(address, DEADLINE, source_address=(host, 0))
    sock.settimeout(DEADLINE)
    return sock


def open_files(relay: Relay) -> int:
    """Return how many files a relay has open."""
    return len([*Path(f"/proc/{relay.pid}/fd").iterdir()])


class FloodTestCase(SystemTestCase):
    """A relay that somebody floods."""

    served = 3
    """How many pairs of newcomers are served during a flood, at the least."""

    async def flood(
        self,
        relay: Relay,
        step: Callable[[int], None],
        times: int,
        path: str,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Do a step of the flood so many times, in a thread, and serve others meanwhile.

        A step is given its number. A phone and a daemon talk on all the while; new ones come, talk
        and go, after which the path is asked for and the relay watched. However slow the machine
        is, the flood goes on until all that has been done some times.
        """
        number, stopped = 0, False

        def run() -> None:
            for each in itertools.count():
                if stopped or (each >= times and number >= self.served):
                    return
                step(each)

        async with bystanders(relay):
            flooding = asyncio.create_task(asyncio.to_thread(run))
            try:
                while not flooding.done():
                    await self.newcomers(relay, number % 100)
                    status, _ = await asyncio.to_thread(fetch, relay.address, path)
                    self.assertEqual(status, 200)
                    watch()
                    number += 1
                await flooding
            finally:
                stopped = True
                await asyncio.wait([flooding])

    async def newcomers(self, relay: Relay, number: int) -> None:
        """Connect a binary and a phone, each from an address of its own, and have them talk."""
        name = f"newcomer-{number}"
        hosts = [f"127.0.{1 + number}.{each}" for each in (1, 2)]
        options: list[dict[str, Any]] = [{"local_addr": (host, 0)} for host in hosts]
        there, here = options
        async with binary(relay, name, **there) as server, phone(relay, name, **here) as handset:
            answering = asyncio.create_task(answer(server))
            await round_trip(handset, {"newcomer": number})
            answering.cancel()


class UpgradeFloodTests(FloodTestCase):
    """Attempts to upgrade, one after the other."""

    def test_five_thousand_attempts(self) -> None:
        """5,000 attempts from one address: a few get in, the rest are refused in good order.

        Meanwhile a phone and a daemon of others talk on, and new ones come and are served.
        Neither the log nor memory grows with the flood.
        """
        relay = self.relay(*DEFAULTS)
        answers: Counter[int] = Counter()
        request = upgrade_request("/v2/server", binary_fields("flood"))

        def attempt(number: int) -> None:
            sock = dial_from(FLOODER, relay.address)
            sock.sendall(request.replace(b"flood", b"flood-%d" % number))
            head = sock.recv(4096)
            status = int(head.split()[1])
            answers[status] += 1
            if status == 101:
                self.addCleanup(sock.close)
                return
            self.assertRegex(head, rb"(?i)\r\nretry-after: [1-9]\d*\r\n")
            self.assertTrue(head.endswith(b"\r\n\r\n"))
            self.assertEqual(read_all(sock), b"")
            sock.close()

        before, began = relay.rss(), time.monotonic()
        self.perform(self.flood(relay, attempt, 5000, "/readyz"), 120)
        self.assertGreaterEqual(sum(answers.values()), 5000)
        # The burst, and what the rate adds in the meantime.
        self.assertGreaterEqual(answers[101], 20)
        self.assertLessEqual(answers[101], 21 + 10 * (time.monotonic() - began))
        self.assertEqual(answers[429], sum(answers.values()) - answers[101])
        lines = [each for each in relay.log().splitlines() if "rate_limited" in each]
        self.assertTrue(0 < len(lines) < 50, len(lines))
        self.assertIn(f"remote={FLOODER} path=/v2/server", lines[0])
        self.assertLess(relay.rss() - before, 8 * 2**20)

    def test_many_connections(self) -> None:
        """An address that keeps what it gets is stopped at its number, and others are not."""
        relay = self.relay("--max-connections-per-address=10")
        for number in range(10):
            sock = dial_from(FLOODER, relay.address)
            self.addCleanup(sock.close)
            sock.sendall(upgrade_request("/v2/server", binary_fields(f"flood-{number}")))
            self.assertIn(b" 101 ", sock.recv(4096))
        with dial_from(FLOODER, relay.address) as sock:
            sock.sendall(upgrade_request("/v2/server", binary_fields("one-more")))
            head = rb"(?si)\AHTTP/1.1 503 .*\r\nretry-after: 30\r\n.*\r\n\r\n\Z"
            self.assertRegex(read_all(sock), head)

        async def scenario() -> None:
            async with bystanders(relay):
                await self.newcomers(relay, 0)

        self.perform(scenario())
        self.assertIn('reason="too many connections from this address"', relay.log())

    def test_no_place_is_lost(self) -> None:
        """However connections end, an address has all of its places again when they are gone."""
        relay = self.relay("--max-connections-per-address=5", "--max-connections=20")
        request = upgrade_request("/v2/server", binary_fields("b"))
        ends: list[tuple[bytes, bytes]] = [
            (b"", b""),
            (request[:50], b""),
            (request, b""),
            (request, frame(CLOSE, b"\x03\xe8")),
            (request, frame(TEXT, b"no envelope")),
            (request, frame(TEXT, b"{}", masked=False)),
            (request, b"\xff" * 100),
            (request, frame(TEXT, length=200) + b"half"),
            (request.replace(b"b\r\n", b"\r\n"), b""),
            (upgrade_request("/v1/client", phone_fields("nobody")), b""),
            (
                upgrade_request("/v1/client", phone_fields("nobody") | {"X-Pyrycode-Token": " "}),
                b"",
            ),
            (request.replace(b"GET", b"PUT"), b""),
        ]
        for number in range(20 * len(ends)):
            first, then = ends[number // 20]
            with dial_from(FLOODER, relay.address) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(first)
                if then:
                    sock.recv(12)
                    sock.sendall(then)
                if number % 4 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif number % 4 == 1:
                    sock.shutdown(socket.SHUT_WR)
        numbers = itertools.count()

        def one_more() -> bool:
            sock = dial_from(FLOODER, relay.address)
            self.addCleanup(sock.close)
            sock.sendall(upgrade_request("/v2/server", binary_fields(f"kept-{next(numbers)}")))
            return b" 101 " in sock.recv(4096)

        for _ in range(5):
            eventually("there is another place", one_more)
        self.assertFalse(one_more())

    def test_phones_cannot_lock_binaries_out(self) -> None:
        """When phones have taken all they can, daemons still get in, and health is answered."""
        relay = self.relay("--max-connections=10", "--reserve-binaries=0.3")
        peers = [BarePeer(relay, "/v2/server", binary_fields("b"))]
        peers += [BarePeer(relay, "/v2/client", phone_fields("b")) for _ in range(7)]
        with dial_from("127.0.0.1", relay.address) as sock:
            sock.sendall(upgrade_request("/v2/client", phone_fields("b")))
            self.assertIn(b" 503 ", read_all(sock))
        peers += [BarePeer(relay, "/v2/server", binary_fields(f"b{each}")) for each in range(2)]
        with dial_from("127.0.0.1", relay.address) as sock:
            sock.sendall(upgrade_request("/v2/server", binary_fields("b3")))
            self.assertIn(b" 503 ", read_all(sock))
        self.assertEqual(relay.counts(), (3, 7))
        for peer in peers:
            peer.sock.close()

    def test_dry_run(self) -> None:
        """A dry run lets everybody in and says whom it would not have."""
        relay = self.relay("--upgrade-rate=1", "--upgrade-burst=2", "--limits-dry-run")
        for _ in range(5):
            with BarePeer(relay, "/v1/client", phone_fields("nobody")) as peer:
                self.assertEqual(peer.ending(), (4404, "no server with that id"))
        self.assertEqual(relay.log().count('enforcement="dry run"'), 3)


class SilentFloodTests(FloodTestCase):
    """Connections that ask for nothing."""

    def small(self, files: int) -> Relay:
        """Start a relay that may open so many files."""
        return self.relay(launcher=(needs.program("prlimit"), f"--nofile={files}:{files}"))

    def test_silent_connections(self) -> None:
        """3,000 silent connections at a relay with 512 files: it drops the oldest of them.

        Nobody who asks for something notices, and the relay never runs out of files.
        """
        needs.descriptors(4096)
        relay = self.small(512)
        silent: deque[socket.socket] = deque()

        def connect(number: int) -> None:
            if number >= 3000:  # Files of this process have an end, too.
                silent.popleft().close()
            silent.append(dial_from(FLOODER, relay.address))
            self.addCleanup(silent[-1].close)

        def watch() -> None:
            self.assertLess(open_files(relay), 512)

        self.perform(self.flood(relay, connect, 3000, "/healthz", watch), 120)
        self.assertIn("oldest of too many", relay.log())
        self.assertLess(relay.log().count("oldest of too many"), 50)

    def test_no_files_left(self) -> None:
        """When files do run out, new connections are closed, old ones live, and it passes."""
        relay = self.relay()
        pid, nofile = relay.pid, resource.RLIMIT_NOFILE

        async def scenario() -> None:
            async with bystanders(relay):
                # As if something else in the process had taken the rest.
                soft, hard = resource.prlimit(pid, nofile)
                resource.prlimit(pid, nofile, (open_files(relay) + 4, hard))
                await soon("the relay closes connections", lambda: self.closed(relay))
                for _ in range(100):
                    self.closed(relay)
                resource.prlimit(pid, nofile, (soft, hard))
                status, _ = await asyncio.to_thread(fetch, relay.address, "/healthz")
                self.assertEqual(status, 200)
                await self.newcomers(relay, 0)

        self.perform(scenario())
        self.assertIn(" warn accept_failed err=EMFILE ", relay.log())
        self.assertNotIn(FLOODER, relay.log())

    def closed(self, relay: Relay) -> bool:
        """Connect once more, and return whether the relay closes it at once."""
        sock = dial_from(FLOODER, relay.address)
        self.addCleanup(sock.close)
        sock.settimeout(0.05)
        try:
            over = sock.recv(1) == b""
        except TimeoutError:
            over = False
        except ConnectionError:
            over = True
        return over


class OpenFilesTests(SystemTestCase):
    """How many connections there is room for."""

    def test_raised(self) -> None:
        """The soft limit is raised to the hard one, and what comes of it is said at start."""
        needs.descriptors(2000)
        relay = self.relay(launcher=(needs.program("prlimit"), "--nofile=300:2000"))
        limits = Path(f"/proc/{relay.pid}/limits").read_text(encoding="ascii")
        self.assertRegex(limits, r"(?m)^Max open files +2000 +2000 ")
        self.assertRegex(
            relay.log(),
            r' starting .*capacity="room for 1558 connections, 155 of them reserved for binaries; '
            r'at most 2000 open files"',
        )

    def test_not_enough(self) -> None:
        """Limits that the files are not enough for are a sentence, and nothing is bound."""
        for files, option, pattern in (
            (512, "--max-connections=5000", "need 5256 open files, and 512 are allowed"),
            (512, "--max-waiting=500", "and 512 are allowed"),
            (100, "--grace=1", "Only 100 files may be open"),
        ):
            listen = f"--insecure-listen=unix:{self.directory}/s"
            twistd = (TWISTD, "--pidfile=", "-n", "pyrycode-relay", listen, option)
            run = self.child(needs.program("prlimit"), f"--nofile={files}:{files}", *twistd)
            self.assertEqual(run.wait(), 2)
            [line] = run.errors().splitlines()
            self.assertRegex(line, rf"\Apyrycode-relay: .*{re.escape(pattern)}.*ulimit -n.*\.\Z")
