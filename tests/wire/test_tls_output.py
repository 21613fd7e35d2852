"""What OpenSSL writes by itself because a peer requests it: key updates and refusals."""

from __future__ import annotations

import gc
import json
import shutil
import ssl
import tempfile
import weakref
from pathlib import Path
from typing import ClassVar, cast

from twisted.python.failure import Failure

from pyrycode_relay.http.server import Site
from pyrycode_relay.tls.connection import TLSFactory
from pyrycode_relay.websocket.transports import descriptor_of
from tests.peers.frames import frame
from tests.peers.requests import Headers, binary_headers, phone_headers, upgrade_request
from tests.runners import clean_failure
from tests.tls_records import (
    APPLICATION_DATA,
    CLIENT_HELLO,
    HANDSHAKE,
    KEY_UPDATE,
    TLS12_SUITE,
    Forger,
)
from tests.unit.bench import Cases, cases
from tests.wire.harness import Relay
from tests.wire.test_tls import AUTHORITY, HEALTH, Secure, SecureTest

READ = 65_536
"""Bytes that the relay reads at once."""

HIGH_WATER = 65_536
"""Bytes that may wait in a transport before it is full."""

VERSIONS = {"tls12": (ssl.TLSVersion.TLSv1_2,), "tls13": (ssl.TLSVersion.TLSv1_3,)}


def envelope(conn_id: str, text: str) -> str:
    """Return what a daemon sends to have a phone get ``text``."""
    return json.dumps({"conn_id": conn_id, "frame": text})


class Forging(Secure):
    """A peer that can send records of its own making."""

    def __init__(self, relay: Relay, version: ssl.TLSVersion, key_log: Path) -> None:
        super().__init__(relay)
        context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
        context.keylog_filename = str(key_log)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(TLS12_SUITE)
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="relay.test")
        self.version = version
        self.arrived = b""
        self._key_log = key_log
        self._records = 1 if version is ssl.TLSVersion.TLSv1_2 else 0

    def say(self, data: bytes) -> None:
        """Send ``data`` through TLS, in one record."""
        self._records += 1
        super().say(data)

    def forger(self) -> Forger:
        """Return what makes the records from now on, in the place of `say`."""
        modern = self.version is ssl.TLSVersion.TLSv1_3
        return Forger(modern, self._key_log, self.arrived, self._records)

    def _data(self, data: bytes) -> None:
        self.arrived += data
        super()._data(data)


