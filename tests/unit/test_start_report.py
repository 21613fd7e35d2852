"""What the log says of the listeners at start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from pyrycode_relay.events import Event
from pyrycode_relay.listeners import Listener, Listeners, Purpose
from pyrycode_relay.start_report import report, url
from pyrycode_relay.tls.store import Certificates
from tests.recorder import Recorder
from tests.unit.bench import Cases, cases

HERE = IPv4Address("TCP", "127.0.0.1", 8080)
ALL = IPv6Address("TCP", "::", 443)


class Port:
    """Stands in for a listener at an address."""

    def __init__(self, host: object) -> None:
        self.getHost = lambda: host


class Served:
    """Stands in for certificates."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def __str__(self) -> str:
        return "the certificates"


class UrlTests(Cases):
    @cases(
        {
            "plain": (Purpose.PLAIN, HERE, "ws://127.0.0.1:8080"),
            "plain_port": (Purpose.PLAIN, IPv4Address("TCP", "192.0.2.7", 80), "ws://192.0.2.7"),
            "ipv6": (Purpose.PLAIN, IPv6Address("TCP", "::1", 81), "ws://[::1]:81"),
            "tls_port": (Purpose.TLS, IPv4Address("TCP", "192.0.2.7", 443), "wss://192.0.2.7"),
            "all": (Purpose.TLS, ALL, "wss://relay.example.org"),
            "all_ipv4": (
                Purpose.ADMIN,
                IPv4Address("TCP", "0.0.0.0", 9090),
                "http://relay.example.org:9090",
            ),
            "unix": (Purpose.PLAIN, UNIXAddress("/run/relay"), "ws+unix:/run/relay"),
        }
    )
    def test_url(self, purpose: Purpose, host: object, expected: str) -> None:
        """A URL has the scheme of its listener, and a name instead of a wildcard address."""
        names = ["*.example.org", "relay.example.org"]
        self.assertEqual(url(purpose, host, names), expected)

    def test_no_name(self) -> None:
        """A listener on all addresses of a relay without a name is at localhost."""
        self.assertEqual(url(Purpose.TLS, ALL, ["*.example.org"]), "wss://localhost")


class ReportTests(Cases):
    def told(
        self, purpose: Purpose, host: object, certificates: Served | None, domains: Sequence[str]
    ) -> tuple[Event, dict[str, Any]]:
        """Return what is reported of one listener."""
        listeners = Listeners(lambda *_: cast(Any, Port(host)))
        listeners.open([Listener("", cast(Any, None), purpose)])
        seen = Recorder()
        report(
            seen, listeners, cast(Certificates, certificates), domains, "https://ca.example.org/"
        )
        [(event, fields)] = seen.events
        return event, fields

    @cases(
        {
            "plain": (Purpose.PLAIN, HERE, Event.LISTENING, {"url": "ws://127.0.0.1:8080"}),
            "tls": (
                Purpose.TLS,
                ALL,
                Event.LISTENING,
                {"url": "wss://relay.example.org", "certificates": "the certificates"},
            ),
            "challenges": (
                Purpose.CHALLENGES,
                IPv6Address("TCP", "::", 80),
                Event.ACME_LISTENING,
                {"url": "http://domain.example.org", "authority": "https://ca.example.org/"},
            ),
            "admin": (
                Purpose.ADMIN,
                HERE,
                Event.ADMIN_LISTENING,
                {"listen": "127.0.0.1:8080", "url": "http://127.0.0.1:8080/"},
            ),
        }
    )
    def test_listener(
        self, purpose: Purpose, host: object, event: Event, fields: dict[str, Any]
    ) -> None:
        """Each listener is one event, with its URL and what its purpose adds."""
        domains = ["domain.example.org"] if purpose is Purpose.CHALLENGES else []
        found = self.told(purpose, host, Served("*.example.org", "relay.example.org"), domains)
        self.assertEqual(found, (event, fields))

    def test_domain(self) -> None:
        """A name that the settings give the relay goes before those of its certificates."""
        _, fields = self.told(Purpose.TLS, ALL, Served("a.example.org"), ["b.example.org"])
        self.assertEqual(fields["url"], "wss://b.example.org")
