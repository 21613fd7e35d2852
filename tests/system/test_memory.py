"""The resident memory of a real process, compared with what the relay accounts for."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from tests.peers.frames import TEXT, frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import BarePeer, SystemTestCase, dial
from tests.system.test_status_page import ADMIN, admin_port
from tests.system.test_tls import NAME, Door, TLSTestCase
from tests.tls_records import CLIENT_HELLO, HANDSHAKE, TLS12_SUITE, Forger

MEBIBYTE = 2**20
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

ROOM = 8 * MEBIBYTE
"""Bytes that a busy process may take in addition, whatever it keeps."""


class QueueTests(SystemTestCase):
    """A phone that does not read, and a daemon that goes on sending to it."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.relay(
            ADMIN, "--outbox-bytes=200000000", "--memory-budget=400000000", "--write-stall=600"
        )
        self.metrics = f"http://127.0.0.1:{admin_port(self.server)}/metrics"
        self.opener = build_opener(ProxyHandler({}))

    def pair(self) -> tuple[BarePeer, BarePeer, bytes]:
        """Connect a daemon and a phone that reads nothing more; return them and the phone's id."""
        daemon = BarePeer(self.server, "/v1/server", binary_fields("home"))
        self.addCleanup(daemon.sock.close)
        phone = BarePeer(self.server, "/v1/client", phone_fields("home"), receive_buffer=4096)
        self.addCleanup(phone.sock.close)
        phone.send(frame(TEXT, b"1"))
        self.arriving = daemon.frames()
        conn_id: str = json.loads(next(self.arriving)[1])["conn_id"]
        return daemon, phone, conn_id.encode()

    def queued(self) -> int:
        """Return how many bytes wait in all queues, by the relay's own account."""
        with self.opener.open(self.metrics, timeout=DEADLINE) as answer:
            page = answer.read()
        found = re.search(rb"^pyrycode_relay_queue_bytes (\S+)$", page, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    def fill(self, daemon: BarePeer, conn_id: bytes, envelope: bytes, count: int) -> int:
        """Send an envelope ``count`` times to a stuck phone; return by how much memory grew."""
        stuffing = b'{"conn_id":"%s","frame":"%s"}' % (conn_id, b"x" * 100_000)
        for _ in range(10):
            daemon.send(frame(TEXT, stuffing))
        self.taken(daemon)
        before, queued = self.server.rss(), self.queued()
        for _ in range(10):
            daemon.send(frame(TEXT, envelope) * (count // 10))
        self.taken(daemon)
        self.waiting = self.queued() - queued
        return self.server.rss() - before

    def taken(self, daemon: BarePeer) -> None:
        """Wait until the relay has read all that the daemon has sent."""
        daemon.send(frame(9, b"all of it"))
        for opcode, payload in self.arriving:
            if (opcode, payload) == (10, b"all of it"):
                return
        self.fail("the daemon's connection has ended")

    def test_small_frames(self) -> None:
        """Small frames take what the relay accounts for."""
        for size in (2, 100, 256):
            with self.subTest(size=size):
                daemon, phone, conn_id = self.pair()
                text = b'"' + b"x" * (size - 2) + b'"'
                count = 20 * MEBIBYTE // (size + 64) // 10 * 10
                envelope = b'{"conn_id":"%s","frame":%s}' % (conn_id, text)
                growth = self.fill(daemon, conn_id, envelope, count)
                self.assertEqual(self.waiting, count * (size + 64))
                self.assertLess(growth, 1.2 * self.waiting + ROOM)
                phone.sock.close()
                daemon.sock.close()
                eventually("all is forgotten", lambda: self.server.counts() == (0, 0))

    def test_what_stands_beside_a_frame(self) -> None:
        """A small frame does not keep the message that it came in."""
        daemon, _, conn_id = self.pair()
        envelope = b'{"conn_id":"%s","frame":1,"x":"%s"}' % (conn_id, b"x" * 260_000)
        growth = self.fill(daemon, conn_id, envelope, 400)
        self.assertEqual(self.waiting, 400 * 65)
        self.assertLess(growth, ROOM)


class DeafClient:
    """A TLS client that is upgraded as a binary, and then reads nothing more."""

    def __init__(self, door: Door, version: ssl.TLSVersion, key_log: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.keylog_filename = str(key_log)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(TLS12_SUITE)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=NAME)
        self.version = version
        self.sock = dial(("127.0.0.1", door.port), receive_buffer=4096)
        arrived = b""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                arrived += self._exchange()
        self._tls.write(upgrade_request("/v1/server", binary_fields(f"deaf {version.name}")))
        answer = b""
        while b"\r\n\r\n" not in answer:
            self._exchange()
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += self._tls.read(65536)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        sent = 1 if version is TLS13 else 2
        self._forger = Forger(version is TLS13, key_log, arrived, sent)

    def _exchange(self) -> bytes:
        """Send what TLS has to say, and return what comes."""
        self.sock.sendall(self._out.read())
        part = self.sock.recv(65536)
        assert part, "closed"
        self._in.write(part)
        return part

    def request(self) -> bytes:
        """Return a record that OpenSSL answers by itself."""
        if self.version is TLS13:
            return self._forger.key_update()
        return self._forger.record(HANDSHAKE, CLIENT_HELLO)


class TLSOutputTests(TLSTestCase):
    def test_answers_of_openssl(self) -> None:
        """Answers to key updates and renegotiation do not pile up for a client that does not read.

        400,000 of them are some 11 MB.
        """
        door = self.door()
        for version in (TLS12, TLS13):
            with self.subTest(version=version):
                client = DeafClient(door, version, self.directory / f"keys-{version.name}")
                self.addCleanup(client.sock.close)
                before = door.relay.rss()
                with contextlib.suppress(ConnectionError):
                    for _ in range(400):
                        client.sock.sendall(b"".join(client.request() for _ in range(1_000)))
                self.assertLess(door.relay.peak() - before, 3 * MEBIBYTE)
