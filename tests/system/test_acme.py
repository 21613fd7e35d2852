"""Certificates from a real ACME server: Pebble, Let's Encrypt's test CA, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
import threading
import time
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from websockets.asyncio.client import connect

from pyrycode_relay.acme.cache import CertCache
from tests import needs
from tests.ca import DAY, Authority
from tests.peers.waiting import eventually
from tests.system.harness import (
    ROOT,
    Relay,
    SystemTestCase,
    binary,
    dial,
    echo,
    fetch,
    phone,
    read_all,
    round_trip,
    run_program,
)
from tests.system.pebble import PROGRAMS, Pebble, free_ports

NAME = "relay.example"
OTHER = "other.example"
PATIENCE = 90.0
"""Seconds for what takes a few attempts at a CA."""


class AcmeTestCase(SystemTestCase):
    """A relay and a CA, neither of which is started yet."""

    def setUp(self) -> None:
        needs.programs(*PROGRAMS)
        super().setUp()
        self.certs = self.directory / "certs"
        self.pebble = self.ca()

    def ca(self, **more: Any) -> Pebble:
        """Return a CA."""
        folder = self.directory / f"ca{len([*self.directory.glob('ca*')])}"
        folder.mkdir()
        pebble = Pebble(folder, **more)
        self.addCleanup(pebble.stop)
        return pebble

    def acme(
        self, *names: str, options: tuple[str, ...] = (), named: bool = True, **more: Any
    ) -> Relay:
        """Start a relay for ``names``, and wait until it listens, be it ready or not."""
        relay = Relay(
            self.directory,
            [
                "--insecure-listen=127.0.0.1:0",
                "--tls-listen=127.0.0.1:0",
                f"--acme-listen=127.0.0.1:{more.pop('http_port', self.pebble.http_port)}",
                f"--acme-directory={more.pop('directory', self.pebble.directory)}",
                f"--acme-ca-file={self.pebble.ca_file}",
                f"--cert-cache={self.certs}",
                *(f"--domain={name}" for name in (names or (NAME,)) if named),
                *options,
            ],
            environment={"NO_PROXY": "*"},
            **more,
        )
        self.addCleanup(self._end, relay)
        eventually("the relay listens", relay.addresses)
        return relay

    def cached(self, *names: str, age: timedelta, life: timedelta = 90 * DAY) -> int:
        """Have a certificate in the cache; return its serial number."""
        cache = CertCache(self.certs, self.pebble.directory)
        cache.prepare()
        pair = cache.begin()
        self.authority = Authority()
        key = load_pem_private_key(pair.key, None)
        issued = self.authority.issue(*names, key=key, since=-age, until=life - age)
        pair.complete(issued.pem)
        return issued.chain[0].serial_number

    def wait_ready(self, relay: Relay) -> None:
        """Wait until the relay is ready."""
        eventually("ready", lambda: fetch(relay.address, "/readyz")[0] == 200, PATIENCE)

    def trust(self, root: Path) -> ssl.SSLContext:
        """Return the settings of a client that trusts a root, and checks all that clients do."""
        return ssl.create_default_context(cafile=root)

    def handshake(self, relay: Relay, name: str = NAME, root: Path | None = None) -> int:
        """Return the serial number of the certificate that a client gets, after checking it."""
        return self.serial(relay, name, self.trust(root or self.pebble.root()))

    def any_serial(self, relay: Relay, name: str = NAME) -> int:
        """Return the serial number of whatever certificate the relay serves."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return self.serial(relay, name, context)

    def serial(self, relay: Relay, name: str, context: ssl.SSLContext) -> int:
        """Return the serial number of the certificate that the relay serves for a name."""
        with (
            dial(relay.addresses()[1]) as sock,
            context.wrap_socket(sock, server_hostname=name) as secure,
        ):
            der = secure.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    def count(self, relay: Relay, event: str) -> int:
        """Return how often an event stands in the log."""
        return len(re.findall(rf" {event}\b", relay.log()))


