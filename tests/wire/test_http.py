"""The HTTP side: order of checks, refusals, health, bodies and deadlines (sections 1 and 6)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar, cast

from twisted.internet.tcp import Server

from pyrycode_relay import __version__
from pyrycode_relay.events import Event
from pyrycode_relay.http.relay_site import Readiness
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.wire.harness import Answer, Peer, Relay, WireTest

CLIENT = b"/v1/client"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


class RefusalTest(WireTest):
    """Refusals, and the order of the checks."""

    def assert_bare(self, peer: Peer, status: int, case: str) -> Answer:
        """Check that a request was refused with an empty body and the connection's end."""
        answer = peer.answer
        self.assertEqual(answer.status, status, case)
        self.assertEqual(answer.body, b"", case)
        self.assertEqual(answer.headers.get("content-length"), "0", case)
        self.assertEqual(answer.headers.get("connection"), "close", case)
        for word in (b"autobahn", b"twisted", b"python", b"traceback", b"html", b"echo-me"):
            self.assertNotIn(word, answer.raw.lower(), case)
        self.assertNotIn("server", answer.headers, case)
        self.assertTrue(peer.gone, case)
        self.assertEqual(self.relay.seen.loud(), [], case)
        return answer

    def test_unknown_paths(self) -> None:
        """A path that is not exactly one of the relay's is 404 with an empty body."""
        for path in (
            b"/", b"/v1", b"/v1/", b"/v1/server/", b"/v1/Server", b"//v1/server", b"/v3/client",
            b"/v1/client%20", b"/v1/%63lient", b"/healthz/", b"/metrics", b"/v1/client/echo-me",
            b"/../v1/client", b"http://relay.example/v1/client", b"*", b"/v1/client;a=b",
        ):  # fmt: skip
            peer = self.relay.request(upgrade_request(path, phone_headers()))
            self.assert_bare(peer, 404, path.decode())
            ((event, fields),) = self.relay.seen.events
            self.assertIs(event, Event.PATH_UNKNOWN)
            self.assertEqual(fields["remote"], "192.0.2.7")
            self.assertNotIn("echo-me", str(fields))
            self.relay.seen.clear()
        self.assertEqual(self.relay.counts, (0, 0, 0))

    def test_path_comes_before_draining(self) -> None:
        """While draining, an unknown path is 404, and a known path 503 before its gate."""
        self.relay.service.readiness = Readiness.DRAINING
        self.assert_bare(self.relay.request(upgrade_request(b"/nope", [])), 404, "path")
        for path in (b"/v1/server", b"/v2/server", b"/v1/client", b"/v2/client"):
            self.relay.seen.clear()
            answer = self.assert_bare(self.relay.request(upgrade_request(path, [])), 503, "drain")
            self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
            [refusal] = self.relay.seen.of(Event.REQUEST_REFUSED)
            self.assertIs(refusal["err"], UpgradeRefusal.NOT_READY, "the gate was asked")

    def test_gate_comes_before_the_handshake(self) -> None:
        """A request that fails its gate is 400 whatever its method, headers and version."""
        for changes, method, version in (
            ({b"Upgrade": None}, b"GET", b"HTTP/1.1"),
            ({b"Sec-WebSocket-Version": b"8"}, b"GET", b"HTTP/1.1"),
            ({}, b"POST", b"HTTP/1.1"),
            ({}, b"HEAD", b"HTTP/1.1"),
            ({}, b"GET", b"HTTP/1.0"),
            ({b"Sec-WebSocket-Key": b"short"}, b"GET", b"HTTP/1.1"),
        ):
            data = upgrade_request(CLIENT, [], method=method, version=version, change=changes)
            answer = self.assert_bare(self.relay.request(data), 400, f"{method!r} {changes}")
            self.assertNotIn("sec-websocket-version", answer.headers)

    def test_handshake_errors(self) -> None:
        """A request that is not a handshake is 400, 405 or 426, each with its headers."""
        cases: tuple[tuple[int, dict[bytes, bytes | None]], ...] = (
            (426, {b"Upgrade": None}),
            (426, {b"Upgrade": b"h2c"}),
            (426, {b"Connection": None}),
            (426, {b"Connection": b"keep-alive"}),
            (426, {b"Sec-WebSocket-Version": None}),
            (426, {b"Sec-WebSocket-Version": b"8"}),
            (426, {b"Sec-WebSocket-Version": b"0"}),
            (426, {b"Sec-WebSocket-Version": b"13, 8"}),
            (426, {b"Sec-WebSocket-Version": b"echo-me"}),
            (400, {b"Sec-WebSocket-Key": None}),
            (400, {b"Sec-WebSocket-Key": b""}),
            (400, {b"Sec-WebSocket-Key": b"echo-me"}),
            (400, {b"Sec-WebSocket-Key": b"A" * 24}),
            (400, {b"Host": None}),
        )
        for status, change in cases:
            for path in (b"/v1/client", b"/v2/client"):
                peer = self.relay.request(upgrade_request(path, phone_headers(), change=change))
                answer = self.assert_bare(peer, status, str(change))
                if status == 426:
                    self.assertEqual(answer.headers["sec-websocket-version"], "13")
                    self.assertEqual(answer.headers["upgrade"], "websocket")
        for status, change in cases:
            peer = self.relay.request(
                upgrade_request(b"/v1/server", binary_headers(), change=change)
            )
            self.assert_bare(peer, status, str(change))
        self.assertEqual(self.relay.counts, (0, 0, 0))

    def test_lenient_handshakes(self) -> None:
        """Tokens may be in any case and in lists, as RFC 6455 allows."""
        for change in (
            {b"Upgrade": b"WebSocket"},
            {b"Connection": b"keep-alive, Upgrade"},
            {b"Connection": b"upgrade"},
            {b"Connection": b"Keep-Alive,UPGRADE"},
        ):
            peer = self.relay.request(upgrade_request(CLIENT, phone_headers(), change=change))
            self.assertEqual(peer.answer.status, 101, str(change))

    def test_doubled_handshake_headers(self) -> None:
        """A key, a version or a Host that occurs twice is refused."""
        for name, value in (
            (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Host", b"other.example"),
        ):
            peer = self.relay.request(upgrade_request(CLIENT, [*phone_headers(), (name, value)]))
            self.assertIn(peer.answer.status, {400, 426}, name.decode())
            self.assertTrue(peer.gone)

    def test_other_methods(self) -> None:
        """A method other than GET on an endpoint is 405 and names the allowed method."""
        for method in (b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"ECHO-ME"):
            data = upgrade_request(CLIENT, phone_headers(), method=method)
            answer = self.assert_bare(self.relay.request(data), 405, method.decode())
            self.assertEqual(answer.headers["allow"], "GET")

    def test_http_1_0(self) -> None:
        """An upgrade by HTTP/1.0 is 400."""
        data = upgrade_request(CLIENT, phone_headers(), version=b"HTTP/1.0")
        self.assert_bare(self.relay.request(data), 400, "1.0")

    def test_what_is_no_http(self) -> None:
        """Bytes that are not an HTTP request are refused with one bare 400."""
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03echo-me\r\n\r\n",
            b"echo-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\necho-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\n: echo-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nNa me: echo-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nContent-Length: echo-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nTransfer-Encoding: echo-me\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 501 + b"\r\n",
            b"x" * 40_000,
        ):
            peer = self.relay.request(data)
            self.relay.advance(6)
            self.assert_bare(peer, 400, repr(data[:60]))
            self.assertEqual(peer.received.count(b"HTTP/1.1"), 1, repr(data[:60]))

    def test_header_block_is_bounded(self) -> None:
        """A header block without an end is refused before it is large."""
        peer = self.relay.tcp()
        sent = 0
        peer.send(b"GET /healthz HTTP/1.1\r\n")
        while not peer.gone and sent < 1_000_000:
            peer.send(b"A: " + b"b" * 996 + b"\r\n")
            sent += 1000
        self.assertLess(sent, 20_000)
        self.assertEqual(peer.answer.status, 400)

    def test_refused_peer_that_does_not_go(self) -> None:
        """A refused peer that reads nothing and keeps its socket is aborted at the deadline."""
        for data in (upgrade_request(b"/nope", []), upgrade_request(CLIENT, []), b"junk\r\n\r\n"):
            peer = self.relay.tcp()
            peer.stop_reading()
            peer.send(data)
            self.relay.advance(4.875)
            self.assertFalse(peer.gone)
            self.relay.advance(0.25)
            self.assertTrue(peer.gone)
            self.assertTrue(peer.was_reset)

    def test_bug_in_the_answer(self) -> None:
        """A bug in an answer is a bare 500, and logged with its traceback."""

        def broken() -> dict[str, object]:
            raise RuntimeError("echo-me")

        site = self.relay.service.site
        site.backend = replace(site.backend, health=broken)
        self.assert_bare(self.relay.request(HEALTHZ), 500, "bug")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class BodyTest(WireTest):
    """Request bodies are never read, and the relay does not wait for them."""

    def test_answer_does_not_wait_for_the_body(self) -> None:
        """The answer comes with the end of the headers, and no 100 invites the body."""
        for length in (b"Content-Length: 1000000", b"Transfer-Encoding: chunked"):
            for expect in (b"", b"Expect: 100-continue\r\n"):
                peer = self.relay.request(
                    b"POST /healthz HTTP/1.1\r\nHost: a\r\n" + expect + length + b"\r\n\r\n"
                )
                self.assertEqual(peer.answer.status, 405, length.decode())
                self.assertEqual(peer.received.count(b"HTTP/1.1"), 1)
                self.assertTrue(peer.gone)

    def test_body_is_no_second_request(self) -> None:
        """A request inside a body is not served."""
        inner = HEALTHZ
        peer = self.relay.request(
            b"GET /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        )
        self.assertEqual(peer.received.count(b"HTTP/1.1"), 1)
        self.assertTrue(peer.gone)

    def test_forms_are_not_parsed(self) -> None:
        """A form, broken or not, is a body like any other."""
        for kind in (b"multipart/form-data", b"application/x-www-form-urlencoded"):
            for extra in (b"; boundary=x", b"; boundary", b""):
                peer = self.relay.request(
                    b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
                    b"Content-Type: " + kind + extra + b"\r\n\r\na=b"
                )
                self.assertEqual(peer.answer.status, 405, repr(kind + extra))
                self.assertEqual(peer.answer.body, b"")


class HealthTest(WireTest):
    """Health and readiness."""

    def health(self) -> dict[str, object]:
        """Return what ``/healthz`` says."""
        peer = self.relay.request(HEALTHZ)
        self.assertEqual(peer.answer.status, 200)
        return dict(json.loads(peer.answer.body))

    def test_exact_bytes(self) -> None:
        """``/healthz`` is compact JSON with its keys in order, its type and no caching."""
        self.relay.advance(12.75)
        answer = self.relay.request(HEALTHZ).answer
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        self.assertEqual(
            answer.body,
            b'{"status":"ok","version":"%s","connected_binaries":0,"connected_phones":0,'
            b'"uptime_seconds":12}' % __version__.encode(),
        )
        self.assertNotIn("server", answer.headers)
        self.assertEqual(self.relay.seen.events, [])
        self.assertEqual(self.log_loud(), [])

    def test_counts(self) -> None:
        """It counts connected binaries and phones; a binary in grace does not count."""
        binary, phone = self.relay.pair()
        self.relay.phone()
        self.relay.binary("other")
        health = self.health()
        self.assertEqual((health["connected_binaries"], health["connected_phones"]), (2, 2))
        binary.reset()
        phone.reset()
        health = self.health()
        self.assertEqual((health["connected_binaries"], health["connected_phones"]), (1, 1))
        self.relay.advance(31)
        health = self.health()
        self.assertEqual((health["connected_binaries"], health["connected_phones"]), (1, 0))

    def test_head(self) -> None:
        """HEAD has the headers of GET and no body."""
        for path in (b"/healthz", b"/readyz"):
            get = self.relay.request(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n").answer
            head = self.relay.request(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n").answer
            self.assertEqual(head.body, b"")
            self.assertEqual(head.status, get.status)
            self.assertEqual(
                {**head.headers, "date": ""}, {**get.headers, "date": ""}, path.decode()
            )

    def test_other_methods(self) -> None:
        """Other methods are 405 and name the allowed methods."""
        for path in (b"/healthz", b"/readyz"):
            for method in (b"POST", b"PUT", b"OPTIONS", b"TRACE"):
                peer = self.relay.request(method + b" " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                self.assertEqual(peer.answer.status, 405)
                self.assertEqual(peer.answer.headers["allow"], "GET, HEAD")

    def test_one_request_a_connection(self) -> None:
        """A connection serves one request, announces its end, and closes; others are not read."""
        for head in (HEALTHZ, HEALTHZ.replace(b"Host", b"Connection: keep-alive\r\nHost")):
            peer = self.relay.request(head + HEALTHZ * 3)
            self.assertEqual(peer.received.count(b"HTTP/1.1"), 1)
            self.assertEqual(peer.answer.headers["connection"], "close")
            self.assertTrue(peer.gone)

    def test_ready(self) -> None:
        """``/readyz`` is 503 before the start and while draining, 200 between."""
        readyz = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"
        early = Relay()
        answer = early.request(readyz).answer
        self.assertEqual(answer.status, 503)
        self.assertIn("retry-after", answer.headers)
        early.start()
        answer = early.request(readyz).answer
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["cache-control"], "no-store")
        late = early.tcp()
        early.binary()
        early.service.stopService()
        late.send(HEALTHZ)
        self.assertEqual(late.answer.status, 200, "asked while draining, on an old connection")
        answer = early.request(readyz).answer
        self.assertEqual((answer.status, answer.body), (503, b""))
        self.assertIn("retry-after", answer.headers)
        self.assertEqual(early.request(HEALTHZ).answer.status, 200)
        early.advance(60)


class HeaderTimeoutTest(WireTest):
    """A request must be complete in time."""

    limits: ClassVar = {"header_timeout": 5.0}

    def test_silence(self) -> None:
        """A silent connection is aborted at the header timeout."""
        peer = self.relay.tcp()
        self.relay.advance(4.875)
        self.assertFalse(peer.gone)
        self.relay.advance(0.25)
        self.assertTrue(peer.gone)
        self.assertEqual(self.log_loud(), [])

    def test_dribble(self) -> None:
        """Headers that dribble in are cut off at the timeout, from the connection's start."""
        peer = self.relay.tcp()
        request = upgrade_request(CLIENT, phone_headers())
        sent = 0
        for byte in request:
            if peer.gone:
                break
            sent += 1
            peer.send(bytes([byte]))
            self.relay.advance(0.125)
        self.assertTrue(peer.gone)
        self.assertIn(sent, (40, 41))
        self.assertEqual(bytes(peer.received), b"")

    def test_upgraded_connection_has_no_request_deadline(self) -> None:
        """After the upgrade the header timeout is over."""
        self.relay.binary()
        phone = self.relay.phone()
        self.relay.advance(20)
        self.assertFalse(phone.gone)
        self.assertEqual(self.relay.seen.of(Event.PHONE_UNREGISTERED), [])

    def test_answers_nobody_reads(self) -> None:
        """Pipelined requests of a peer that reads nothing cost a bounded amount of memory."""
        peer = self.relay.tcp()
        peer.stop_reading()
        (channel,) = self.relay.service.site.channels
        transport = cast(Server, channel.transport)
        for _ in range(100):
            peer.send(HEALTHZ * 100)
        kept = transport._tempDataLen + len(transport.dataBuffer) + len(channel._buffer)
        self.assertLess(kept, 1_000_000)
        self.relay.advance(30)
        self.assertTrue(peer.gone)
