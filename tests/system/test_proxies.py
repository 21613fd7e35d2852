"""Behind proxies: PROXY headers below TLS, forwarded addresses, and real proxies in front."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import connect

from tests import needs
from tests.ca import Authority
from tests.peers.requests import binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually, soon
from tests.system.harness import (
    ROOT,
    TWISTD,
    Address,
    Child,
    Relay,
    SystemTestCase,
    dial,
    echo,
    ending,
    read_all,
    receive,
    round_trip,
    run_program,
)

NAME = "relay.test"
PROBE = Path(sys.executable).with_name("pyrycode-relay-probe")
CALLER = "203.0.113.9"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = f"PROXY TCP4 {CALLER} 192.0.2.1 56324 443\r\n".encode()
V1_IPV6 = b"PROXY TCP6 2001:db8::9 ::1 56324 443\r\n"
V2 = SIGNATURE + struct.pack("!BBH4s4sHH", 0x21, 0x11, 12, b"\xcb\0\x71\x09", bytes(4), 1, 2)
V2_TLVS = SIGNATURE + struct.pack(
    "!BBH4s4sHH2000s", 0x21, 0x11, 2012, b"\xcb\0\x71\x09", bytes(4), 1, 2, b"\x04\x07\xcd"
)
LOCAL = SIGNATURE + b"\x20\0\0\0"
HEADERS = {"v1": V1, "v1_ipv6": V1_IPV6, "v2": V2, "v2_tlvs": V2_TLVS}
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n"
HERE = "127.0.0.1"
ELSEWHERE = "127.0.0.9"
"""An address of this machine that no relay here trusts."""


def claim(server_id: str, **more: str) -> bytes:
    """Return a binary's request; underscores in names stand for hyphens."""
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return upgrade_request("/v1/server", {**binary_fields(server_id), **headers})


def dial_from(host: str, address: Address) -> socket.socket:
    """Return a socket connected from one of this machine's addresses."""
    assert not isinstance(address, str)
    return socket.create_connection(address, DEADLINE, (host, 0))


def send(sock: socket.socket, data: bytes, size: int) -> None:
    """Send bytes, so many at a time."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(data), size):
        sock.sendall(data[start : start + size])


def read_head(sock: socket.socket) -> bytes:
    """Return everything up to the end of an HTTP head, or of the connection."""
    data = b""
    while b"\r\n\r\n" not in data and (part := sock.recv(65536)):
        data += part
    return data


def tls_head(
    sock: socket.socket, context: ssl.SSLContext, header: bytes, request: bytes, size: int
) -> bytes:
    """Do as `read_head` after a TLS handshake, whose first bytes come right behind ``header``."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    waiting, answer, shaken = header, b"", False
    while b"\r\n\r\n" not in answer:
        try:
            if not shaken:
                tls.do_handshake()
                tls.write(request)
                shaken = True
            answer += tls.read(65536)
        except ssl.SSLWantReadError:
            send(sock, waiting + outgoing.read(), size)
            waiting = b""
            part = sock.recv(65536)
            if not part:
                break
            incoming.write(part)
    return answer


PROXIES = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
SETTINGS = "/etc/pyrycode-relay/relay.toml"


def recipe(page: str, head: str) -> str:
    """Return the file that a page of the manual shows below a comment beginning with ``head``."""
    lines = re.split(rf"(?m)^    # {re.escape(head)}(?=$|;)", page)[1].splitlines()[1:]
    block = []
    for line in lines:
        if (line and not line.startswith("    ")) or line.startswith("    # /"):
            break
        block.append(line)
    text = textwrap.dedent("\n".join(block))
    assert text.strip(), head
    return text


