"""Port 80: challenges are answered, everything else is 404, and no crowd delays the CA."""

from __future__ import annotations

from pyrycode_relay.http.challenge_site import _MAX_WAITING
from pyrycode_relay.http.relay_site import Readiness
from tests.wire.harness import Peer, WireTest

PATH = b"/.well-known/acme-challenge/token"


class ChallengeTest(WireTest):
    def setUp(self) -> None:
        super().setUp()
        self.site = self.relay.service.challenge_site
        self.site.challenges[PATH] = b"token.thumbprint"

    def tcp(self, data: bytes = b"") -> Peer:
        """Connect to port 80 and send ``data``."""
        peer = Peer(self.relay, "192.0.2.7")
        self.relay._accept(peer, self.site)
        peer.send(data)
        return peer

    def request(self, line: bytes, more: bytes = b"") -> Peer:
        return self.tcp(line + b" HTTP/1.1\r\nHost: relay.example\r\n" + more + b"\r\n")

    def test_challenge(self) -> None:
        """A CA gets a challenge's content, with or without a query, and the connection ends."""
        for target in (PATH, PATH + b"?x=y"):
            peer = self.request(b"GET " + target)
            self.assertEqual(peer.answer.status, 200)
            self.assertEqual(peer.answer.body, b"token.thumbprint")
            self.assertEqual(peer.answer.headers["content-type"], "application/octet-stream")
            self.assertTrue(peer.gone)

    def test_head(self) -> None:
        """HEAD has the length and no body."""
        answer = self.request(b"HEAD " + PATH).answer
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-length"], "16")

    def test_over(self) -> None:
        """A challenge that was removed is 404."""
        self.site.challenges.clear()
        self.assertEqual(self.request(b"GET " + PATH).answer.status, 404)

    def test_everything_else(self) -> None:
        """Everything else is 404 without a redirect, WebSockets and health checks included."""
        upgrade = (
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"X-Pyrycode-Server: b\r\nX-Pyrycode-Token: t\r\n"
        )
        for line in (
            *(b"GET /", b"GET /healthz", b"GET /readyz", b"GET /metrics", b"GET /v1/client"),
            *(b"GET /v1/server", b"POST " + PATH, b"PUT " + PATH, b"DELETE " + PATH),
            *(b"GET " + PATH + b"/", b"GET /.well-known/acme-challenge/", b"GET /" + PATH),
            *(b"GET " + PATH.upper(), b"GET http://x" + PATH, b"OPTIONS *", b"CONNECT x:1"),
        ):
            peer = self.request(line, upgrade)
            self.assertEqual((peer.answer.status, peer.answer.body), (404, b""), line)
            self.assertNotIn("location", peer.answer.headers)
            self.assertTrue(peer.gone, line)
        self.assertEqual(self.relay.counts, (0, 0, 0))
        self.assertEqual(self.relay.seen.events, [])

    def test_pipelined(self) -> None:
        """One of several pipelined requests is answered."""
        peer = self.tcp(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        self.assertEqual(bytes(peer.received).count(b"HTTP/1.1 "), 1)

    def test_garbage(self) -> None:
        """Bytes that are not HTTP get 400 at most, and are not logged."""
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, b"\r\n" * 9):
            peer = self.tcp(data)
            self.relay.advance(60)
            self.assertTrue(peer.gone)
            self.assertNotIn(b"200", bytes(peer.received))
        peer = self.tcp(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000)
        self.relay.advance(60)
        self.assertTrue(peer.gone)
        self.assertEqual(self.relay.seen.events, [])

    def test_slow(self) -> None:
        """A request has five seconds from the connection's start, even if it dribbles in."""
        peer = self.tcp(b"GET / HTTP/1.1\r\n")
        for _ in range(4):
            self.relay.advance(1.2)
            peer.send(b"X: y\r\n")
        self.assertFalse(peer.gone)
        self.relay.advance(0.5)
        self.assertTrue(peer.gone)
        self.assertEqual(bytes(peer.received), b"")

    def test_does_not_read(self) -> None:
        """A client that does not read its answer is aborted at the close timeout."""
        peer = Peer(self.relay, "192.0.2.7")
        self.relay._accept(peer, self.site)
        peer.stop_reading()
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.relay.advance(6)
        self.assertTrue(peer.gone)

    def test_crowd(self) -> None:
        """A crowd of silent connections loses its oldest to a CA that sends a request."""
        crowd = [self.tcp() for _ in range(_MAX_WAITING)]
        self.assertFalse(any(peer.gone for peer in crowd))
        self.assertEqual(self.request(b"GET " + PATH).answer.status, 200)
        self.assertEqual([peer.gone for peer in crowd].index(False), 1)

    def test_drain(self) -> None:
        """The drain does not wait for silent connections."""
        peer = self.tcp()
        self.relay.service.stopService()
        self.relay.advance(1)
        self.assertTrue(peer.gone)


class StartingTest(WireTest):
    def test_ready(self) -> None:
        """While there is no certificate, ``/readyz`` is 503 and ``/healthz`` 200."""
        self.relay.service.readiness = Readiness.STARTING
        answer = self.relay.request(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").answer
        self.assertEqual(answer.status, 503)
        self.assertTrue(answer.body.startswith(b"starting"))
        self.assertIn("retry-after", answer.headers)
        answer = self.relay.request(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").answer
        self.assertEqual(answer.status, 200)

    def test_plain_listeners(self) -> None:
        """Plain listeners serve before there is a certificate."""
        self.relay.service.readiness = Readiness.STARTING
        self.relay.pair()
        self.assertEqual(self.relay.counts, (1, 0, 1))
