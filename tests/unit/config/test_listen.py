"""Addresses to listen on."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import serverFromString

from pyrycode_relay.config.listen import (
    LISTEN_BACKLOG,
    Reach,
    endpoint_string,
    is_loopback,
    reach,
    socket_reach,
)
from tests.unit.bench import Cases, cases, examples

MACHINE = {
    "ipv4": "127.0.0.1:80",
    "another_ipv4": "127.8.9.1:0",
    "ipv6": "[::1]:9090",
    "unix": "unix:/run/relay/metrics",
    "tcp": "tcp:9090:interface=127.0.0.1",
    "tcp_ipv6": r"tcp6:9090:interface=\:\:1",
}
NETWORK = {
    "every": ":9090",
    "every_ipv4": "0.0.0.0:9090",
    "every_ipv6": "[::]:9090",
    "mapped": "[::ffff:192.0.2.7]:9090",
    "own": "192.0.2.7:9090",
    "tcp": "tcp:9090",
    "tcp6": "tcp6:80",
    "tcp_own": "tcp:9090:interface=192.0.2.7",
    "twice": "tcp:9090:interface=127.0.0.1:interface=192.0.2.7",
    "name": "tcp:80:interface=example.org",
}
UNKNOWN = {
    "localhost": "tcp:80:interface=localhost",
    "haproxy": "haproxy:tcp:80:interface=127.0.0.1",
}


def no_address(*_: object, **__: object) -> None:
    """Stand in for `socket.getaddrinfo` on a machine that knows no name."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class EndpointStringTests(Cases):
    @cases(
        {
            "port": (":8080", "", 8080),
            "ipv4": ("127.0.0.1:8080", "127.0.0.1", 8080),
            "ipv6": ("[::1]:8080", "::1", 8080),
            "any_ipv6": ("[::]:80", "::", 80),
            "any_port": ("127.0.0.1:0", "127.0.0.1", 0),
            "last_port": (":65535", "", 65535),
            "zeros": (":0080", "", 80),
        }
    )
    def test_short_form(self, address: str, interface: str, port: int) -> None:
        """The short form becomes a TCP endpoint with a long backlog.

        A port alone means every address, IPv6 included if the machine has it.
        """
        endpoint = serverFromString(None, endpoint_string(address))
        self.assertIn(endpoint._interface, {interface} if interface else {"::", "0.0.0.0"})
        self.assertEqual((endpoint._port, endpoint._backlog), (port, 1024))
        self.assertEqual(LISTEN_BACKLOG, 1024)

    def test_no_ipv6(self) -> None:
        """On a machine without IPv6, a port alone means every IPv4 address."""

        def no_such_family(family: int) -> None:
            raise OSError(97, "Address family not supported by protocol")

        self.patch(socket, "socket", no_such_family)
        self.assertEqual(endpoint_string(":80"), "tcp:80:interface=0.0.0.0:backlog=1024")

    @cases(
        {
            "tcp": ("tcp:8080",),
            "tcp_interface": ("tcp:8080:interface=127.0.0.1",),
            "unix": ("unix:/run/relay.sock:mode=660",),
        }
    )
    def test_twisteds_own(self, address: str) -> None:
        """A Twisted endpoint string stays as it is."""
        self.assertEqual(endpoint_string(address), address)

    @cases(
        {
            "both": (["::1", "192.0.2.7", "192.0.2.8"], "192.0.2.7"),
            "only_ipv6": (["fd00::7"], r"fd00\:\:7"),
        }
    )
    def test_host_name(self, found: list[str], interface: str) -> None:
        """A name is its first IPv4 address, or its first address if it has no such."""

        def look_up(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
            self.assertEqual(name, "relay-1.example.org")
            families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in found]
            return [(f, 1, 6, "", (each, 0)) for f, each in zip(families, found, strict=True)]

        self.patch(socket, "getaddrinfo", look_up)
        string = endpoint_string("relay-1.example.org:80")
        self.assertEqual(string, f"tcp:80:interface={interface}:backlog=1024")

    def test_unknown_name(self) -> None:
        """A name without an address is refused."""
        self.patch(socket, "getaddrinfo", no_address)
        self.assertRaises(ValueError, endpoint_string, "relay.example.org:80")

    def test_localhost(self) -> None:
        """localhost is the IPv4 loopback."""
        string = endpoint_string("localhost:8080")
        self.assertEqual(string, "tcp:8080:interface=127.0.0.1:backlog=1024")
        self.assertEqual(reach("localhost:8080"), Reach.MACHINE)

    @cases(
        {
            "empty": ("",),
            "bare_port": ("8080",),
            "word": ("here",),
            "name_without_port": ("localhost:",),
            "name_with_high_port": ("localhost:65536",),
            "short_ipv4": ("127.1:80",),
            "ipv4_number": ("0:80",),
            "no_port": ("127.0.0.1:",),
            "no_port_at_all": (":",),
            "port_too_high": (":65536",),
            "huge_port": (":" + "9" * 5000,),
            "negative_port": (":-1",),
            "named_port": (":http",),
            "other_digits": (":٣",),
            "bare_ipv6": ("::1:8080",),
            "broken_ipv6": ("[::g]:8080",),
            "broken_ipv4": ("127.0.0.256:80",),
            "tcp_word": ("tcp:http-or-so",),
            "unknown_kind": ("carrier-pigeon:1",),
            "url": ("http://127.0.0.1:80",),
        }
    )
    def test_no_address(self, address: str) -> None:
        """Anything else is refused."""
        self.assertRaises(ValueError, endpoint_string, address)

    @examples(100)
    @given(st.text(max_size=12))
    def test_any_text(self, address: str) -> None:
        """Any text is an endpoint or a `ValueError`, never another error."""
        self.patch(socket, "getaddrinfo", no_address)
        try:
            string = endpoint_string(address)
        except ValueError:
            return
        serverFromString(None, string)


class ReachTests(Cases):
    @cases({name: (address,) for name, address in MACHINE.items()})
    def test_machine(self, address: str) -> None:
        """Only this machine reaches loopback addresses and UNIX sockets."""
        self.assertIs(reach(address), Reach.MACHINE)

    @cases({name: (address,) for name, address in NETWORK.items()})
    def test_network(self, address: str) -> None:
        """Other machines may reach every other address."""
        self.assertIs(reach(address), Reach.NETWORK)

    @cases({name: (address,) for name, address in UNKNOWN.items()})
    def test_unknown(self, address: str) -> None:
        """The reach of a name that is resolved later, or of a wrapped endpoint, is unknown."""
        self.assertIs(reach(address), Reach.UNKNOWN)

    def test_sockets(self) -> None:
        """The reach of an open socket follows from its address."""
        for host, expected in (
            (IPv4Address("TCP", "127.0.0.1", 80), Reach.MACHINE),
            (IPv6Address("TCP", "::1", 80), Reach.MACHINE),
            (UNIXAddress(b"/run/relay"), Reach.MACHINE),
            (IPv4Address("TCP", "0.0.0.0", 80), Reach.NETWORK),
            (IPv6Address("TCP", "::", 80), Reach.NETWORK),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 80), Reach.NETWORK),
        ):
            self.assertIs(socket_reach(host), expected, host)

    def test_loopback(self) -> None:
        """Only IP addresses are loopback addresses; a name is not."""
        for host in ("127.0.0.1", "127.255.0.3", "::1"):
            self.assertTrue(is_loopback(host), host)
        for host in ("", "localhost", "0.0.0.0", "::", "128.0.0.1", "::2"):
            self.assertFalse(is_loopback(host), host)