class IssueTests(AcmeTestCase):
    def test_first(self) -> None:
        """A relay that starts without a certificate gets one, and real clients verify it."""
        self.pebble.start()
        relay = self.acme()
        self.wait_ready(relay)
        self.assertEqual(self.pebble.orders(), 1)
        self.handshake(relay)
        root, port = self.pebble.root(), relay.ports[1]
        curl = run_program(
            *("curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", root),
            *("--resolve", f"{NAME}:{port}:127.0.0.1", f"https://{NAME}:{port}/readyz"),
            *("--write-out", "%{http_code}"),
        )
        self.assertEqual((curl.returncode, curl.stdout), (0, "200"), curl.stderr)
        openssl = run_program(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME),
            *("-CAfile", root, "-verify_return_error", "-verify_hostname", NAME),
        )
        self.assertIn("Verify return code: 0 (ok)", openssl.stdout, openssl.stderr)
        log = relay.log()
        self.assertIn('acme_ordering reason="there is no certificate yet"', log)
        self.assertRegex(log, r"acme_issued duration=\d")

    def test_websockets(self) -> None:
        """A phone and a binary talk over the certificate."""
        self.pebble.start()
        relay = self.acme()
        self.wait_ready(relay)
        more: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": relay.ports[1],
            "ssl": self.trust(self.pebble.root()),
            "proxy": None,
        }

        async def scenario() -> None:
            url = f"wss://{NAME}/v1"
            async with (
                connect(f"{url}/server", additional_headers=SERVER, **more) as server,
                connect(f"{url}/client", additional_headers=CLIENT, **more) as handset,
            ):
                answering = asyncio.create_task(echo(server))
                await round_trip(handset, "over TLS")
                answering.cancel()

        self.perform(scenario())

    def test_two_names(self) -> None:
        """Two names are one order and one certificate."""
        self.pebble.start()
        relay = self.acme(NAME, OTHER)
        self.wait_ready(relay)
        self.assertEqual(self.handshake(relay, NAME), self.handshake(relay, OTHER))
        self.assertEqual(self.pebble.orders(), 1)

    def test_nonces(self) -> None:
        """A CA that refuses most nonces is no obstacle."""
        pebble = self.pebble = self.ca(PEBBLE_WFE_NONCEREJECT="60").start()
        relay = self.acme()
        self.wait_ready(relay)
        self.handshake(relay)
        # One would do for all of its requests, if none were refused.
        self.assertGreater(pebble.log().count("HEAD /nonce-plz "), 3)

    def test_files(self) -> None:
        """The cache's files are for the relay's user alone."""
        self.pebble.start()
        relay = self.acme()
        self.wait_ready(relay)
        relay.stop()
        found = [*self.certs.rglob("*")]
        self.assertEqual(
            {path.name for path in found if path.is_file()},
            {"account.pem", "fullchain.pem", "privkey.pem"},
        )
        for path in (self.certs, *found):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)

    def test_email(self) -> None:
        """The account has the address given, and one that was made without it gets it."""
        self.pebble.start()
        for options in ((), ("--acme-email=ops@example.org",)):
            relay = self.acme(options=options)
            self.wait_ready(relay)
            relay.stop()
            for path in self.certs.rglob("*.pem"):
                if path.name != "account.pem":
                    path.unlink()
        self.assertEqual(self.pebble.orders(), 2)
        self.assertEqual(self.pebble.accounts(), 1)


class RestartTests(AcmeTestCase):
    def test_warm(self) -> None:
        """A relay that is started again has its certificate at once, and orders nothing."""
        self.pebble.start()
        relay = self.acme()
        self.wait_ready(relay)
        serial = self.handshake(relay)
        self.assertEqual(relay.stop(), 0)
        requests = self.pebble.requests()
        relay = self.acme()
        self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
        self.assertEqual(self.handshake(relay), serial)
        self.assertEqual(relay.stop(), 0)
        self.assertEqual(self.count(relay, "acme_ordering"), 0)
        self.assertEqual(self.pebble.requests(), requests)
        self.assertEqual(self.pebble.orders(), 1)

    def test_other_names(self) -> None:
        """One more name is a new order, and the old certificate serves meanwhile."""
        self.pebble.start()
        relay = self.acme(NAME)
        self.wait_ready(relay)
        serial = self.handshake(relay)
        relay.stop()
        relay = self.acme(NAME, OTHER)
        self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
        eventually("another order", lambda: self.count(relay, "acme_issued"), PATIENCE)
        self.assertNotEqual(self.handshake(relay, NAME), serial)
        self.handshake(relay, OTHER)
        self.assertEqual((self.pebble.orders(), self.pebble.accounts()), (2, 1))
        self.assertIn('acme_ordering reason="the certificate is for other names"', relay.log())


