"""TLS as clients of the field see it: OpenSSL's own, curl, ``websockets``, and who speaks none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import time
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests import needs
from tests.ca import DAY, Authority, Issued, rsa_key
from tests.peers.frames import TEXT, frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually, soon
from tests.system import harness
from tests.system.harness import (
    ROOT,
    TWISTD,
    Relay,
    SystemTestCase,
    bystanders,
    dial,
    ending,
    fetch,
    read_all,
    receive,
    round_trip,
    run_program,
    send,
)
from tests.system.test_proxies import change, recipe

NAME = "relay.test"
LIFTED = (
    "--max-connections-per-address=100000",
    "--upgrade-rate=100000",
    "--upgrade-burst=100000",
    "--max-waiting=1000",
)
"""All of a test's peers have one address."""
KIBIBYTE = 2**10


class Door(NamedTuple):
    """A relay's TLS listener, and what its clients trust; a `Relay` for the harness's peers."""

    relay: Relay
    context: ssl.SSLContext

    @property
    def port(self) -> int:
        return int(self.relay.addresses()[1][1])

    @property
    def url(self) -> str:
        return f"wss://{NAME}:{self.port}"

    def binary(self, server_id: str, **more: Any) -> connect:
        """Connect as a binary."""
        return harness.binary(self, server_id, **self._how(), **more)  # type: ignore[arg-type]

    def phone(self, server_id: str, **more: Any) -> connect:
        """Connect as a phone."""
        return harness.phone(self, server_id, **self._how(), **more)  # type: ignore[arg-type]

    def _how(self) -> dict[str, Any]:
        # The name leads nowhere: it is for the certificate.
        return {"ssl": self.context, "host": "127.0.0.1", "port": self.port}

    def dial(self, name: str | None = NAME, receive_buffer: int | None = None) -> ssl.SSLSocket:
        """Return a connected socket that has shaken hands."""
        sock = dial(("127.0.0.1", self.port), receive_buffer)
        try:
            return self.context.wrap_socket(sock, server_hostname=name)
        except OSError:
            sock.close()
            raise

    def ask(self, path: str, *hosts: str, name: str | None = NAME) -> bytes:
        """Return the answer to a request with these Host headers."""
        with self.dial(name) as sock:
            lines = "".join(f"Host: {host}\r\n" for host in hosts)
            sock.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
            return read_all(sock)

    def certificate(self) -> bytes | None:
        """Return what a client is served now."""
        with self.dial() as sock:
            return sock.getpeercert(binary_form=True)


