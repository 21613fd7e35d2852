"""Behind proxies: the caller's address, from a PROXY header or from a header of the request."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.addresses import source
from pyrycode_relay.events import Event
from pyrycode_relay.http.proxy_protocol import SIGNATURE, ProxyRefusal
from tests.peers.frames import frame
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.unit.bench import examples
from tests.wire.harness import Client, Peer, Relay, WireTest

LB = "10.0.0.1"
CALLER = "203.0.113.9"
V1 = f"PROXY TCP4 {CALLER} 192.0.2.1 56324 443\r\n".encode()
V2 = SIGNATURE + struct.pack(
    "!BBH4s4sHH7s", 0x21, 0x11, 19, b"\xcb\0\x71\x09", b"\xc0\0\2\1", 5, 443, b"\4\0\4abcd"
)
LOCAL = SIGNATURE + b"\x20\0\0\0"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
BINARY = upgrade_request(b"/v1/server", binary_headers())
PHONE = upgrade_request(b"/v1/client", phone_headers())


class ProxyProtocolTest(WireTest):
    """A listener that requires PROXY headers, from the network 10.0.0.0/8."""

    settings: ClassVar[dict[str, Any]] = {
        "proxy_protocol": True,
        "trusted_proxy": (source("10.0.0.0/8"),),
    }

    def dial(self, *data: bytes, host: str = LB) -> Peer:
        """Connect from a proxy and send these pieces one by one."""
        peer = self.relay.tcp(host)
        for each in data:
            peer.send(each)
        return peer

    def refused(self, peer: Peer, reason: ProxyRefusal) -> None:
        """Check that a connection was dropped without a byte, with one event and this reason."""
        self.assertTrue(peer.gone)
        self.assertEqual(peer.received, b"")
        [fields] = self.relay.seen.of(Event.PROXY_REFUSED)
        self.assertEqual(fields, {"remote": peer.host, "reason": reason})
        self.assertEqual(len(self.relay.seen.events), 1)
        self.assertEqual([*self.relay.service.site.channels], [])

    def claimed(self) -> list[object]:
        """Return the addresses of the binaries that claimed a server-id."""
        return [fields["remote"] for fields in self.relay.seen.of(Event.SERVER_CLAIMED)]

    def test_header_and_request_at_once(self) -> None:
        """A request in one packet with the header is served, for the announced caller."""
        for header in (V1, V2):
            self.relay.seen.clear()
            peer = self.dial(header + BINARY)
            self.assertTrue(peer.received.startswith(b"HTTP/1.1 101 "))
            self.assertEqual(self.claimed(), [CALLER])
            peer.reset()
            self.relay.advance(31)

    def test_byte_by_byte(self) -> None:
        """Header and request may arrive in any pieces."""
        for header in (V1, V2):
            peer = self.dial(*(bytes([byte]) for byte in header + HEALTHZ))
            self.assertEqual(peer.answer.status, 200)

    def test_frames_behind_it(self) -> None:
        """Header, request and frames in one packet all take effect, in order."""
        binary = self.dial(V1 + BINARY)
        frames = b"".join(frame(1, b'{"n":%d}' % number) for number in range(3))
        phone = self.dial(V2 + PHONE + frames)
        self.assertTrue(phone.received.startswith(b"HTTP/1.1 101 "))
        for number in range(3):
            self.assertIn(b'"frame":{"n":%d}}' % number, binary.received)
        [registered] = self.relay.seen.of(Event.PHONE_REGISTERED)
        self.assertEqual(registered["remote"], CALLER)

    def test_out_of_the_way(self) -> None:
        """After the header the channel is attached to the transport, as without a proxy."""
        self.dial(V1)
        [channel] = self.relay.service.site.channels
        self.assertIs(channel.transport.protocol, channel)
        self.assertEqual((channel.getPeer().host, channel.getPeer().port), (CALLER, 56324))
        self.assertEqual(channel.transport.client[0], LB)

    def test_upgraded(self) -> None:
        """A WebSocket behind the header is like any other: it pings, and times out."""
        peer = self.relay.tcp(LB)
        peer.send(V2)
        client = Client(self.relay, LB, "/v1/server")
        client.socket = peer.socket
        self.relay.peers[-1] = client
        client.handshake(binary_headers())
        self.assertEqual(self.relay.counts, (1, 0, 0))
        self.relay.advance(40)
        client.answers = False
        self.relay.advance(70)
        self.assertEqual(client.closed, (1011, "heartbeat timeout"))

    def test_untrusted(self) -> None:
        """A connection from an untrusted source is closed unread."""
        self.refused(self.dial(V1 + BINARY, host="192.0.2.7"), ProxyRefusal.UNTRUSTED)
        self.assertEqual(self.relay.reactor.getDelayedCalls(), [])

    def test_no_header(self) -> None:
        """A trusted source that starts with HTTP or TLS is dropped."""
        for data in (BINARY, HEALTHZ, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"):
            self.relay.seen.clear()
            self.refused(self.dial(data), ProxyRefusal.ABSENT)

    def test_stall(self) -> None:
        """A header that is not complete in time ends the connection, however it dribbles."""
        for pieces in ((), (V1[:-1],), (V2[:15],), (V2[:-1],)):
            self.relay.seen.clear()
            peer = self.dial(*pieces)
            self.relay.advance(4.9)
            self.assertFalse(peer.gone)
            self.relay.advance(0.2)
            self.refused(peer, ProxyRefusal.LATE)
        self.relay.seen.clear()
        peer = self.dial()
        for byte in V1[:10]:
            peer.send(bytes([byte]))
            self.relay.advance(0.6)
        self.refused(peer, ProxyRefusal.LATE)

    def test_request_has_its_own_time(self) -> None:
        """The header timeout of the request starts after the PROXY header."""
        peer = self.dial(V1)
        self.relay.advance(4.9)
        self.assertFalse(peer.gone)
        self.relay.advance(0.2)
        self.assertTrue(peer.gone)
        self.assertEqual(peer.received, b"")

    def test_bounded(self) -> None:
        """A header that is too long is refused as soon as its length is known."""
        self.refused(
            self.dial(SIGNATURE + b"\x21\x11\xff\xff" + bytes(9000)),
            ProxyRefusal.TOO_LONG,
        )
        self.relay.seen.clear()
        self.refused(self.dial(b"PROXY UNKNOWN" + b" " * 95), ProxyRefusal.ENDLESS)

    def test_too_many(self) -> None:
        """When too many connections send no header the oldest is dropped; the others are served."""
        most = self.relay.service.admission.capacity.waiting
        peers = [self.dial() for _ in range(most + 1)]
        self.refused(peers[0], ProxyRefusal.CROWDED_OUT)
        for peer in peers[1:]:
            self.assertFalse(peer.gone)
            peer.send(V1 + HEALTHZ)
            self.assertEqual(peer.answer.status, 200)

    def test_second_header(self) -> None:
        """A second header is a bad request."""
        for second in (V1, V2, LOCAL):
            peer = self.dial(V1 + second + BINARY)
            self.assertEqual(peer.answer.status, 400)
            self.assertTrue(peer.gone)
        self.assertEqual(self.claimed(), [])

    def test_health_checks(self) -> None:
        """A proxy's health check is closed without a reset, whatever follows."""
        for header in (LOCAL, b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x21\0\0\0"):
            for more in (b"", BINARY, V1 + BINARY):
                peer = self.dial(header + more)
                peer.send(b"and more")
                self.assertTrue(peer.ended)
                self.assertFalse(peer.was_reset)
                peer.finish()
                self.assertTrue(peer.gone)
                self.assertFalse(peer.was_reset)
                self.assertEqual(peer.received, b"")
        self.assertEqual(self.relay.seen.events, [])
        self.assertEqual(self.relay.reactor.getDelayedCalls(), [])

    def test_health_check_that_stays(self) -> None:
        """A health check that stays is aborted at the close timeout."""
        peer = self.dial(LOCAL)
        self.relay.advance(4.9)
        self.assertFalse(peer.gone)
        self.relay.advance(0.2)
        self.assertTrue(peer.gone)
        self.assertEqual(self.relay.seen.events, [])

    def test_gone_before_the_header(self) -> None:
        """A peer that leaves before its header is complete leaves no timer and no event."""
        self.dial(V1[:20]).finish()
        self.dial(V2[:20]).reset()
        self.dial().finish()
        self.assertTrue(all(peer.gone for peer in self.relay.peers))
        self.assertEqual(self.relay.reactor.getDelayedCalls(), [])
        self.assertEqual(self.relay.seen.events, [])

    def test_announced_family(self) -> None:
        """IPv6, v4-mapped and UNIX callers are reported as IPv6, IPv4 and ``unix``."""
        six = struct.pack("!BBH", 0x21, 0x21, 36) + b"\x20\1\r\xb8" + bytes(32)
        mapped = struct.pack("!BBH", 0x21, 0x21, 36) + bytes(10) + b"\xff\xff\1\2\3\4" + bytes(20)
        unix = struct.pack("!BBH", 0x21, 0x31, 216) + bytes(216)
        expected = {six: "2001:db8::", mapped: "1.2.3.4", unix: "unix"}
        for number, header in enumerate(expected):
            request = upgrade_request(b"/v1/server", binary_headers(f"number-{number}"))
            self.dial(SIGNATURE + header + request)
        self.assertEqual(self.claimed(), [*expected.values()])

    def test_proxies_before_the_proxy(self) -> None:
        """If the header announces a trusted proxy, a header of the request names the caller."""
        inner = V1.replace(CALLER.encode(), b"10.7.7.7")
        said = (b"X-Forwarded-For", b"198.51.100.3")
        request = upgrade_request(b"/v1/server", [*binary_headers("a"), said])
        self.dial(inner + request)
        self.dial(V1 + request.replace(b": a\r\n", b": b\r\n"))
        self.assertEqual(self.claimed(), ["198.51.100.3", CALLER])

    def test_drain(self) -> None:
        """Connections that wait for their header are aborted when the listener closes."""
        listener = self.relay.reactor.tcpServers[0][1]
        listener.doStart()  # Twisted's memory reactor calls neither.
        waiting, checked = self.dial(V1[:20]), self.dial(LOCAL)
        listener.doStop()
        self.relay.pump()
        self.assertTrue(waiting.gone)
        self.assertTrue(checked.gone)
        self.assertEqual(self.relay.seen.of(Event.PROXY_REFUSED), [])

    def test_bug(self) -> None:
        """A bug in the hand-over costs one connection and is logged with its traceback."""
        site = self.relay.service.site
        self.patch(type(site), "buildProtocol", lambda *_: 1 / 0)
        peer = self.dial(V1 + BINARY)
        self.assertTrue(peer.gone)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    @examples(60)
    @given(st.lists(st.integers(0, len(V2 + BINARY)), max_size=6), st.booleans())
    def test_any_split(self, cuts: list[int], old: bool) -> None:
        """The outcome does not depend on how header and request are cut into packets."""
        data = (V1 if old else V2) + BINARY
        places = [0, *sorted(cuts), len(data)]
        relay = Relay(self.settings).start()
        peer = relay.tcp(LB)
        for start, end in pairwise(places):
            if start < end:
                peer.send(data[start:end])
        self.assertTrue(peer.received.startswith(b"HTTP/1.1 101 "))
        [claimed] = relay.seen.of(Event.SERVER_CLAIMED)
        self.assertEqual(claimed["remote"], CALLER)

    @examples(150)
    @given(st.binary(max_size=200) | st.builds(lambda tail: SIGNATURE + tail, st.binary()))
    def test_any_bytes(self, data: bytes) -> None:
        """Arbitrary bytes cost their own connection, within the time-outs."""
        relay = Relay(self.settings).start()
        peer = relay.request(data, LB)
        relay.advance(11)
        self.assertTrue(peer.gone)
        self.assertNotIn(b"101", peer.received)
        self.assertEqual(relay.reactor.getDelayedCalls(), [])


class ForwardedTest(WireTest):
    """A listener without PROXY headers, behind proxies of the network 10.0.0.0/8."""

    settings: ClassVar[dict[str, Any]] = {"trusted_proxy": (source("10.0.0.0/8"),)}

    def remote(self, *headers: tuple[bytes, bytes], host: str = LB) -> object:
        """Return the logged address of a claim with these headers."""
        self.relay.seen.clear()
        peer = self.relay.request(
            upgrade_request(b"/v1/server", [*binary_headers(), *headers]), host
        )
        [fields] = self.relay.seen.of(Event.SERVER_CLAIMED)
        peer.reset()
        self.relay.advance(31)
        return fields["remote"]

    def test_from_a_proxy(self) -> None:
        """The caller is the last hop in a trusted proxy's header that is not trusted."""
        self.assertEqual(self.remote(), LB)
        self.assertEqual(self.remote((b"X-Forwarded-For", CALLER.encode())), CALLER)
        self.assertEqual(self.remote((b"x-forwarded-for", b"9.9.9.9, 203.0.113.9")), CALLER)
        self.assertEqual(
            self.remote(
                (b"X-Forwarded-For", b"9.9.9.9"),
                (b"X-Forwarded-For", CALLER.encode()),
                (b"X-Forwarded-For", b"10.3.3.3"),
            ),
            CALLER,
        )
        self.assertEqual(self.remote((b"Forwarded", b'for="[2001:db8::9]:1";by=_a')), "2001:db8::9")

    def test_from_elsewhere(self) -> None:
        """The header counts from trusted proxies only."""
        for name, value in ((b"X-Forwarded-For", b"9.9.9.9"), (b"Forwarded", b"for=9.9.9.9")):
            self.assertEqual(self.remote((name, value), host=CALLER), CALLER)

    def test_malformed(self) -> None:
        """After a malformed chain the proxy counts as the caller."""
        for value in (b"nonsense", b"unknown", b"1.2.3.4.5", b"\xff", b"for=1.2.3.4"):
            self.assertEqual(self.remote((b"X-Forwarded-For", value)), LB)
            self.assertEqual(self.remote((b"Forwarded", value + b"=")), LB)

    def test_on_every_path(self) -> None:
        """A malformed header refuses no request on the other paths."""
        request = HEALTHZ.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: ,,\r\n\r\n")
        self.assertEqual(self.relay.request(request, LB).answer.status, 200)