class RenewalTests(AcmeTestCase):
    def test_renewal(self) -> None:
        """A certificate that is due is used until there is a new one, then the new one is.

        A connection that began under the old one goes on.
        """
        old = self.cached(NAME, age=80 * DAY)
        relay = self.acme()
        self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
        self.assertEqual(self.any_serial(relay), old)
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        with (
            dial(relay.addresses()[1]) as sock,
            context.wrap_socket(sock, server_hostname=NAME) as secure,
        ):
            secure.sendall(b"GET /readyz HTTP/1.1\r\n")
            self.pebble.start()
            relay.signal(signal.SIGHUP)
            eventually("renewed", lambda: self.count(relay, "acme_issued"), PATIENCE)
            secure.sendall(f"Host: {NAME}\r\n\r\n".encode())
            with contextlib.suppress(ssl.SSLError):
                self.assertIn(b" 200 ", secure.recv(1000))
        self.handshake(relay)
        self.assertNotEqual(self.any_serial(relay), old)

    def test_again_and_again(self) -> None:
        """Certificates of a few seconds are renewed one after another, and none is skipped."""
        self.pebble = self.ca(validity=12).start()
        relay = self.acme()
        eventually("renewed twice", lambda: self.count(relay, "acme_issued") >= 3, PATIENCE)
        self.assertGreaterEqual(self.pebble.orders(), 3)
        self.assertEqual(self.count(relay, "acme_failed"), 0)

    def test_suggested(self) -> None:
        """A CA that wants a certificate renewed long before it is due (ARI) gets its wish."""
        self.cached(NAME, age=10 * DAY)
        self.pebble.start()
        with advising(self.pebble) as directory:
            # The cache is the CA's, which is another one by its URL.
            [home] = self.certs.iterdir()
            cache = CertCache(self.certs, directory)
            home.rename(cache.fullchain.parents[1])
            relay = self.acme(directory=directory)
            eventually("renewed", lambda: self.count(relay, "acme_issued"), PATIENCE)
            self.handshake(relay)
            relay.stop()
        self.assertEqual(self.pebble.orders(), 1)

    def test_expired(self) -> None:
        """A certificate that expired while the relay was down is replaced, and never served."""
        self.cached(NAME, age=100 * DAY)
        relay = self.acme()
        self.assertEqual(fetch(relay.address, "/readyz")[0], 503)
        self.pebble.start()
        relay.signal(signal.SIGHUP)
        self.wait_ready(relay)
        self.handshake(relay)


class DownTests(AcmeTestCase):
    def test_at_the_start(self) -> None:
        """Without a CA the relay is up and says what it waits for; it takes no client for fool.

        Once there is a CA there is a certificate, without a restart.
        """
        relay = self.acme()
        self.assertEqual(fetch(relay.address, "/healthz")[0], 200)
        status, body = fetch(relay.address, "/readyz")
        self.assertEqual(status, 503)
        self.assertIn(b"starting", body)
        with self.assertRaises(ssl.SSLError):
            self.any_serial(relay)

        async def scenario() -> None:
            async with binary(relay, "b") as server, phone(relay, "b") as handset:
                answering = asyncio.create_task(echo(server))
                await round_trip(handset, "in the clear")
                answering.cancel()

        self.perform(scenario())
        eventually("it fails", lambda: self.count(relay, "acme_failed"))
        self.assertIn('acme_failed reason="the CA cannot be reached"', relay.log())
        self.assertRegex(relay.log(), r"acme_listening url=http://\S+ authority=https://\S+\n")
        self.assertIn('certificates="none yet"', relay.log())
        self.assertNotIn(" ready\n", relay.log())
        self.pebble.start()
        self.wait_ready(relay)
        self.assertIn(" ready\n", relay.log())
        self.handshake(relay)

    def test_at_renewal(self) -> None:
        """Without a CA the old certificate stays; SIGHUP is for who has mended it."""
        old = self.cached(NAME, age=80 * DAY)
        relay = self.acme()
        eventually("it fails twice", lambda: self.count(relay, "acme_failed") >= 2, PATIENCE)
        self.assertEqual(self.any_serial(relay), old)
        self.assertEqual(fetch(relay.address, "/readyz")[0], 200)
        self.pebble.start()
        relay.signal(signal.SIGHUP)
        eventually("renewed", lambda: self.count(relay, "acme_issued"))
        self.handshake(relay)

    def test_that_says_nothing(self) -> None:
        """A CA that hangs holds up nobody: not those who connect, not the end."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            relay = self.acme(directory=f"https://127.0.0.1:{port}/dir")
            connection, _ = silent.accept()
            with connection:
                self.assertEqual(fetch(relay.address, "/healthz")[0], 200)
                began = time.monotonic()
                self.assertEqual(relay.stop(), 0)
                self.assertLess(time.monotonic() - began, 10)

    def test_that_cannot_reach_us(self) -> None:
        """A validation that fails is told with the name and the CA's type of problem.

        It is not tried again soon: a CA counts such attempts.
        """
        self.pebble.start()
        relay = self.acme(http_port=next(free_ports()))
        eventually("it fails", lambda: self.count(relay, "acme_failed"), PATIENCE)
        self.assertRegex(
            relay.log(),
            rf'acme_failed reason="the CA could not validate {NAME}" '
            r"err=urn:ietf:params:acme:error:connection retry_in=1[2-5]\d\n",
        )
        self.assertEqual(fetch(relay.address, "/readyz")[0], 503)

    def test_of_which_we_trust_nothing(self) -> None:
        """A CA whose own certificate cannot be verified gets no request."""
        self.pebble.start()
        other = self.ca()
        relay = self.acme(options=(f"--acme-ca-file={other.ca_file}",))
        eventually("it fails", lambda: self.count(relay, "acme_failed"))
        self.assertIn("the CA's own certificate cannot be verified", relay.log())
        self.assertEqual(self.pebble.orders(), 0)


class PortTests(AcmeTestCase):
    def test_everything_else(self) -> None:
        """Port 80 says 404 to whatever is no challenge, and never sends anybody on."""
        relay = self.acme()
        for line in (
            "GET /",
            "GET /readyz",
            "GET /healthz",
            "GET /v1/client",
            "GET /.well-known/acme-challenge/",
            "GET /.well-known/acme-challenge/unknown",
            "POST /.well-known/acme-challenge/unknown",
            "GET /.well-known/acme-challenge/../../etc/passwd",
            "OPTIONS *",
            "GET http://elsewhere.example/",
        ):
            with dial(relay.addresses()[2]) as sock:
                sock.sendall(f"{line} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                head, _, body = read_all(sock).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 404 "), (line, head))
            self.assertNotIn(b"location", head.lower())
            self.assertEqual(body, b"")

    def test_slow(self) -> None:
        """A request that does not come in time costs a socket for five seconds, and no line."""
        relay = self.acme()
        before = relay.log().count("\n")
        with dial(relay.addresses()[2]) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHo")
            self.assertEqual(read_all(sock), b"")
        self.assertEqual(
            [line for line in relay.log().splitlines()[before:] if "acme_" not in line], []
        )


class MistakeTests(AcmeTestCase):
    def refused(self, *options: str) -> str:
        """Return the one sentence that a relay ends with."""
        relay = Relay(
            self.directory,
            ["--tls-listen=127.0.0.1:0", "--acme-listen=127.0.0.1:0", f"--domain={NAME}", *options],
        )
        self.addCleanup(relay.kill)
        self.assertEqual(relay.wait(), 2)
        [line] = relay.errors().splitlines()
        self.assertTrue(line.startswith("pyrycode-relay: "), line)
        self.assertNotIn("Traceback", relay.log())
        return line

    def test_a_loose_cache(self) -> None:
        """A directory that others can enter, with their files in it, is refused with the fix."""
        self.certs.mkdir()
        self.certs.chmod(0o755)
        (self.certs / "letter").touch()
        self.assertIn(f"chmod 700 {self.certs}", self.refused(f"--cert-cache={self.certs}"))

    def test_own_cache(self) -> None:
        """One of the relay's own is tightened, and the log says so."""
        self.cached(NAME, age=DAY)
        self.certs.chmod(0o755)
        relay = self.acme()
        self.assertIn(f"cert_cache_tightened path={self.certs}", relay.log())
        self.assertEqual(self.certs.stat().st_mode & 0o777, 0o700)

    def test_authorities(self) -> None:
        """A file of authorities without a certificate is refused."""
        garbage = self.directory / "garbage.pem"
        garbage.write_text("garbage")
        sentence = self.refused(f"--cert-cache={self.certs}", f"--acme-ca-file={garbage}")
        self.assertIn("has no certificate in PEM form", sentence)