class TLSTestCase(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority()
        self.ca = self.directory / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.chain, self.key = self.directory / "fullchain.pem", self.directory / "privkey.pem"
        self.issued = self.replace()

    def replace(self, *names: str, **more: Any) -> Issued:
        """Put a new certificate in the place of the old one."""
        issued = self.authority.issue(*(names or (NAME,)), **more)
        return issued.store(self.chain, self.key)

    def door(self, *options: str, **more: Any) -> Door:
        """Start a relay with a plain listener, to look at it, and one with TLS."""
        pair = (f"--tls-cert={self.chain}", f"--tls-key={self.key}")
        relay = self.relay("--tls-listen=127.0.0.1:0", *pair, *options, **more)
        return Door(relay, ssl.create_default_context(cafile=self.ca))

    def run_client(self, *command: str | Path, standard_input: str = "") -> str:
        """Run a client to its end and return all that it wrote."""
        run = run_program(*command, standard_input=standard_input)
        return run.stdout + run.stderr

    def s_client(self, door: Door, *options: str | Path) -> str:
        """Return what ``openssl s_client`` says of a relay, after a request."""
        return self.run_client(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{door.port}", "-CAfile", self.ca),
            *("-servername", NAME, "-verify_hostname", NAME, "-verify_return_error"),
            *options,
            standard_input="GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n",
        )

    def events(self, relay: Relay, label: str) -> list[str]:
        """Return the log's lines of one event."""
        return [line for line in relay.log().splitlines() if f" {label} " in line]


class ClientTests(TLSTestCase):
    """Clients with their normal settings, but for whom they trust."""

    def test_websockets(self) -> None:
        """Phone and binary talk over TLS, frames of every size, and close politely.

        The start has the URL, and the certificate's name and last day.
        """
        door = self.door()
        url = re.escape(f"wss://127.0.0.1:{door.port}")
        start = rf'listening url={url} certificates="{NAME} until \d{{4}}-\d\d-\d\d"\n.* ready\n'
        self.assertRegex(door.relay.log(), start)

        async def scenario() -> None:
            async with door.binary("home") as server, door.phone("home") as handset:
                self.assertEqual(
                    handset.transport.get_extra_info("ssl_object").version(), "TLSv1.3"
                )
                answering = asyncio.create_task(harness.echo(server))
                for size in (1, 1000, 16_384, 262_140):
                    await round_trip(handset, "x" * size)
                answering.cancel()
            await soon("both are gone", lambda: door.relay.counts() == (0, 0))

        self.perform(scenario())

    def test_s_client(self) -> None:
        """OpenSSL verifies chain and name, in both versions, and is offered what it should be."""
        door = self.door()
        for version in ("-tls1_3", "-tls1_2"):
            said = self.s_client(door, version, "-ign_eof")
            self.assertIn("Verify return code: 0 (ok)", said)
            self.assertIn(f"Verified peername: {NAME}", said)
            self.assertIn("Compression: NONE", said)
            self.assertRegex(said, r"Cipher is (TLS_AES_\d+_GCM|ECDHE-ECDSA-AES\d+-GCM)_?-?SHA\d+")
            self.assertIn("HTTP/1.1 200 OK", said)

    def test_renegotiation(self) -> None:
        """A client that asks for renegotiation does not get it."""
        said = self.run_client(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{self.door().port}", "-tls1_2"),
            *("-servername", NAME),
            standard_input="R\n",
        )
        self.assertIn("no renegotiation", said)

    def test_curl(self) -> None:
        """curl verifies the chain of either kind of key, agrees on HTTP/1.1 and gets its answer."""
        rsa = self.directory / "rsa.pem", self.directory / "rsa.key"
        self.authority.issue(NAME, key=rsa_key()).store(*rsa)
        door = self.door(f"--tls-cert={rsa[0]}", f"--tls-key={rsa[1]}")
        resolved = f"{NAME}:{door.port}:127.0.0.1"
        for ciphers, kind in (
            ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA"),
            ("ECDHE-RSA-AES128-GCM-SHA256", "RSA"),
        ):
            said = self.run_client(
                *("curl", "-sv", "--cacert", self.ca, "--resolve", resolved, "--tls-max", "1.2"),
                *("--ciphers", ciphers, f"https://{NAME}:{door.port}/healthz"),
            )
            for words in (
                "SSL certificate verify ok",
                "ALPN: server accepted http/1.1",
                "200 OK",
                kind,
            ):
                self.assertIn(words, said)

    def test_stranger(self) -> None:
        """A client that does not trust the CA refuses the relay, and costs no more than a line."""
        door = self.door()
        said = self.run_client("curl", "-s", "-S", f"https://localhost:{door.port}/healthz")
        self.assertIn("SSL certificate problem", said)
        self.assertEqual(self.events(door.relay, "tls_handshake_failed"), [])

    def test_resumption(self) -> None:
        """A second handshake resumes, even when the certificate has been replaced between them."""
        door = self.door()
        session = self.directory / "session"
        for version in ("-tls1_3", "-tls1_2"):
            said = self.s_client(door, version, "-ign_eof", "-sess_out", session)
            self.assertIn("New, TLSv1", said)
            if version == "-tls1_3":
                # What comes with the first flight could be played again.
                self.assertIn("Max Early Data: 0", said)
            self.replace()
            door.relay.signal(signal.SIGHUP)
            count = 1 if version == "-tls1_3" else 2
            eventually(
                "it is taken",
                lambda count=count: len(self.events(door.relay, "tls_reloaded")) >= count,
            )
            said = self.s_client(door, version, "-ign_eof", "-sess_in", session)
            self.assertIn("Reused, TLSv1", said)
            self.assertIn("HTTP/1.1 200 OK", said)


class NameTests(TLSTestCase):
    """Names of the relay, and others."""

    def test_host(self) -> None:
        """A Host that is not one of the names is 421, with nothing else, on every path."""
        self.issued = self.replace(NAME, "two.test")
        door = self.door(f"--domain={NAME}", "--domain=TWO.test")
        paths = ("/healthz", "/readyz", "/v1/server", "/v2/client", "/", "/else")
        for path in paths:
            for hosts in (
                ["other.test"],
                [],
                [NAME, NAME],
                [f"{NAME}.", f"x{NAME}"],
                ["127.0.0.1"],
            ):
                answer = door.ask(path, *hosts)
                self.assertTrue(answer.startswith(b"HTTP/1.1 421 Misdirected Request\r\n"), answer)
                self.assertTrue(answer.endswith(b"\r\n\r\n"), answer)
        for host in (NAME, NAME.upper(), f"{NAME}:443", f"{NAME}:", "two.test:8443", "Two.Test"):
            self.assertIn(b" 200 OK\r\n", door.ask("/healthz", host))
            self.assertIn(b" 404 ", door.ask("/else", host))
        self.assertEqual(fetch(door.relay.address, "/healthz")[0], 200)

    def test_any_host(self) -> None:
        """Without names any Host will do."""
        door = self.door()
        self.assertIn(b" 200 OK\r\n", door.ask("/healthz", "other.test"))

    def test_upgrade(self) -> None:
        """With its name in the URL a phone gets in; with another Host it does not."""
        door = self.door(f"--domain={NAME}")

        async def scenario() -> None:
            async with door.phone("nobody") as handset:
                self.assertEqual((await ending(handset))[0], 4404)
            wrong = connect(
                f"wss://other.test:{door.port}/v1/client",
                ssl=door.context,
                host="127.0.0.1",
                port=door.port,
                server_hostname=NAME,
                proxy=None,
            )
            with self.assertRaises(InvalidStatus) as caught:
                await wrong
            self.assertEqual(caught.exception.response.status_code, 421)

        self.perform(scenario())

    def test_other_name(self) -> None:
        """A handshake for another name is refused; one for no name is not."""
        door = self.door(f"--domain={NAME}")
        for name in ("other.test", f"a.{NAME}", "localhost"):
            error = self.assertRaises(ssl.SSLError, door.dial, name)
            self.assertIn("handshake failure", str(error))
        door.context.check_hostname = False
        self.assertIn(b" 200 OK\r\n", door.ask("/healthz", NAME, name=None))

    def test_directory(self) -> None:
        """Each name of a directory gets its own certificate, whatever file it is in."""
        directory = self.directory / "certificates"
        directory.mkdir()
        for name in ("one.test", "two.test"):
            issued = self.authority.issue(name)
            issued.store(directory / f"{name}.pem", directory / f"{name}.key")
        relay = self.relay("--tls-listen=127.0.0.1:0", f"--tls-dir={directory}")
        door = Door(relay, ssl.create_default_context(cafile=self.ca))
        for name in ("one.test", "two.test"):
            with door.dial(name) as sock:
                certificate = sock.getpeercert() or {}
                self.assertEqual(certificate["subjectAltName"], (("DNS", name),))


class ReloadTests(TLSTestCase):
    """Certificates that change under a relay at work."""

    def reload(self, door: Door) -> None:
        """Ask for a reload, and see that it has been done."""
        done = len(self.events(door.relay, "tls_reloaded"))
        door.relay.signal(signal.SIGHUP)
        eventually("it has reloaded", lambda: len(self.events(door.relay, "tls_reloaded")) > done)

    def served(self, door: Door, issued: Issued) -> bool:
        """Whether new connections are served with this certificate."""
        certificate = door.certificate()
        return certificate == issued.chain[0].public_bytes(Encoding.DER)

    def test_by_itself(self) -> None:
        """New files are found without being told of, and old connections know nothing of it."""
        door = self.door()

        async def scenario() -> None:
            async with door.binary("home") as server, door.phone("home") as handset:
                answering = asyncio.create_task(harness.echo(server))
                await round_trip(handset, 1)
                fresh = self.replace()
                await soon("it is served", lambda: self.served(door, fresh))
                await round_trip(handset, 2)
                answering.cancel()

        self.perform(scenario())
        self.assertEqual(len(self.events(door.relay, "tls_reloaded")), 1)

    def test_bad_pair(self) -> None:
        """A pair that does not fit is one line and no change, however long it stays."""
        door = self.door()
        self.key.write_bytes(self.authority.issue(NAME).key_pem())
        eventually("it is told", lambda: self.events(door.relay, "tls_reload_failed"))
        self.assertTrue(self.served(door, self.issued))
        [line] = self.events(door.relay, "tls_reload_failed")
        self.assertRegex(line, r" warn .*does not belong to the certificate in")
        fresh = self.replace()
        eventually("the next is served", lambda: self.served(door, fresh))
        self.assertEqual(len(self.events(door.relay, "tls_reload_failed")), 1)

    def test_under_load(self) -> None:
        """Reloads under 500 connections that talk lose no frame and end no connection."""
        needs.descriptors(1200)
        door = self.door(*LIFTED)
        ids = [f"server-{number}" for number in range(32)]
        seen: list[bytes | None] = []

        async def talk(handset: ClientConnection, over: asyncio.Event) -> int:
            """Go on until it is over, and a few more; each frame has to come back, in order."""
            sent = 0
            while not over.is_set() or sent < 3:
                await send(handset, sent)
                await send(handset, [sent])
                self.assertEqual(await receive(handset), sent)
                self.assertEqual(await receive(handset), [sent])
                sent += 1
            return sent

        async def scenario() -> None:
            over = asyncio.Event()
            async with contextlib.AsyncExitStack() as stack:
                turn = asyncio.Semaphore(50)

                async def enter(peer: connect) -> ClientConnection:
                    async with turn:
                        return await stack.enter_async_context(peer)

                servers = await asyncio.gather(*(enter(door.binary(each)) for each in ids))
                echoes = [asyncio.create_task(harness.echo(each)) for each in servers]
                handsets = await asyncio.gather(
                    *(enter(door.phone(each)) for each in ids for _ in range(15))
                )
                self.assertGreaterEqual(len(servers) + len(handsets), 500)
                talks = [asyncio.create_task(talk(each, over)) for each in handsets]
                for number in range(3):
                    self.replace()
                    door.relay.signal(signal.SIGHUP)
                    await soon(
                        "it has reloaded",
                        lambda n=number: len(self.events(door.relay, "tls_reloaded")) > n,
                    )
                    seen.append(await asyncio.to_thread(door.certificate))
                over.set()
                trips = await asyncio.gather(*talks)
                self.assertGreaterEqual(min(trips), 3)
                self.assertEqual(door.relay.counts(), (32, 480))
                for each in echoes:
                    each.cancel()

        self.perform(scenario())
        self.assertEqual(len(set(seen)), 3)

    def test_a_hundred(self) -> None:
        """100 reloads, with handshakes between them, leave neither memory nor descriptors."""
        door = self.door()
        descriptors = Path(f"/proc/{door.relay.pid}/fd")

        def reload_often(times: int, most: int) -> tuple[int, int]:
            for _ in range(times):
                self.reload(door)
                door.certificate()
            eventually("peers are gone", lambda: len([*descriptors.iterdir()]) <= most)
            return door.relay.rss(), len([*descriptors.iterdir()])

        first = reload_often(30, len([*descriptors.iterdir()]))
        last = reload_often(100, first[1])
        self.assertLessEqual(last[1], first[1])
        # A context with its certificate has some 30 KiB, so that a leak would be 3 MiB.
        self.assertLess(last[0] - first[0], 1024 * KIBIBYTE, (first, last))

    def test_hangup_without_tls(self) -> None:
        """SIGHUP does nothing to a relay that has no certificates."""
        relay = self.relay()
        relay.signal(signal.SIGHUP)
        self.assertEqual(relay.health()["status"], "ok")
        self.assertEqual(relay.stop(), 0)


class FailureTests(TLSTestCase):
    """Peers that speak something else, or nothing."""

    def hello(self, version: bytes) -> bytes:
        """Return an old ClientHello with one cipher."""
        body = version + bytes(32) + b"\0" + b"\0\2\0\x2f" + b"\1\0"
        message = b"\1" + len(body).to_bytes(3, "big") + body
        return b"\x16" + version + len(message).to_bytes(2, "big") + message

    def test_each_is_one_line(self) -> None:
        """Whatever is no TLS is cut off, with one short line at debug and none above."""
        door = self.door("--log-level=debug", "--header-timeout=1")
        attempts = {
            "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "ssl2": b"\x80\x2e\x01\x00\x02" + bytes(43),
            "ssl3": self.hello(b"\3\0"),
            "tls10": self.hello(b"\3\1"),
            "garbage": bytes(range(256)) * 300,
            "long": b"\x16\3\1\xff\xff" + bytes(70_000),
            "one": b"\x16",
            "half": self.hello(b"\3\3")[:20],
            "nothing": b"",
            "proxy": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        }
        for number, (name, data) in enumerate(attempts.items(), 2):
            began, before = time.monotonic(), len(door.relay.log().splitlines())
            # Each from its own address, because the log has no sixth line of one address.
            here = f"127.0.0.{number}"
            with socket.create_connection(
                ("127.0.0.1", door.port), DEADLINE, source_address=(here, 0)
            ) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
                answer = read_all(sock)
            took = time.monotonic() - began
            # An alert at most.
            self.assertLessEqual(len(answer), 7, name)
            if name in {"one", "half", "nothing"}:
                self.assertGreater(took, 0.9, name)
            eventually("it is told", lambda b=before: len(door.relay.log().splitlines()) > b)
            lines = door.relay.log().splitlines()[before:]
            self.assertEqual(len(lines), 1, (name, lines))
            self.assertRegex(lines[0], rf" debug tls_handshake_failed remote={here} reason=")
            self.assertLess(len(lines[0]), 140)
        self.assertEqual(door.relay.bugs(), [])

    def test_all_of_them(self) -> None:
        """At the usual level there is no line at all, and others are served meanwhile."""
        door = self.door("--header-timeout=1")
        attempts = (
            *(b"GET / HTTP/1.1\r\n\r\n", self.hello(b"\3\0"), self.hello(b"\3\1")),
            *(os.urandom(100_000), b"\x16", b"\x80\x2e\x01\x00\x02" + bytes(43), b""),
        )

        async def scenario() -> None:
            async with bystanders(door.relay):
                await asyncio.gather(
                    *(asyncio.to_thread(self.attempt, door, each) for each in attempts * 8)
                )

        before = door.relay.log()
        self.perform(scenario())
        new = door.relay.log()[len(before) :].splitlines()
        mine = [line for line in new if "server_" not in line and "phone_" not in line]
        self.assertEqual(mine, [])

    def attempt(self, door: Door, data: bytes) -> None:
        """Send this and wait for the end."""
        with dial(("127.0.0.1", door.port)) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            read_all(sock)

    def test_dribble(self) -> None:
        """A handshake that comes byte by byte is cut at the header time-out anyway."""
        door = self.door("--header-timeout=1")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = door.context.wrap_bio(incoming, outgoing, server_hostname=NAME)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        hello = outgoing.read()
        began = time.monotonic()
        with dial(("127.0.0.1", door.port)) as sock:
            sock.settimeout(0.05)
            with contextlib.suppress(ConnectionError):
                for byte in hello:
                    sock.sendall(bytes([byte]))
                    try:
                        if not sock.recv(1):
                            break
                    except TimeoutError:
                        pass
                self.assertLess(time.monotonic() - began, DEADLINE)
        self.assertLess(time.monotonic() - began, 0.05 * len(hello))

    def test_anything_in_any_order(self) -> None:
        """Peers that do what they may and what they may not, at random, cost no traceback.

        They are crowded out now and again, and some break off where they stand.
        """
        options = (*LIFTED, "--max-waiting=10", "--close-timeout=1", "--grace=1")
        door = self.door(*options)
        random = Random(1)
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                sock = stack.enter_context(dial(("127.0.0.1", door.port)))
                sock.settimeout(0.1)
                with contextlib.suppress(OSError):
                    self.misbehave(door, sock, random)
                if random.random() < 0.1:
                    stack.pop_all().close()
        self.assertEqual(door.relay.health()["status"], "ok")
        # Beyond every deadline that such peers leave behind.
        eventually(
            "all are gone",
            lambda: (
                door.relay.counts() == (0, 0)
                and len(self.events(door.relay, "server_expired"))
                + len(self.events(door.relay, "server_reclaimed"))
                >= len(self.events(door.relay, "server_released"))
            ),
        )
        self.assertEqual(door.relay.bugs(), [])
        self.assertEqual(door.relay.stop(), 0)

    def misbehave(self, door: Door, sock: socket.socket, random: Random) -> None:
        """Shake hands, perhaps, and say some of the things that peers say."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = door.context.wrap_bio(incoming, outgoing, server_hostname=NAME)
        breaks = random.random() < 0.1
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                hello = outgoing.read()
                sock.sendall(hello[: random.randrange(len(hello))] if breaks else hello)
                if not (answer := sock.recv(65_536)):
                    return
                incoming.write(answer)
        server_id = f"server-{random.randrange(4)}"
        sayings = (
            upgrade_request("/v1/client", phone_fields(server_id)),
            upgrade_request("/v1/server", binary_fields(server_id)),
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            frame(TEXT, b'"x"'),
            frame(TEXT, b'"%s"' % (b"x" * 40_000)),
            frame(8, b"\x03\xe8"),
        )
        for _ in range(random.randrange(1, 7)):
            act = random.randrange(10)
            if act < 7:
                client.write(random.choice(sayings))
            elif act == 7:
                with contextlib.suppress(ssl.SSLError):
                    client.unwrap()
            elif act == 8:
                outgoing.write(random.randbytes(40))
            else:
                sock.sendall(outgoing.read())
                sock.shutdown(socket.SHUT_WR)
            if random.random() < 0.5:
                sock.sendall(outgoing.read())
        sock.sendall(outgoing.read())

    def test_time_is_one(self) -> None:
        """A handshake in time does not extend the time for the request."""
        door = self.door("--header-timeout=2")
        began = time.monotonic()
        with door.dial() as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\n")
            self.assertEqual(read_all(sock), b"")
        self.assertGreater(time.monotonic() - began, 1.5)


class ClosingTests(TLSTestCase):
    """Ends of connections, with peers that do not help."""

    def descriptors(self, door: Door) -> int:
        """Return how many files the relay has open."""
        return len([*Path(f"/proc/{door.relay.pid}/fd").iterdir()])

    def upgraded(self, door: Door, server_id: str, **more: Any) -> ssl.SSLSocket:
        """Return a phone's socket after the upgrade."""
        sock = door.dial(**more)
        sock.sendall(upgrade_request("/v1/client", phone_fields(server_id)))
        return sock

    def test_first_thing(self) -> None:
        """4404 with its reason is the first thing a phone sees, and its end is clean."""
        door = self.door()

        async def scenario() -> None:
            for _ in range(20):
                async with door.phone("nobody") as handset:
                    self.assertEqual(await ending(handset), (4404, "no server with that id"))

        self.perform(scenario())

    def test_drain(self) -> None:
        """1001 reaches both kinds of peers on SIGTERM, and the relay ends with 0."""
        door = self.door()

        async def scenario() -> None:
            async with door.binary("home") as server, door.phone("home") as handset:
                await send(handset, "here")
                await receive(server)
                door.relay.signal(signal.SIGTERM)
                self.assertEqual(await ending(handset), (1001, "shutting down"))
                self.assertEqual(await ending(server), (1001, "shutting down"))

        self.perform(scenario())
        self.assertEqual(door.relay.wait(), 0)
        self.assertIn(" aborted=0\n", door.relay.log())

    def test_never_answers(self) -> None:
        """A phone that gets its 4404 and does nothing more loses its socket at the deadline."""
        door = self.door("--close-timeout=1")
        before = self.descriptors(door)
        began = time.monotonic()
        socks = [self.upgraded(door, "nobody") for _ in range(3)]
        socks[0].recv(4096)
        eventually("all are gone", lambda: self.descriptors(door) <= before)
        self.assertGreater(time.monotonic() - began, 0.9)
        for sock in socks:
            sock.close()

    def test_answer_to_nobody(self) -> None:
        """So does who asks for something that is not there, and does not close TLS after it."""
        door = self.door("--close-timeout=1", "--header-timeout=2")
        before = self.descriptors(door)
        with contextlib.ExitStack() as stack:
            for request in (b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\r\n\r\n", b"x" * 40_000):
                sock = stack.enter_context(door.dial())
                with contextlib.suppress(ConnectionError):
                    sock.sendall(request)
            eventually("all are gone", lambda: self.descriptors(door) <= before)

    def test_never_reads(self) -> None:
        """A drain ends in time although phones read nothing of megabytes that wait for them."""
        door = self.door("--drain-timeout=3", "--close-timeout=1", "--write-stall=60")

        async def scenario() -> None:
            async with door.binary("home") as server:
                socks = [self.upgraded(door, "home", receive_buffer=4096) for _ in range(3)]
                try:
                    await soon("all are here", lambda: door.relay.counts() == (1, 3))
                    for sock in socks:
                        sock.sendall(frame(TEXT, b'"here"'))
                    ids = [(await receive(server))["conn_id"] for _ in socks]
                    for conn_id in ids:
                        for _ in range(8):
                            await send(server, {"conn_id": conn_id, "frame": "x" * 200_000})
                    began = time.monotonic()
                    door.relay.signal(signal.SIGTERM)
                    await ending(server)
                    await soon("it has ended", lambda: door.relay.process.poll() is not None)
                    self.assertLess(time.monotonic() - began, DEADLINE)
                finally:
                    for sock in socks:
                        sock.close()

        self.perform(scenario())
        self.assertEqual(door.relay.wait(), 0)
        self.assertEqual(len(self.events(door.relay, "drained")), 1)

    def test_cut_short(self) -> None:
        """A peer that goes without closing TLS is a peer that has gone: 1001 for its phone."""
        door = self.door()

        async def scenario() -> None:
            async with door.binary("home") as server:
                sock = self.upgraded(door, "home")
                await soon("it is here", lambda: door.relay.counts() == (1, 1))
                sock.sendall(frame(TEXT, b'"here"'))
                conn_id = (await receive(server))["conn_id"]
                os.close(sock.detach())
                self.assertEqual(await receive(server), {"conn_id": conn_id, "close_code": 1001})

        self.perform(scenario())


class StartTests(TLSTestCase):
    """Problems with certificates are reported before anything is served."""

    def refused(self, *options: str | Path, check: bool) -> list[str]:
        """Return the sentences that a start, or a check, ends with."""
        more = ["--check-config"] if check else ["--insecure-listen=127.0.0.1:0"]
        child = self.child(TWISTD, "--pidfile=", "-n", "pyrycode-relay", *options, *more)
        self.assertEqual(child.wait(), 2, child.output() + child.errors())
        self.assertNotIn("Traceback", child.output() + child.errors())
        self.assertNotIn(" starting ", child.output())
        return child.errors().splitlines()

    def test_wrong_files(self) -> None:
        """Each mistake is one sentence with option, file and fix, in a check as at a start."""
        other = self.directory / "other.pem", self.directory / "other.key"
        self.authority.issue("other.test").store(*other)
        old = self.directory / "old.pem", self.directory / "old.key"
        self.authority.issue(NAME, since=-9 * DAY, until=-DAY).store(*old)
        other[1].chmod(0o644)
        pairs = "--tls-cert and --tls-key: "
        mistakes: dict[tuple[str, ...], list[str]] = {
            (f"--tls-cert={self.chain}", f"--tls-key={self.directory}/none"): [
                f"{pairs}{self.directory}/none cannot be read: No such file or directory."
            ],
            (f"--tls-cert={self.key}", f"--tls-key={self.key}"): [
                (
                    f"{pairs}{self.key} has no certificate in PEM form, or a damaged one; give the "
                    "CA's fullchain.pem."
                )
            ],
            (f"--tls-cert={self.chain}", f"--tls-key={old[1]}"): [
                (
                    f"{pairs}The key {old[1]} does not belong to the certificate in {self.chain}; "
                    "give the key that it was issued for."
                )
            ],
            (f"--tls-cert={other[0]}", f"--tls-key={other[1]}"): [
                (
                    f"{pairs}The key {other[1]} is accessible to users other than its owner (mode "
                    f"644); run: chmod 600 {other[1]}."
                )
            ],
            (f"--tls-dir={self.directory}/none",): [
                f"--tls-dir: {self.directory}/none cannot be read: No such file or directory."
            ],
            (f"--tls-cert={self.chain}", f"--tls-key={self.key}", "--domain=two.test"): [
                (
                    f"{pairs}The certificate in {self.chain} is for none of the names given as "
                    "--domain; have it issued for them, or leave out the option."
                ),
                (
                    "No certificate is for two.test, which is a --domain; have one issued for it, "
                    "or leave out the option."
                ),
            ],
        }
        for options, sentences in mistakes.items():
            for check in (True, False):
                told = self.refused(*options, check=check)
                self.assertEqual(told, [f"pyrycode-relay: {each}" for each in sentences])
        [sentence] = self.refused(f"--tls-cert={old[0]}", f"--tls-key={old[1]}", check=False)
        self.assertRegex(sentence, r"old\.pem expired on \d{4}-\d\d-\d\d; renew it\.\Z")

    def test_good_files(self) -> None:
        """A check of good certificates prints the settings, the certificates and a verdict."""
        pair = (f"--tls-cert={self.chain}", f"--tls-key={self.key}")
        child = self.child(TWISTD, "--pidfile=", "-n", "pyrycode-relay", *pair, "--check-config")
        self.assertEqual(child.wait(), 0, child.errors())
        self.assertRegex(child.output(), r"(?m)^tls-listen = .*443")
        *_, certificate, verdict = child.output().splitlines()
        self.assertRegex(certificate, rf"\A# Certificate: {NAME} until \d{{4}}-\d\d-\d\d\Z")
        self.assertEqual(verdict, "# The configuration is fine.")


MANUAL = (ROOT / "docs" / "tls.md").read_text(encoding="utf-8")


class ManualTests(TLSTestCase):
    """What ``docs/tls.md`` says about certificates from files."""

    def test_configuration(self) -> None:
        """The manual's configuration serves its certificate under its name, and no other."""
        name = "relay.example.org"
        self.replace(name)
        config = self.directory / "relay.toml"
        text = change(
            recipe(MANUAL, "/etc/pyrycode-relay/relay.toml"),
            ("/etc/pyrycode-relay/fullchain.pem", str(self.chain)),
            ("/etc/pyrycode-relay/privkey.pem", str(self.key)),
        )
        config.write_text(text)
        relay = self.relay(f"--config={config}", "--tls-listen=127.0.0.1:0")
        door = Door(relay, ssl.create_default_context(cafile=self.ca))
        self.assertIn(b" 200 OK\r\n", door.ask("/healthz", name, name=name))
        self.assertIn(b" 421 ", door.ask("/healthz", NAME, name=name))

    def test_hook(self) -> None:
        """The manual's hook for certbot puts a renewed pair in place, and it is served."""
        lineage, place = self.directory / "lineage", self.directory / "place"
        lineage.mkdir()
        place.mkdir()
        text = change(
            recipe(MANUAL, "/etc/letsencrypt/renewal-hooks/deploy/pyrycode-relay"),
            ("/etc/pyrycode-relay", str(place)),
            ("-o pyrycode-relay ", ""),
        )
        hook = self.directory / "hook"
        hook.write_text(text)
        hook.chmod(0o755)
        environment = {"RENEWED_LINEAGE": str(lineage)}

        def renew() -> Issued:
            """Do as certbot does."""
            issued = self.authority.issue(NAME)
            issued.store(lineage / "fullchain.pem", lineage / "privkey.pem")
            self.assertEqual(self.child(hook, environment=environment).wait(), 0)
            return issued

        renew()
        pair = (f"--tls-cert={place}/fullchain.pem", f"--tls-key={place}/privkey.pem")
        door = Door(
            self.relay("--tls-listen=127.0.0.1:0", *pair),
            ssl.create_default_context(cafile=self.ca),
        )
        fresh = renew().chain[0].public_bytes(Encoding.DER)
        eventually("it is served", lambda: door.certificate() == fresh)
        self.assertEqual(self.events(door.relay, "tls_reload_failed"), [])


class ManagerTests(TLSTestCase):
    """systemd, played by a socket."""

    def test_life(self) -> None:
        """Ready once it serves, alive as long as it turns, reloading and stopping when it is."""
        path = str(self.directory / "notify")
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(path)
        manager.settimeout(DEADLINE)
        environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        pair = [f"--tls-cert={self.chain}", f"--tls-key={self.key}"]
        where = ["--insecure-listen=127.0.0.1:0", "--tls-listen=127.0.0.1:0"]
        relay = Relay(self.directory, [*where, *pair], environment=environment)
        self.addCleanup(relay.kill)

        def told() -> str:
            """Return the next word that is no sign of life."""
            while (word := manager.recv(4096).decode()) == "WATCHDOG=1":
                pass
            return word

        self.assertEqual(told(), "READY=1")
        eventually("the log has been written", relay.addresses)
        self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
        self.assertEqual({manager.recv(4096) for _ in range(3)}, {b"WATCHDOG=1"})
        relay.signal(signal.SIGHUP)
        self.assertRegex(told(), r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")
        self.assertEqual(told(), "READY=1")
        self.assertEqual(len(self.events(relay, "tls_reloaded")), 1)
        relay.signal(signal.SIGSTOP)
        with contextlib.suppress(BlockingIOError):
            manager.setblocking(False)
            while True:
                manager.recv(4096)
        manager.settimeout(1)
        # A process that hangs gives no sign of life; systemd would restart it.
        self.assertRaises(TimeoutError, manager.recv, 4096)
        relay.signal(signal.SIGCONT)
        manager.settimeout(DEADLINE)
        self.assertEqual(manager.recv(4096), b"WATCHDOG=1")
        relay.signal(signal.SIGTERM)
        self.assertEqual(told(), "STOPPING=1")
        self.assertEqual(relay.wait(), 0)


class MemoryTests(TLSTestCase):
    def test_idle(self) -> None:
        """An idle connection over TLS takes 36 KiB at most."""
        needs.descriptors(900)
        door = self.door(*LIFTED)

        def crowd(count: int) -> list[ssl.SSLSocket]:
            socks: list[ssl.SSLSocket] = []
            for _ in range(count):
                sock = door.dial()
                fields = {"User-Agent": "bare", "X-Pyrycode-Server": f"s{len(kept) + len(socks)}"}
                fields["X-Pyrycode-Version"] = "1"
                sock.sendall(upgrade_request("/v1/server", fields))
                socks.append(sock)
            return socks

        kept: list[ssl.SSLSocket] = []
        try:
            # The first ones bring what all have in common.
            kept += crowd(50)
            eventually("they are here", lambda: door.relay.counts()[0] == 50)
            before = door.relay.rss()
            kept += crowd(350)
            eventually("all are here", lambda: door.relay.counts()[0] == 400)
            each = (door.relay.rss() - before) / 350
            self.assertLessEqual(each, 36 * KIBIBYTE)
        finally:
            for sock in kept:
                sock.close()
