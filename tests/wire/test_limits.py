"""Limits before the upgrade: rates, numbers of connections, and silent connections.

Sections 1 and 5.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from pyrycode_relay.events import Event
from pyrycode_relay.http.admission import RETRY_AFTER, Bound, Enforcement, Leg
from pyrycode_relay.http.relay_site import Readiness
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.wire.harness import Client, Peer, WireTest

CLIENT = b"/v1/client"
HERE, THERE = "192.0.2.7", "198.51.100.9"


class LimitTest(WireTest):
    """A test of refusals before the upgrade."""

    def ask(self, path: bytes = CLIENT, host: str = HERE, **more: Any) -> Peer:
        """Request an upgrade, and return the peer."""
        headers = binary_headers() if path.endswith(b"server") else phone_headers()
        return self.relay.request(upgrade_request(path, more.pop("headers", headers), **more), host)

    def assert_refused(self, peer: Peer, status: int, retry_after: int) -> None:
        """Check that a request was refused with an empty body and a ``Retry-After``."""
        answer = peer.answer
        self.assertEqual((answer.status, answer.body), (status, b""))
        self.assertEqual(answer.headers["retry-after"], str(retry_after))
        self.assertEqual(answer.headers["content-length"], "0")
        self.assertTrue(peer.gone)

    def health(self, host: str = HERE) -> int:
        """Return the status of a health check."""
        return self.relay.request(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", host).answer.status


class RateTest(LimitTest):
    limits: ClassVar[dict[str, Any]] = {"upgrade_rate": 6, "upgrade_burst": 4}

    def test_shared_by_all_paths(self) -> None:
        """The four paths share one rate per address; beyond it the answer is 429 with the wait."""
        for path in (b"/v1/server", b"/v2/server", b"/v1/client", b"/v2/client"):
            self.assertEqual(self.ask(path).answer.status, 101, path)
        for path in (b"/v1/server", b"/v2/server", b"/v1/client", b"/v2/client"):
            self.assert_refused(self.ask(path), 429, 10)
        self.assertEqual(self.ask(host=THERE).answer.status, 101)
        self.relay.advance(9.5)
        self.assert_refused(self.ask(), 429, 1)
        self.relay.advance(0.5)
        self.assertEqual(self.ask().answer.status, 101)

    def test_any_attempt_counts(self) -> None:
        """Requests that fail a later check count, too; requests for other paths do not."""
        for _ in range(10):
            self.relay.request(upgrade_request(b"/nope", phone_headers()))
            self.assertEqual(self.health(), 200)
        self.assertEqual(self.ask(headers=[]).answer.status, 400)
        self.assertEqual(self.ask(method=b"POST").answer.status, 405)
        self.assertEqual(self.ask(change={b"Upgrade": None}).answer.status, 426)
        self.assertEqual(self.ask(change={b"Sec-WebSocket-Key": b"x"}).answer.status, 400)
        self.assertEqual(self.ask().answer.status, 429)

    def test_order(self) -> None:
        """Path and draining come before the rate, and the rate before the header gate."""
        for _ in range(4):
            self.ask(headers=[])
        self.assert_refused(self.ask(headers=[]), 429, 10)
        self.assertEqual(self.relay.request(upgrade_request(b"/nope", [])).answer.status, 404)
        self.relay.service.readiness = Readiness.DRAINING
        self.assertEqual(self.ask().answer.status, 503)
        self.relay.service.readiness = Readiness.READY
        self.assertEqual(self.ask().answer.status, 429)

    def test_never_limited(self) -> None:
        """Health checks have no rate limit."""
        for _ in range(50):
            self.ask()
            self.assertEqual(self.health(), 200)

    def test_told(self) -> None:
        """The event has the address and the path, without the query."""
        for _ in range(5):
            self.ask(b"/v2/client?secret=1")
        told = self.relay.seen.of(Event.RATE_LIMITED)
        self.assertEqual(
            told, [{"remote": HERE, "path": "/v2/client", "enforcement": Enforcement.ENFORCED}]
        )
        self.assertEqual(self.relay.service.admission.denied[Bound.RATE], 1)

    def test_ipv6(self) -> None:
        """IPv6 addresses of a /64 share a rate; a v4-mapped address counts as the IPv4 one."""
        for number in range(4):
            self.assertEqual(self.ask(host=f"2001:db8::{number}").answer.status, 101)
        self.assertEqual(self.ask(host="2001:db8::4").answer.status, 429)
        self.assertEqual(self.ask(host="2001:db8:0:1::4").answer.status, 101)
        for number in range(4):
            self.ask(host=f"::ffff:192.0.2.{7 if number % 2 else 8}")
        self.assertEqual(self.ask(host=HERE).answer.status, 101)
        self.assertEqual(self.ask(host=HERE).answer.status, 101)
        self.assertEqual(self.ask(host=f"::ffff:{HERE}").answer.status, 429)


class NumberTest(LimitTest):
    limits: ClassVar[dict[str, Any]] = {
        "max_connections_per_address": 3,
        "max_connections": 8,
        "reserve_binaries": 0.25,
    }

    def phones(self, count: int, host: str = HERE) -> list[Client]:
        """Connect phones, all of which are upgraded."""
        found = [self.relay.client("/v2/client", phone_headers(), host=host) for _ in range(count)]
        for each in found:
            assert each.response is not None
            self.assertEqual(each.response.status_code, 101)
        return found

    def test_of_an_address(self) -> None:
        """An address that has all its connections gets 503, until one of them is gone."""
        self.relay.binary()
        first, *_ = self.phones(2)
        self.assert_refused(self.ask(), 503, RETRY_AFTER)
        self.assert_refused(self.ask(b"/v1/server"), 503, RETRY_AFTER)
        self.phones(1, THERE)
        first.close()
        self.phones(1)
        self.assertEqual(
            self.relay.seen.of(Event.CONNECTION_CAP_REACHED)[0],
            {
                "remote": HERE,
                "path": "/v1/client",
                "reason": Bound.ADDRESS,
                "enforcement": Enforcement.ENFORCED,
            },
        )

    def test_of_all(self) -> None:
        """Phones cannot take the places reserved for binaries."""
        self.relay.binary()
        for number in range(6):
            self.phones(1, f"192.0.2.{number}")
        self.assert_refused(self.ask(), 503, RETRY_AFTER)
        self.relay.binary("another")
        self.assertEqual(self.relay.counts, (2, 0, 6))
        self.assert_refused(self.ask(b"/v2/server"), 503, RETRY_AFTER)
        self.assertEqual(self.health(), 200)
        bounds = Counter({Bound.RESERVE: 1, Bound.TOTAL: 1})
        self.assertEqual(Counter(self.relay.service.admission.denied), bounds)

    def test_every_end_frees_the_place(self) -> None:
        """A place is free as soon as the socket is gone, however the connection ends."""
        admission = self.relay.service.admission
        self.relay.binary()
        first, second = self.phones(2)
        [third] = self.phones(1, THERE)
        first.reset()
        second.finish()
        self.assertEqual(admission.total, 2)
        third.stop_reading()
        third.close(1000)
        # It has closed, but its socket is there until the deadline of the closing.
        self.assertEqual((admission.total, self.relay.counts), (2, (1, 0, 0)))
        self.relay.advance(10)
        self.assertEqual(admission.total, 1)
        refused = self.ask(b"/v1/client", headers=[(b"X-Pyrycode-Server", b"a" * 300)])
        self.assertEqual((refused.answer.status, admission.total), (400, 1))
        self.relay.client("/v1/client", [(b"X-Pyrycode-Server", b"x")])
        self.assertEqual((admission.total, admission.usage.of_address), (1, {HERE: 1}))

    def test_order(self) -> None:
        """The numbers are checked before the header gate."""
        self.relay.binary()
        self.phones(2)
        self.assert_refused(self.ask(headers=[]), 503, RETRY_AFTER)

    def test_counted_by_kind(self) -> None:
        """Connections are counted by their kind."""
        self.relay.binary()
        self.phones(1)
        self.assertEqual(self.relay.service.admission.open, {Leg.BINARY: 1, Leg.PHONE: 1})


class DryRunTest(LimitTest):
    limits: ClassVar[dict[str, Any]] = {
        "upgrade_rate": 6,
        "upgrade_burst": 2,
        "max_connections": 3,
        "limits_dry_run": True,
    }

    def test_dry_run(self) -> None:
        """A dry run refuses nothing, but counts and reports each denial."""
        for number in range(4):
            self.assertEqual(self.ask().answer.status, 101, number)
        self.assertEqual(self.ask(host=THERE).answer.status, 101)
        denied = self.relay.service.admission.denied
        self.assertEqual((denied[Bound.RATE], denied[Bound.TOTAL]), (2, 1))
        told = self.relay.seen.of(Event.RATE_LIMITED)
        told += self.relay.seen.of(Event.CONNECTION_CAP_REACHED)
        self.assertEqual({each["enforcement"] for each in told}, {Enforcement.DRY_RUN})


class WaitingTest(LimitTest):
    """Connections without a request."""

    limits: ClassVar[dict[str, Any]] = {"max_waiting": 4, "header_timeout": 60.0}

    def test_the_oldest_goes(self) -> None:
        """When too many connections are silent, the oldest is dropped."""
        silent = [self.relay.tcp(f"192.0.2.{number}") for number in range(4)]
        self.assertEqual([each.gone for each in silent], [False] * 4)
        silent.append(self.relay.tcp())
        self.assertEqual([each.gone for each in silent], [True, *[False] * 4])
        self.assertTrue(silent[0].was_reset)
        self.assertEqual(self.relay.service.site.channels.crowded_out, 1)
        [told] = self.relay.seen.of(Event.CONNECTION_CAP_REACHED)
        self.assertEqual(told["remote"], "192.0.2.0")

    def test_a_flood_pays_itself(self) -> None:
        """An address that exceeds its share displaces its own connections."""
        flood = [self.relay.tcp(HERE) for _ in range(4)]
        other = self.relay.tcp(THERE)
        flood += [self.relay.tcp(HERE) for _ in range(20)]
        self.assertEqual((other.gone, sum(each.gone for each in flood)), (False, 21))
        self.assertEqual([each.gone for each in flood[-3:]], [False] * 3)

    def test_who_asks_is_answered(self) -> None:
        """Upgrades and health checks are served, however many connections are silent."""
        for _ in range(20):
            self.relay.tcp()
            self.assertEqual(self.health(THERE), 200)
            self.assertEqual(self.ask(host=THERE).answer.status, 101)

    def test_who_is_connected_stays(self) -> None:
        """Upgraded connections do not count as silent."""
        binary, phone = self.relay.pair()
        for _ in range(20):
            self.relay.tcp()
        phone.text("1")
        self.assertEqual(binary.data_from(phone), [1])
        self.assertEqual(self.relay.service.site.channels.crowded_out, 16)

    def test_half_a_request(self) -> None:
        """A connection with half a request counts as silent, and gets no answer when dropped."""
        halves = [self.relay.request(b"GET /v1/client HTTP/1.1\r\nHost:") for _ in range(6)]
        self.assertEqual([each.gone for each in halves], [True, True, *[False] * 4])
        halves[0].send(b" a\r\n\r\n")
        self.assertEqual(bytes(halves[0].received), b"")
