"""The guard: which addresses a connection may go to whose host a stranger has named."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.push.address_guard import is_public
from tests.unit.bench import Cases, cases, examples

REFUSED_V4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
)
REFUSED_V6 = (
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "4000::/2",
    "fc00::/7",
    "fd00:ec2::254/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)
PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200a",
    "2400::1",
)


def row(text: str) -> str:
    """Return a name for the row of an address or a network."""
    return text.replace("/", "_of_").replace(":", "c").replace(".", "_")


def embedded(address: IPv4Address) -> list[IPv6Address]:
    """Return the IPv6 addresses that lead to an IPv4 one."""
    number = int(address)
    return [
        IPv6Address(number),  # compatible
        IPv6Address((0xFFFF << 32) | number),  # mapped
        IPv6Address((0xFFFF << 48) | number),  # translated
        IPv6Address((0x64FF9B << 96) | number),  # NAT64
        IPv6Address((0x64FF9B0001 << 80) | number),  # NAT64 of one's own
        IPv6Address((0x2002 << 112) | (number << 80) | 1),  # 6to4
        IPv6Address((0x20010000 << 96) | (number << 64) | 1),  # Teredo, the server
        IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)),  # Teredo, the client
    ]


class GuardTests(Cases):
    @cases({row(each): (ip_network(each),) for each in (*REFUSED_V4, *REFUSED_V6)})
    def test_refused(self, network: IPv4Network | IPv6Network) -> None:
        """The first and the last address of each special range are refused, and one between."""
        first, last = int(network[0]), int(network[-1])
        for number in (first, last, (first + last) // 2):
            self.assertFalse(is_public(type(network[0])(number)), network)

    @cases({row(each): (ip_address(each),) for each in PUBLIC})
    def test_public(self, address: IPv4Address | IPv6Address) -> None:
        """Public addresses are allowed, next to special ranges as well."""
        self.assertTrue(is_public(address))

    @given(st.ip_addresses(v=4))
    @examples(500)
    def test_embedded(self, address: IPv4Address) -> None:
        """No IPv6 address that leads to an IPv4 one is allowed, public or not."""
        for each in embedded(address):
            self.assertFalse(is_public(each), each)

    @given(st.one_of(*(st.ip_addresses(network=each) for each in (*REFUSED_V4, *REFUSED_V6))))
    @examples(1000)
    def test_within(self, address: IPv4Address | IPv6Address) -> None:
        """No address of a special range is allowed."""
        self.assertFalse(is_public(address))

    @given(st.ip_addresses())
    @examples(1000)
    def test_never_wider_than_python(self, address: IPv4Address | IPv6Address) -> None:
        """What Python's own table calls private, or worse, is not allowed."""
        if not address.is_global or address.is_private or address.is_multicast:
            self.assertFalse(is_public(address))

    def test_zone(self) -> None:
        """An address with a zone is refused."""
        self.assertFalse(is_public(IPv6Address("2606:4700:4700::1111%eth0")))