def change(text: str, *changes: tuple[str, str]) -> str:
    """Replace each of these in a recipe, which must have it."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


class ProxiesTestCase(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        authority = Authority()
        self.certificate, self.key = self.directory / "relay.pem", self.directory / "relay.key"
        authority.issue(NAME).store(self.certificate, self.key)
        self.ca_file = self.directory / "ca.pem"
        self.ca_file.write_bytes(authority.pem)
        self.context = ssl.create_default_context(cafile=str(self.ca_file))
        self.secure = (
            f"--tls-listen={HERE}:0",
            f"--tls-cert={self.certificate}",
            f"--tls-key={self.key}",
        )

    def proxied(self, *options: str, **more: Any) -> Relay:
        """Start a relay that wants PROXY headers, from 127.0.0.1, plain and over TLS."""
        wanted = ("--proxy-protocol", f"--trusted-proxy={HERE}")
        return self.relay(*wanted, *self.secure, *options, **{"preamble": V1, **more})

    def sockets(self, relay: Relay, host: str = HERE) -> Iterator[socket.socket]:
        """Yield a connection to each listener; it is closed before the next one."""
        for address in relay.addresses():
            with dial_from(host, address) as sock:
                yield sock

    def remotes(self, relay: Relay) -> list[str]:
        """Return the addresses of those who claimed a server-id, by the log."""
        return re.findall(r" server_claimed .* remote=(\S+)", relay.log())


class HeaderTests(ProxiesTestCase):
    """PROXY headers from bare sockets."""

    def test_who_calls(self) -> None:
        """In any version and pieces, with TLS above or not, the log has whom the header says."""
        relay = self.proxied()
        expected = []
        for size in (1, 7, 100_000):
            for name, header in HEADERS.items():
                request = claim(f"{name}-{size}")
                addresses = relay.addresses()
                with dial_from(HERE, addresses[0]) as sock:
                    send(sock, header + request, size)
                    self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "), name)
                with dial_from(HERE, addresses[1]) as sock:
                    request = claim(f"{name}-{size}-tls")
                    answer = tls_head(sock, self.context, header, request, size)
                    self.assertTrue(answer.startswith(b"HTTP/1.1 101 "), name)
                expected += ["2001:db8::9" if name == "v1_ipv6" else CALLER] * 2
        self.assertEqual(self.remotes(relay), expected)
        self.assertNotIn("proxy_refused", relay.log())

    def test_frames(self) -> None:
        """A conversation behind the headers is as any other, to the byte and to the close."""
        relay = self.proxied()

        async def scenario() -> None:
            plain, secure = relay.addresses()
            server = await self.connect(plain, "/v1/server", binary_fields("home"))
            handset = await self.connect(secure, "/v1/client", phone_fields("home"), tls=True)
            await handset.send('"' + "x" * 200_000 + '"')
            envelope = await receive(server)
            self.assertEqual(envelope["frame"], "x" * 200_000)
            stranger = await self.connect(secure, "/v1/client", phone_fields("none"), tls=True)
            self.assertEqual(await ending(stranger), (4404, "no server with that id"))
            await handset.close(1000)
            self.assertEqual((await receive(server))["close_code"], 1000)
            await server.close()

        self.perform(scenario())

    async def connect(self, address: Address, path: str, fields: Any, *, tls: bool = False) -> Any:
        """Connect the library behind a PROXY header."""
        sock = dial(address)
        sock.sendall(V2)
        sock.setblocking(False)
        more: dict[str, Any] = {"ssl": self.context, "server_hostname": NAME} if tls else {}
        scheme = "wss" if tls else "ws"
        return await connect(
            f"{scheme}://{NAME}{path}",
            sock=sock,
            additional_headers={k: v for k, v in fields.items() if k != "User-Agent"},
            proxy=None,
            compression=None,
            max_size=None,
            **more,
        )

    def test_elsewhere(self) -> None:
        """From anywhere else not a byte is answered, whatever comes, and a line says so."""
        relay = self.proxied()
        for data in (b"", V1 + HEALTHZ, V2 + HEALTHZ, HEALTHZ, LOCAL):
            for sock in self.sockets(relay, ELSEWHERE):
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
                self.assertEqual(read_all(sock), b"")
        refused = re.findall(r" warn proxy_refused remote=(\S+) reason=(.*)", relay.log())
        self.assertEqual(set(refused), {(ELSEWHERE, '"not a trusted proxy"')})
        self.assertEqual(relay.fetch("/healthz")[0], 200)

    def test_no_header(self) -> None:
        """What begins with anything else than one whole header gets no answer, at once."""
        relay = self.proxied("--header-timeout=60")
        client_hello = ssl.MemoryBIO()
        tls = self.context.wrap_bio(ssl.MemoryBIO(), client_hello, server_hostname=NAME)
        self.assertRaises(ssl.SSLWantReadError, tls.do_handshake)
        reasons = {
            HEALTHZ: "no PROXY header",
            client_hello.read(): "no PROXY header",
            b"\0": "no PROXY header",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n" * 5: "PROXY header without an end",
            b"PROXY " + b"x" * 5000: "PROXY header without an end",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n": "malformed PROXY header",
            V2[:14] + b"\xff\xff" + bytes(70_000): "PROXY header too long",
            SIGNATURE + b"\x11\x11\0\x0c": "PROXY header of an unknown version or command",
            SIGNATURE
            + b"\x21\x12\0\x0c"
            + bytes(12): "PROXY header for something other than a stream",
        }
        for data, reason in reasons.items():
            for sock in self.sockets(relay):
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
                self.assertEqual(read_all(sock), b"", reason)
        # No more of them than one peer may leave.
        lines = re.findall(r'proxy_refused remote=127.0.0.1 reason="([^"]*)"', relay.log())
        self.assertEqual(lines, ["no PROXY header"] * 5)
        self.assertEqual(relay.fetch("/healthz")[0], 200)

    def test_stall(self) -> None:
        """A header that stops, or dribbles, is cut at the header time-out; so is a request."""
        relay = self.proxied("--header-timeout=1")
        stalled = (b"", V1[:-1], V2[:15], V2_TLVS[:-1], V1, V2 + HEALTHZ[:-1])
        socks = [(dial(each), data) for each in relay.addresses() for data in stalled]
        for sock, data in socks:
            sock.sendall(data)
        for sock, data in socks:
            self.assertEqual(read_all(sock), b"", data)
            sock.close()
        for sock in self.sockets(relay):
            sock.settimeout(0.02)
            with self.assertRaises(ConnectionError):
                for byte in V2_TLVS:
                    sock.sendall(bytes([byte]))
                    with contextlib.suppress(TimeoutError):
                        self.fail(f"answered {sock.recv(1)!r}")
        self.assertIn('reason="PROXY header not complete in time"', relay.log())

    def test_behind_the_header(self) -> None:
        """A second header, HTTP in place of TLS and garbage are no way round anything."""
        relay = self.proxied()
        plain, secure = relay.addresses()
        for second in (V1, V2, LOCAL):
            with dial(plain) as sock:
                sock.sendall(V1 + second + claim("second"))
                self.assertTrue(read_all(sock).startswith(b"HTTP/1.1 400 "))
            with dial(secure) as sock:
                sock.sendall(V1 + second + claim("second"))
                self.assertNotIn(b"HTTP", read_all(sock))
        for garbage in (HEALTHZ, b"\x16\x03\x01\x02\0\x01" + bytes(512), os.urandom(2000)):
            with dial(secure) as sock:
                sock.sendall(V2 + garbage)
                # An alert at most.
                self.assertLess(len(read_all(sock)), 10)
        self.assertEqual(self.remotes(relay), [])
        self.assertEqual(relay.fetch("/healthz")[0], 200)

    def test_failed_handshake(self) -> None:
        """Who fails at TLS is told by the address that the header announced."""
        relay = self.proxied("--log-level=debug")
        with dial(relay.addresses()[1]) as sock:
            sock.sendall(V2 + HEALTHZ)
            read_all(sock)
        eventually(
            "a line",
            lambda: re.search(rf"tls_handshake_failed remote={CALLER}", relay.log()),
        )

    def test_health_checks(self) -> None:
        """LOCAL and UNKNOWN are closed in order, unanswered and unlogged, whatever follows."""
        relay = self.proxied()
        for header in (LOCAL, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 x y z\r\n"):
            for more in (b"", claim("check"), V1 + HEALTHZ):
                for sock in self.sockets(relay):
                    sock.sendall(header + more)
                    # Not even a reset: recv would raise.
                    self.assertEqual(sock.recv(1), b"")
        self.assertEqual(self.remotes(relay), [])
        self.assertNotIn("proxy_refused", relay.log())

    def test_limits(self) -> None:
        """Limits count whom the header announces: IPv6 callers by their /64, not the proxy."""
        relay = self.proxied("--max-connections-per-address=1")
        address = relay.address
        with contextlib.ExitStack() as stack:

            def status(caller: str, server_id: str) -> bytes:
                sock = stack.enter_context(dial(address))
                family, here = ("TCP6", "::1") if ":" in caller else ("TCP4", "192.0.2.1")
                sock.sendall(f"PROXY {family} {caller} {here} 1 2\r\n".encode() + claim(server_id))
                return read_head(sock).split()[1]

            for number, (caller, expected) in enumerate(
                (
                    ("203.0.113.1", b"101"),
                    ("203.0.113.2", b"101"),
                    ("203.0.113.1", b"503"),
                    ("2001:db8:0:1::1", b"101"),
                    ("2001:db8:0:1::2", b"503"),
                    ("2001:db8:0:2::1", b"101"),
                    ("::ffff:203.0.113.2", b"503"),
                )
            ):
                self.assertEqual(status(caller, str(number)), expected, caller)

    def test_unix(self) -> None:
        """Peers on a UNIX socket are dropped as any other, and trusted when that is said."""
        path = str(self.directory / "s")
        relay = self.proxied(f"--insecure-listen=unix:{path}")
        with dial(path) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(V1 + HEALTHZ)
            self.assertEqual(read_all(sock), b"")
        self.assertIn('proxy_refused remote=unix reason="not a trusted proxy"', relay.log())
        self.assertEqual(relay.stop(), 0)
        relay = self.proxied("--trusted-proxy=unix", f"--insecure-listen=unix:{path}")
        with dial(path) as sock:
            sock.sendall(V1 + claim("home"))
            self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "))
        self.assertEqual(self.remotes(relay), [CALLER])

    def test_every_interface(self) -> None:
        """On a listener for IPv6 and IPv4 alike, an IPv4 proxy is who it is, and ::1 is another."""
        needs.ipv6()
        relay = self.relay("--proxy-protocol", f"--trusted-proxy={HERE}", listen=":0", preamble=V1)
        with dial(relay.address) as sock:
            sock.sendall(V1 + claim("home"))
            self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "))
        with dial(("::1", relay.port)) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(V1 + HEALTHZ)
            self.assertEqual(read_all(sock), b"")
        self.assertEqual(self.remotes(relay), [CALLER])
        self.assertIn("proxy_refused remote=::1 ", relay.log())

    def test_drain(self) -> None:
        """Nobody waits for headers when the relay stops, and it ends well."""
        relay = self.proxied("--header-timeout=60")
        waiting = [dial(address) for address in relay.addresses() for _ in range(3)]
        for sock in waiting[1:]:
            sock.sendall(V2[:20])
        self.assertEqual(relay.stop(), 0)
        for sock in waiting:
            self.assertEqual(read_all(sock), b"")
            sock.close()

    def test_without_a_trusted_proxy(self) -> None:
        """PROXY headers from nobody make no sense, which one sentence says."""
        run = self.child(TWISTD, "-n", "pyrycode-relay", "--insecure-listen=:0", "--proxy-protocol")
        self.assertEqual(run.wait(), 2)
        [line] = run.errors().splitlines()
        self.assertIn("--proxy-protocol is given, but no proxy is trusted", line)


class ClientTests(ProxiesTestCase):
    """Programs that can send a PROXY header."""

    def test_curl(self) -> None:
        """curl gets its answer, plain and over TLS, checking the chain."""
        needs.programs("curl")
        relay = self.proxied()
        plain, secure = relay.ports
        for url in (f"http://{NAME}:{plain}/healthz", f"https://{NAME}:{secure}/healthz"):
            run = run_program(
                *("curl", "--silent", "--show-error", "--noproxy", "*", "--haproxy-protocol"),
                *("--cacert", self.ca_file, "--connect-to", f"{NAME}::{HERE}:", url),
            )
            self.assertEqual((run.returncode, run.stderr), (0, ""))
            self.assertIn('{"status":"ok",', run.stdout)

    def test_probe(self) -> None:
        """The probe passes with its header, and without it finds that nobody answers."""
        path = self.directory / "s"
        relay = self.proxied(
            "--trusted-proxy=unix", f"--insecure-listen=unix:{path}", "--log-level=debug"
        )
        plain, unix, secure = relay.addresses()
        where = {f"ws://{HERE}:{plain[1]}": "", f"ws://{NAME}": str(unix)}
        where[f"wss://{NAME}"] = f"{HERE}:{secure[1]}"
        for url, place in where.items():
            given = [url, *([f"--connect={place}"] if place else []), f"--ca-file={self.ca_file}"]
            run = self.child(PROBE, "--quiet", "--send-proxy", *given)
            self.assertEqual((run.wait(), run.errors()), (0, ""))
            self.assertNotEqual(self.child(PROBE, "--quiet", *given).wait(), 0)
        self.assertEqual(set(self.remotes(relay)), {HERE, "unix"})


class ForwardedTests(ProxiesTestCase):
    """Addresses in the request, from bare sockets."""

    def test_forwarded(self) -> None:
        """A trusted proxy's word counts on every listener, anybody else's does not."""
        relay = self.relay(f"--trusted-proxy={HERE}", "--trusted-proxy=10.0.0.0/8", *self.secure)
        chain = f"198.51.100.1, {CALLER}, 10.1.1.1"
        plain, secure = relay.addresses()
        for number, (host, expected) in enumerate(((HERE, CALLER), (ELSEWHERE, ELSEWHERE))):
            request = claim(f"plain-{number}", X_Forwarded_For=chain)
            with dial_from(host, plain) as sock:
                sock.sendall(request)
                self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "))
            request = claim(f"tls-{number}", Forwarded=f'for="{CALLER}:1";proto=https')
            with dial_from(host, secure) as sock:
                answer = tls_head(sock, self.context, b"", request, 100_000)
                self.assertTrue(answer.startswith(b"HTTP/1.1 101 "))
            self.assertEqual(self.remotes(relay)[-2:], [expected] * 2)

    def test_by_default(self) -> None:
        """With no trusted proxy nobody is believed, not even on loopback."""
        relay = self.relay()
        with dial(relay.address) as sock:
            sock.sendall(claim("home", X_Forwarded_For=CALLER, Forwarded=f"for={CALLER}"))
            self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "))
        self.assertEqual(self.remotes(relay), [HERE])

    def test_huge_chain(self) -> None:
        """A chain as long as a header may be costs nothing, and nobody is believed for it."""
        relay = self.relay(f"--trusted-proxy={HERE}")
        with dial(relay.address) as sock:
            sock.sendall(claim("home", X_Forwarded_For=", ".join([HERE] * 1200)))
            self.assertTrue(read_head(sock).startswith(b"HTTP/1.1 101 "))
        self.assertEqual(self.remotes(relay), [HERE])


class Front(NamedTuple):
    """A proxy in front of the relay, and where it listens."""

    child: Child
    port: int


class RealProxyTests(ProxiesTestCase):
    """The manual's recipes, run by the proxies they are for."""

    def haproxy(self, text: str) -> Front:
        """Start HAProxy with a recipe for port 443."""
        program, listener = needs.program("haproxy"), socket.create_server((HERE, 0))
        path = self.directory / "haproxy.cfg"
        path.write_text(
            change(
                text,
                ("bind :443", f"bind fd@{listener.fileno()}"),
                ("global\n", f"global\n    stats socket {self.directory / 'stats'}\n"),
                (" check", " check inter 100ms"),
                ("maxconn 20000", "maxconn 4000"),
            )
        )
        child = self.child(program, "-db", "-f", path, pass_fds=[listener.fileno()])
        port = int(listener.getsockname()[1])
        listener.close()
        return Front(child, port)

    def servers(self) -> str:
        """Return what HAProxy says about its servers, when it has begun to."""
        if not (self.directory / "stats").exists():
            return ""
        with dial(str(self.directory / "stats")) as sock:
            sock.sendall(b"show stat\n")
            return read_all(sock).decode()

    def talk(self, front: Front, relay: Relay, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Have peers talk through a proxy that shows TLS, and see who the relay thinks they are."""

        def peer(path: str, fields: Any, host: str) -> connect:
            return connect(
                f"wss://{NAME}{path}",
                host=HERE,
                port=front.port,
                local_addr=(host, 0),
                ssl=self.context,
                server_hostname=NAME,
                additional_headers=[*headers, *fields.items()],
                user_agent_header=None,
                proxy=None,
                compression=None,
                max_size=None,
            )

        async def scenario() -> None:
            async with peer("/v1/server", binary_fields("home"), "127.0.0.5") as server:
                async with peer("/v1/client", phone_fields("home"), "127.0.0.6") as handset:
                    self.assertEqual(relay.counts(), (1, 1))
                    await handset.send('"begin"')
                    conn_id = (await receive(server))["conn_id"]
                    self.assertTrue(conn_id.startswith("client-home-"))
                    answering = asyncio.create_task(echo(server))
                    for size in (0, 1, 1000, 70_000, 200_000):
                        await round_trip(handset, "x" * size)
                    answering.cancel()
                async with peer("/v1/client", phone_fields("none"), "127.0.0.7") as stranger:
                    self.assertEqual(await ending(stranger), (4404, "no server with that id"))
                await soon("the phone has gone", lambda: relay.counts() == (1, 0))
                relay.signal(15)
                self.assertEqual(await ending(server), (1001, "shutting down"))

        eventually("the proxy answers", lambda: self.answers(front))
        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)
        remotes = re.findall(
            r" (server_claimed|phone_registered|phone_register_no_server) .*remote=(\S+)",
            relay.log(),
        )
        self.assertEqual(
            remotes,
            [
                ("server_claimed", "127.0.0.5"),
                ("phone_registered", "127.0.0.6"),
                ("phone_register_no_server", "127.0.0.7"),
            ],
        )
        self.assertNotIn(" warn ", relay.log())

    def answers(self, front: Front) -> bool:
        """Whether a relay answers through the proxy."""
        if front.child.process.poll() is not None:
            raise AssertionError(f"the proxy has ended: {front.child.errors()}")
        try:
            with (
                socket.create_connection((HERE, front.port), DEADLINE) as sock,
                self.context.wrap_socket(sock, server_hostname=NAME) as tls,
            ):
                tls.sendall(HEALTHZ)
                return tls.recv(100).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

    def recommended(self, head: str, *changes: tuple[str, str], **more: Any) -> Relay:
        """Start a relay with the manual's settings, and with a plain listener besides."""
        path = self.directory / "relay.toml"
        path.write_text(change(recipe(PROXIES, f"{SETTINGS} {head}"), *changes))
        return self.relay(f"--config={path}", **more)

    def passing_on(self, *changes: tuple[str, str]) -> tuple[Front, Relay]:
        """Start HAProxy passing on TLS, and a relay that ends it."""
        relay = self.recommended(
            "behind HAProxy, with TLS",
            (f"{HERE}:8443", f"{HERE}:0"),
            (f'acme-listen = ["{HERE}:8081"]\n', ""),
            (
                'domain = ["relay.example.org"]',
                f'tls-cert = ["{self.certificate}"]\ntls-key = ["{self.key}"]',
            ),
            preamble=V1,
        )
        text = change(
            recipe(PROXIES, "/etc/haproxy/haproxy.cfg"),
            (f"{HERE}:8443", f"{HERE}:{relay.addresses()[1][1]}"),
            ("bind :80\n", f"bind unix@{self.directory / 'challenges'}\n"),
            *changes,
        )
        return self.haproxy(text), relay

    def test_haproxy(self) -> None:
        """HAProxy passes on TLS that the relay ends; its health checks are no lines in the log."""
        front, relay = self.passing_on()
        eventually("checks", lambda: re.search(r"relay,relay,.*,UP,.*L4OK", self.servers()))
        self.talk(front, relay)
        eventually("checks fail", lambda: re.search(r"relay,relay,.*,DOWN,", self.servers()))

    def test_haproxy_version_1(self) -> None:
        """So it is with version 1 of the protocol."""
        self.talk(*self.passing_on(("send-proxy-v2", "send-proxy")))

    def test_settings(self) -> None:
        """The settings for a certificate from a CA are taken as they are."""
        path = self.directory / "relay.toml"
        path.write_text(recipe(PROXIES, f"{SETTINGS} behind HAProxy, with TLS"))
        run = self.child(TWISTD, "-n", "pyrycode-relay", f"--config={path}", "--check-config")
        self.assertEqual((run.wait(), run.errors()), (0, ""))
        for each in ("tcp:8443:", "tcp:8081:", "proxy-protocol = true"):
            self.assertIn(each, run.output())

    def test_haproxy_ends_tls(self) -> None:
        """HAProxy ends TLS, and its header is before plain HTTP."""
        pem = self.directory / "both.pem"
        pem.write_bytes(self.certificate.read_bytes() + self.key.read_bytes())
        relay = self.recommended(
            "behind HAProxy", (f"{HERE}:8080", f"{HERE}:0"), listen=None, preamble=V1
        )
        bind, server = re.findall(r"    (bind :443 ssl .*|server relay 127.0.0.1:8080 .*)", PROXIES)
        text = change(
            recipe(PROXIES, "/etc/haproxy/haproxy.cfg").partition("frontend challenges")[0],
            ("bind :443", bind),
            (f"server relay {HERE}:8443 send-proxy-v2 check", server),
            (f"{HERE}:8080", f"{HERE}:{relay.port}"),
            ("/etc/haproxy/relay.pem", str(pem)),
        )
        self.talk(self.haproxy(text), relay)

    def test_nginx(self) -> None:
        """nginx ends TLS and says who is calling; what a caller says of itself is not heard."""
        program, place = needs.program("nginx"), socket.socket()
        self.addCleanup(place.close)
        # nginx crashes on listeners that it inherits; so one that never listens keeps a port free.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind((HERE, 0))
        port = place.getsockname()[1]
        relay = self.recommended("behind nginx", (f"{HERE}:8080", f"{HERE}:0"), listen=None)
        server = change(
            recipe(PROXIES, "/etc/nginx/conf.d/relay.conf"),
            ("listen 443 ssl", f"listen {HERE}:{port} reuseport ssl"),
            ("/etc/nginx/relay.pem", str(self.certificate)),
            ("/etc/nginx/relay.key", str(self.key)),
            (f"{HERE}:8080", f"{HERE}:{relay.port}"),
        )
        paths = "".join(
            f"{kind}_temp_path {self.directory / kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path = self.directory / "nginx.conf"
        path.write_text(
            f"daemon off; master_process off; pid {self.directory / 'pid'};\n"
            f"error_log stderr; events {{ }}\nhttp {{ access_log off;\n{paths}{server}}}\n"
        )
        front = Front(self.child(program, "-p", self.directory, "-c", path), port)
        forged = [("X-Forwarded-For", "198.51.100.66"), ("Forwarded", "for=198.51.100.66")]
        self.talk(front, relay, headers=forged)