class OwnOutputTest(Cases, SecureTest):
    """Peers that make OpenSSL answer and do not read the answers."""

    limits: ClassVar = {"send_buffer": 0, "write_stall": 30.0, "heartbeat_interval": 600.0}

    def setUp(self) -> None:
        super().setUp()
        self.directory = Path(tempfile.mkdtemp(prefix="tls-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def forging(self, version: ssl.TLSVersion) -> Forging:
        """Connect and shake hands."""
        relay = self.relay
        peer = Forging(relay, version, self.directory / f"keys-{len(relay.peers)}")
        factory = TLSFactory(self.certificates, relay.service.site, relay.seen, relay.reactor)
        relay._accept(peer, cast(Site, factory))
        peer.shake_hands()
        return peer

    def serving(self, version: ssl.TLSVersion, path: bytes, headers: Headers) -> Forging:
        """Connect and be upgraded."""
        peer = self.forging(version)
        peer.say(upgrade_request(path, headers))
        self.assertEqual(peer.plain[:12], b"HTTP/1.1 101")
        return peer

    def request(self, peer: Forging, forger: Forger) -> bytes:
        """Return a record that OpenSSL answers by itself."""
        if peer.version is ssl.TLSVersion.TLSv1_3:
            return forger.key_update()
        return forger.record(HANDSHAKE, CLIENT_HELLO)

    def flood(self, peer: Forging, forger: Forger) -> int:
        """Send requests without reading; return how many came in before the connection ended."""
        peer.stop_reading()
        sent = 0
        while not peer.gone:
            self.assertLess(sent, 20_000, "the connection goes on, whatever waits for the peer")
            peer.send(b"".join(self.request(peer, forger) for _ in range(100)))
            sent += 100
        return sent

    def bounded(self, peer: Forging, forger: Forger) -> None:
        """See that a flood ends before its answers are many."""
        size = 31 if peer.version is ssl.TLSVersion.TLSv1_2 else 27
        self.assertLess(self.flood(peer, forger) * size, HIGH_WATER + 16_384 + READ)
        self.assertTrue(peer.was_reset)
        self.assertEqual(self.flushLoggedErrors(), [])

    @cases(VERSIONS)
    def test_serving(self, version: ssl.TLSVersion) -> None:
        """A connection that serves."""
        peer = self.serving(version, b"/v1/server", binary_headers())
        self.bounded(peer, peer.forger())
        self.assertEqual(self.relay.counts, (0, 1, 0))

    @cases(VERSIONS)
    def test_among_pings(self, version: ssl.TLSVersion) -> None:
        """Pings among the requests, which the relay answers, change nothing."""
        peer = self.serving(version, b"/v1/server", binary_headers())
        forger = peer.forger()
        peer.stop_reading()
        sent = 0
        while not peer.gone and sent < 5_000:
            ping = forger.record(APPLICATION_DATA, frame(9, b"?"))
            peer.send(ping + b"".join(self.request(peer, forger) for _ in range(10)))
            sent += 10
        self.assertTrue(peer.was_reset)

    def test_closing(self) -> None:
        """A connection that closes, and to which the relay writes nothing more."""
        peer = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/server", binary_headers())
        forger = peer.forger()
        peer.send(forger.record(APPLICATION_DATA, frame(8, b"\x03\xe8")))
        self.assertFalse(peer.gone)
        self.bounded(peer, forger)

    def test_answered(self) -> None:
        """A connection that has had the answer to its request."""
        peer = self.forging(ssl.TLSVersion.TLSv1_3)
        peer.say(HEALTH)
        self.assertIn(b"200 OK", peer.plain)
        self.assertFalse(peer.gone)
        self.bounded(peer, peer.forger())

    def test_before_a_request(self) -> None:
        """Before the request, a full transport stops the reading; the header timeout applies."""
        peer = self.forging(ssl.TLSVersion.TLSv1_3)
        peer.say(HEALTH[:10])
        forger = peer.forger()
        peer.stop_reading()
        sent = 0
        for _ in range(100):
            data = b"".join(forger.key_update() for _ in range(100))
            sent += len(data)
            peer.send(data)
        self.assertLess(sent - len(peer.socket.inbound), HIGH_WATER + READ)
        self.relay.advance(5)
        self.assertTrue(peer.gone)

    def test_a_reader(self) -> None:
        """A peer that reads may change its keys as often as it likes."""
        self.relay.binary()
        peer = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/client", phone_headers())
        forger = peer.forger()
        for _ in range(30):
            peer.send(b"".join(forger.key_update() for _ in range(500)))
        peer.send(forger.record(APPLICATION_DATA, frame(9, b"?")))
        self.assertTrue(peer.plain.endswith(b"\x8a\x01?"))
        self.assertFalse(peer.gone)

    def test_behind_a_backlog(self) -> None:
        """A slow phone with a long backlog is read, and may change its keys, for a long time."""
        binary = self.relay.binary()
        phone = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/client", phone_headers())
        forger = phone.forger()
        phone.send(forger.record(APPLICATION_DATA, frame(1, b"0")))
        conn_id = binary.envelopes[0]["conn_id"]
        phone.stop_reading()
        for _ in range(20):
            binary.text(envelope(conn_id, "x" * 100_000))
        self.assertGreater(self.relay.queued, 1_900_000)
        for number in range(1, 51):
            phone.send(
                forger.record(APPLICATION_DATA, frame(1, b"%d" % number)) + forger.key_update()
            )
        self.assertEqual([each["frame"] for each in binary.envelopes], [*range(51)])
        before = phone.plain.count(b"x")
        phone.resume_reading()
        self.assertEqual(phone.plain.count(b"x") - before, 2_000_000)
        self.assertFalse(phone.gone)

    def test_stall(self) -> None:
        """A peer that makes OpenSSL fill its transport and stops there meets the write stall."""
        peer = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/server", binary_headers())
        forger = peer.forger()
        peer.stop_reading()
        for _ in range(26):
            peer.send(b"".join(forger.key_update() for _ in range(100)))
        self.assertFalse(peer.gone)
        self.relay.advance(29)
        self.assertEqual(self.relay.counts, (1, 0, 0))
        self.relay.advance(2)
        self.assertEqual(self.relay.counts, (0, 1, 0))
        self.relay.advance(5)
        self.assertTrue(peer.was_reset)

    def test_unfinished_message(self) -> None:
        """A peer that blocks writes by an unfinished TLS message meets the write stall too."""
        binary = self.relay.binary()
        phone = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/client", phone_headers())
        forger = phone.forger()
        phone.send(forger.record(APPLICATION_DATA, frame(1, b"0")))
        conn_id = binary.envelopes[0]["conn_id"]
        phone.send(forger.record(HANDSHAKE, KEY_UPDATE[:4]))
        before = len(phone.plain)
        for _ in range(3):
            binary.text(envelope(conn_id, "waits"))
        self.assertEqual(len(phone.plain), before)
        self.relay.advance(31)
        self.assertEqual(binary.notices, [(conn_id, 1011)])
        self.relay.advance(5)
        self.assertTrue(phone.gone)

    def test_message_finished_in_time(self) -> None:
        """What an unfinished TLS message blocked is written as soon as the message is finished."""
        binary = self.relay.binary()
        phone = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/client", phone_headers())
        forger = phone.forger()
        phone.send(forger.record(APPLICATION_DATA, frame(1, b"0")))
        conn_id = binary.envelopes[0]["conn_id"]
        phone.send(forger.record(HANDSHAKE, KEY_UPDATE[:4]))
        binary.text(envelope(conn_id, "waits"))
        self.relay.advance(20)
        phone.send(forger.record(HANDSHAKE, KEY_UPDATE[4:]))
        self.assertTrue(phone.plain.endswith(b'"waits"'))
        self.relay.advance(20)
        self.assertFalse(phone.gone)

    @cases({"aborted": (False,), "failed": (True,)})
    def test_nothing_stays(self, fails: bool) -> None:
        """What waits to be written is freed with the socket, without the garbage collector."""
        self.patch(Failure, "cleanFailure", clean_failure())
        binary = self.relay.binary()
        phone = self.serving(ssl.TLSVersion.TLSv1_3, b"/v1/client", phone_headers())
        forger = phone.forger()
        phone.send(forger.record(APPLICATION_DATA, frame(1, b"0")))
        conn_id = binary.envelopes[0]["conn_id"]
        phone.stop_reading()
        binary.text(envelope(conn_id, "x" * 200_000))
        [side] = (each for each in self.relay.connections() if each.remote == phone.host)
        descriptor = descriptor_of(side.transport)
        assert descriptor is not None
        kept: list[weakref.ref[object]] = [weakref.ref(side), weakref.ref(descriptor)]
        del side, descriptor
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        if fails:
            phone.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            phone.resume_reading()
        else:
            self.flood(phone, forger)
        self.relay.advance(6)
        self.assertTrue(phone.gone)
        self.assertEqual([each() for each in kept], [None] * 2)
