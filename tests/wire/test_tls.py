"""What TLS below a connection changes: when its socket is read, and when it is closed."""

from __future__ import annotations

import contextlib
import errno
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import ClassVar, cast

from pyrycode_relay.endpoints.phone import PhoneProtocol
from pyrycode_relay.events import Event
from pyrycode_relay.http.server import Site
from pyrycode_relay.tls.certificate import Pair
from pyrycode_relay.tls.connection import TLSFactory
from pyrycode_relay.tls.sources import Files
from pyrycode_relay.tls.store import Certificates
from pyrycode_relay.websocket.acknowledgements import Acknowledgements
from tests.ca import Authority
from tests.peers.frames import frame
from tests.peers.requests import Headers, binary_headers, phone_headers, upgrade_request
from tests.wire.harness import Peer, Relay, WireTest

AUTHORITY = Authority()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: relay.test\r\n\r\n"


class Secure(Peer):
    """Somebody with a TLS connection to the relay; ``plain`` is what was read through it."""

    def __init__(
        self, relay: Relay, name: str = "relay.test", before: Secure | None = None
    ) -> None:
        super().__init__(relay, "192.0.2.99")
        self.plain = bytearray()
        self.closed = False
        """Whether the relay has ended TLS in order."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusting = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
        context = before.tls.context if before else trusting
        session = before.tls.session if before else None
        self.tls: ssl.SSLObject = context.wrap_bio(
            self._in, self._out, server_hostname=name, session=session
        )

    def shake_hands(self) -> None:
        """Do the handshake; the last of it leaves with what is said first."""
        done = False
        while not done:
            assert not self.gone, "the handshake has failed"
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                self.send(self._out.read())

    def say(self, data: bytes) -> None:
        """Send ``data`` through TLS."""
        self.tls.write(data)
        self.send(self._out.read())

    def end(self) -> None:
        """Send a ``close_notify``."""
        with contextlib.suppress(ssl.SSLError):  # the relay has not answered yet
            self.tls.unwrap()
        self.send(self._out.read())

    def _data(self, data: bytes) -> None:
        self._in.write(data)
        try:
            while piece := self.tls.read(1 << 16):
                self.plain += piece
            self.closed = True
        except (ssl.SSLWantReadError, ssl.SSLError):
            pass


class SecureTest(WireTest):
    """A relay with a certificate for ``relay.test``."""

    limits: ClassVar = {"send_buffer": 0}

    domains: ClassVar[tuple[str, ...]] = ()

    def setUp(self) -> None:
        super().setUp()
        directory = Path(tempfile.mkdtemp(prefix="tls-"))
        self.addCleanup(shutil.rmtree, directory)
        pair = Pair(directory / "chain.pem", directory / "key.pem")
        AUTHORITY.issue("relay.test").store(pair.certificate, pair.key)
        self.certificates = Certificates(
            [Files(pair)], self.domains, self.relay.seen, self.relay.reactor
        )
        self.certificates.load()

    def dial(self, name: str = "relay.test", before: Secure | None = None) -> Secure:
        """Connect, and say nothing; go on with the session from ``before``, if there is one."""
        relay, peer = self.relay, Secure(self.relay, name, before)
        factory = TLSFactory(self.certificates, relay.service.site, relay.seen, relay.reactor)
        relay._accept(peer, cast(Site, factory))
        return peer

    def upgraded(self, path: bytes, headers: Headers, tail: bytes = b"") -> Secure:
        """Connect and be upgraded, with ``tail`` behind the request in the same flight."""
        peer = self.dial()
        peer.shake_hands()
        peer.say(upgrade_request(path, headers) + tail)
        self.assertEqual(peer.plain[:12], b"HTTP/1.1 101")
        return peer


class TLSTest(SecureTest):
    """Connections over TLS, in memory."""

    def test_acknowledged_bytes(self) -> None:
        """What is acknowledged is counted in bytes of TLS, which exceed those of small messages."""
        binary = self.relay.binary()
        phone = self.upgraded(b"/v1/client", phone_headers())
        phone.say(frame(1, b"1"))
        [conn_id] = [each["conn_id"] for each in binary.envelopes]
        [side] = [each for each in self.relay.connections() if isinstance(each, PhoneProtocol)]
        counted = Acknowledgements(side.transport)
        before = len(phone.received)
        for number in range(1, 4):
            binary.text(f'{{"conn_id":"{conn_id}","frame":{number}}}')
            self.assertEqual(counted.sample(), len(phone.received) - before)
        self.assertGreater(counted.total, 3 * 20)
        phone.stop_reading()
        binary.text(f'{{"conn_id":"{conn_id}","frame":4}}')
        self.assertEqual(counted.sample(), len(phone.received) - before)
        self.assertGreater(counted.end(), counted.total)
        phone.resume_reading()
        self.assertEqual(counted.sample(), len(phone.received) - before)

    def test_everything_in_one_flight(self) -> None:
        """The last of the handshake, a request, frames, a close: answered in order and closed."""
        binary = self.relay.binary()
        tail = frame(1, b"1") + frame(9, b"ping") + frame(1, b"2") + frame(8, b"\x03\xe8")
        phone = self.upgraded(b"/v1/client", phone_headers(), tail)
        self.assertEqual(binary.messages[0][-10:], b'"frame":1}')
        self.assertEqual(binary.messages[1][-10:], b'"frame":2}')
        self.assertEqual(len(binary.notices), 1)
        self.assertTrue(phone.plain.endswith(b"\r\n\r\n\x8a\x04ping\x88\x02\x03\xe8"))
        self.assertTrue(phone.closed)
        phone.end()
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)

    def test_a_close_alone(self) -> None:
        """A close frame is answered before TLS ends."""
        self.relay.binary()
        phone = self.upgraded(b"/v1/client", phone_headers())
        phone.say(frame(8, b"\x03\xe8"))
        self.assertTrue(phone.plain.endswith(b"\x88\x02\x03\xe8"))
        self.assertTrue(phone.closed)
        phone.end()
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)

    def test_endless_handshake(self) -> None:
        """A ClientHello that is announced as 128 KiB is not kept: after 16 KiB its sender goes.

        After a handshake, nothing counts bytes.
        """
        peer = self.dial()
        sent = 0
        for part in [b"\x01\x01\xff\xff\x03\x03" + bytes(1018), *[bytes(1024)] * 127]:
            if not peer.gone:
                peer.send(b"\x16\x03\x01\x04\x00" + part)
                sent += len(part)
        self.assertTrue(peer.was_reset)
        self.assertEqual(sent, 16 * 1024)
        event, fields = self.relay.seen.events[-1]
        self.assertIs(event, Event.TLS_HANDSHAKE_FAILED)
        self.assertEqual(fields["reason"], "too long")
        self.upgraded(b"/v1/server", binary_headers())
        (side,) = self.relay.connections()
        self.assertNotIn("dataReceived", vars(side.transport))

    def test_writing_is_no_sign_of_life(self) -> None:
        """A dead incumbent is taken over, whatever is written to it while it is probed.

        What TLS has still to encrypt has not been taken by the peer.
        """
        old = self.upgraded(b"/v1/server", binary_headers())
        phone = self.relay.phone()
        old.stop_reading(100)  # enough for the ping
        new = self.relay.binary()
        phone.text('"' + "x" * 200_000 + '"')
        self.relay.advance(9)
        self.assertIsNone(new.closed)
        self.relay.advance(2)
        self.assertIsNone(new.closed)
        self.assertEqual(self.relay.counts, (1, 0, 0))
        self.assertEqual(len(self.relay.seen.of(Event.SERVER_ID_TAKEOVER)), 1)

    def test_much_that_is_no_handshake(self) -> None:
        """Data that is not TLS is reported as such, however much comes, and ends in order."""
        peer = self.dial()
        peer.send(bytes(60_000))
        self.assertTrue(peer.gone)
        self.assertFalse(peer.was_reset)
        event, fields = self.relay.seen.events[-1]
        self.assertIs(event, Event.TLS_HANDSHAKE_FAILED)
        self.assertNotEqual(fields["reason"], "too long")

    def test_nothing_is_kept_behind_the_last_frame(self) -> None:
        """TLS reads on after a close, for the peer's ``close_notify``; all else is dropped."""
        self.relay.binary()
        phone = self.upgraded(b"/v1/client", phone_headers(), frame(8, b"\x03\xe8"))
        (side,) = (each for each in self.relay.connections() if each.remote == phone.host)
        for _ in range(20):
            phone.say(bytes(10_000))
        self.assertEqual(side.data, b"")

    def test_nothing_is_read_behind_a_refusal(self) -> None:
        """TLS reads on there, too: what comes behind a line that is no request is no headers."""
        peer = self.dial()
        peer.shake_hands()
        peer.say(b"no request\r\n")
        self.assertEqual(peer.plain[:13], b"HTTP/1.1 400 ")
        peer.say(b"Host: relay.test\r\n\r\n")
        peer.say(HEALTH)
        self.assertEqual(peer.plain.count(b"HTTP/1.1"), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_peer_that_ends_tls_behind_a_backlog(self) -> None:
        """A binary that ends TLS while much waits for it is gone as soon as that is written.

        Its place is free at once, not when a heartbeat finds nobody there.
        """
        binary = self.upgraded(b"/v1/server", binary_headers())
        phone = self.relay.phone()
        binary.stop_reading()
        for _ in range(8):
            phone.text(b'"%s"' % (b"x" * 100_000))
        binary.end()
        self.assertFalse(binary.gone)
        self.assertEqual(self.relay.counts, (1, 0, 1))
        binary.resume_reading()
        self.assertTrue(binary.gone)
        self.assertFalse(binary.was_reset)
        self.assertEqual(self.relay.counts, (0, 1, 1))

    def test_socket_that_breaks_under_the_answer(self) -> None:
        """A connection that is lost while it is being upgraded is lost in order, and quietly."""
        self.relay.binary()
        peer = self.dial()
        peer.shake_hands()

        def broken(_: bytes) -> int:
            raise BrokenPipeError(errno.EPIPE, "broken")

        peer.socket.send = broken  # type: ignore[assignment, method-assign]
        peer.say(upgrade_request(b"/v1/client", phone_headers()) + frame(8, b"\x03\xe8"))
        self.assertTrue(peer.gone)
        self.assertEqual(self.relay.counts, (1, 0, 0))
        self.assertEqual(self.flushLoggedErrors(), [])


class NameTest(SecureTest):
    """Names that are served, and others."""

    domains: ClassVar[tuple[str, ...]] = ("relay.test",)

    def test_session_for_another_name(self) -> None:
        """A session that resumes is no way in for a name that is not served."""
        first = self.dial()
        first.shake_hands()
        first.say(HEALTH)
        again = self.dial(before=first)
        again.shake_hands()
        again.say(HEALTH)
        self.assertTrue(again.tls.session_reused)
        self.assertIn(b" 200 OK", again.plain)
        other = self.dial("other.test", before=first)
        other.shake_hands()
        other.say(HEALTH)
        self.assertTrue(other.gone)
        self.assertEqual(bytes(other.plain), b"")
        [fields] = self.relay.seen.of(Event.TLS_HANDSHAKE_FAILED)
        self.assertEqual(fields["reason"], "a name that is not served")


class CrowdTest(SecureTest):
    """More connections that wait than there may be."""

    limits: ClassVar = {"send_buffer": 0, "max_waiting": 2}

    def test_answered_and_crowded_out(self) -> None:
        """A peer that leaves TLS open after its answer is gone for good once it is crowded out."""
        peers = [self.dial() for _ in range(2)]
        for peer in peers:
            peer.shake_hands()
            peer.say(HEALTH)
        newcomers = [self.dial() for _ in range(2)]
        self.assertTrue(all(peer.gone for peer in peers))
        self.relay.advance(60)
        self.assertTrue(all(peer.gone for peer in newcomers))