class ManualTests(AcmeTestCase):
    def test_recipe(self) -> None:
        """The manual's configuration, with the test's CA and ports, is a relay with TLS."""
        manual = (ROOT / "docs" / "tls.md").read_text(encoding="utf-8")
        section = manual.partition("\n## Certificates from an ACME CA\n")[2]
        lines = section.lstrip("\n").partition("\n\n")[0].splitlines()
        config = self.directory / "relay.toml"
        config.write_text("\n".join(line.removeprefix("    ") for line in lines))
        self.pebble.start()
        relay = self.acme(options=(f"--config={config}",), named=False)
        self.wait_ready(relay)
        names = tomllib.loads(config.read_text())["domain"]
        self.assertEqual(len({self.handshake(relay, name) for name in names}), 1)


SERVER = {"X-Pyrycode-Server": "b", "X-Pyrycode-Version": "1"}
CLIENT = {"X-Pyrycode-Server": "b", "X-Pyrycode-Token": "t"}


@contextlib.contextmanager
def advising(pebble: Pebble) -> Iterator[str]:
    """Give Pebble what its version lacks: renewal information, which says "now" to everybody.

    Only the directory is ours: it has one entry more, and the others are Pebble's.
    """
    window = {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/dir":
                entries = json.loads(pebble.fetch(pebble.directory))
                content = {**entries, "renewalInfo": f"https://localhost:{port}/renewal"}
            else:
                content = {"suggestedWindow": window}
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    port = server.server_port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pebble.certificate, pebble.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    running = threading.Thread(target=server.serve_forever, args=(0.02,))
    running.start()
    try:
        yield f"https://localhost:{port}/dir"
    finally:
        server.shutdown()
        running.join()
        server.server_close()
