"""Addresses: spelling, grouping, trust, and who calls from behind proxies."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.addresses import UNIX, Trusted, caller, canonical, limit_key, source
from tests.unit.bench import Cases, cases, examples

PROXY = "10.0.0.1"
TRUSTED = Trusted([source("10.0.0.0/8"), source("fd00::/8"), source("192.0.2.128/25")])
CLIENT = "203.0.113.9"


def called(
    forwarded_for: Sequence[str] = (), forwarded: Sequence[str] = (), peer: str = PROXY
) -> str:
    """Return who called, by the lines of two headers."""
    encoded = [[line.encode("latin-1") for line in each] for each in (forwarded_for, forwarded)]
    return caller(peer, TRUSTED, *encoded)


def elements(*nodes: str) -> str:
    """Return nodes as the elements of a ``Forwarded`` header."""
    return ", ".join(f'for="{node}"' for node in nodes)


class SpellingTests(Cases):
    @cases(
        {
            "ipv4": ("192.0.2.1", "192.0.2.1"),
            "mapped": ("::ffff:192.0.2.1", "192.0.2.1"),
            "mapped_in_hex": ("::FFFF:c000:201", "192.0.2.1"),
            "ipv6": ("2001:DB8:0::1", "2001:db8::1"),
            "zone": ("fe80::1%eth0", "fe80::1"),
            "unix": (UNIX, UNIX),
            "name": ("somewhere", "somewhere"),
        }
    )
    def test_canonical(self, host: str, spelling: str) -> None:
        """An address has one spelling; what is none stays as it is."""
        self.assertEqual(canonical(host), spelling)

    @cases(
        {
            "ipv4": ("192.0.2.1", "192.0.2.1"),
            "ipv6": ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            "its_neighbour": ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
            "loopback": ("::1", "::/64"),
            "mapped": ("::ffff:192.0.2.1", "192.0.2.1"),
            "unix": (UNIX, UNIX),
            "no_address": ("a:b", "a:b"),
        }
    )
    def test_grouping(self, address: str, key: str) -> None:
        """Limits count an IPv6 address as its /64, and anything else as itself."""
        self.assertEqual(limit_key(address), key)

    @examples(200)
    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
    def test_whole_network(self, address: ipaddress.IPv6Address, host: int) -> None:
        """All addresses of a /64 have one key, which is the network."""
        neighbour = ipaddress.IPv6Address(int(address) >> 64 << 64 | host)
        if address.ipv4_mapped is None and neighbour.ipv4_mapped is None:
            self.assertEqual(limit_key(str(address)), limit_key(str(neighbour)))
            self.assertIn(address, ipaddress.ip_network(limit_key(str(address))))

    @examples(300)
    @given(st.text(max_size=60))
    def test_any_text(self, text: str) -> None:
        """Any text has a spelling, which is its own, and a key."""
        self.assertEqual(canonical(canonical(text)), canonical(text))
        limit_key(text)
        self.assertIsInstance(text in TRUSTED, bool)


class TrustTests(Cases):
    @cases(
        {
            "network": ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            "address": ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            "ipv6": ("fd00::/8", "fdff::1", "fe80::1"),
            "ipv6_address": ("::1", "::1", "::2"),
            "mapped": ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
            "mapped_peer": ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.0.0.1"),
            "all_of_one_family": ("0.0.0.0/0", "192.0.2.1", "2001:db8::1"),
            "all_of_the_other": ("::/0", "2001:db8::1", "192.0.2.1"),
            "unix": (UNIX, UNIX, "127.0.0.1"),
            "not_unix": ("127.0.0.0/8", "127.0.0.1", UNIX),
        }
    )
    def test_source(self, text: str, inside: str, outside: str) -> None:
        """A source is a network, an address or UNIX sockets, and nothing beside it."""
        trusted = Trusted([source(text)])
        self.assertIn(inside, trusted)
        self.assertNotIn(outside, trusted)
        self.assertNotIn(inside, Trusted([]))
        self.assertEqual(source(str(source(text))), source(text))

    @cases(
        {
            "host_bits": ("10.0.0.1/8",),
            "prefix": ("10.0.0.0/33",),
            "zone": ("fe80::1%lo",),
            "name": ("localhost",),
            "empty": ("",),
            "unix_path": ("unix:/run/x",),
            "number": ("1",),
        }
    )
    def test_no_source(self, text: str) -> None:
        """What is none is a `ValueError`."""
        self.assertRaises(ValueError, source, text)


class CallerTests(Cases):
    @cases(
        {
            "one": ((CLIENT,), CLIENT),
            "forged": (("198.51.100.1", CLIENT), CLIENT),
            "past_a_trusted_hop": (("198.51.100.1", CLIENT, "10.9.9.9"), CLIENT),
            "past_many": ((CLIENT, *["10.0.0.2"] * 19), CLIENT),
            "all_trusted": (("10.0.0.3", "10.0.0.2"), "10.0.0.3"),
            "ipv6": (("2001:db8::1", "[fd00::1]"), "2001:db8::1"),
            "port": ((f"{CLIENT}:4711", "10.0.0.2:80"), CLIENT),
            "ipv6_port": (("[2001:DB8::1]:4711",), "2001:db8::1"),
            "mapped": ((f"::ffff:{CLIENT}", "::ffff:10.0.0.2"), CLIENT),
            "garbage_left_of_the_caller": (("never looked at", CLIENT), CLIENT),
            "unknown_left_of_the_caller": (("unknown", CLIENT), CLIENT),
            "garbage": (("nonsense",), PROXY),
            "garbage_behind_a_trusted_hop": (("nonsense", "10.0.0.2"), PROXY),
            "unknown": (("unknown", "10.0.0.2"), PROXY),
            "hidden": (("_hidden",), PROXY),
            "no_ipv4": (("203.0.113.256",), PROXY),
            "leading_zeros": (("203.0.113.09",), PROXY),
            "zone": (("fe80::1%x",), PROXY),
            "open_bracket": (("[2001:db8::1",), PROXY),
            "too_large_a_port": ((f"{CLIENT}:123456",), PROXY),
            "other_digits": (("203.0.113.\xb2",), PROXY),
            "too_long_a_chain": ((CLIENT, *["10.0.0.2"] * 20), PROXY),
        }
    )
    def test_chain(self, nodes: tuple[str, ...], address: str) -> None:
        """The caller is the first from the right that is not trusted; either header says so."""
        self.assertEqual(called([", ".join(nodes)]), address)
        self.assertEqual(called([",".join(nodes)]), address)
        self.assertEqual(called(nodes), address, "a line each")
        if nodes != ("never looked at", CLIENT):
            self.assertEqual(called([], [elements(*nodes)]), address)
            self.assertEqual(called([], [elements(node) for node in nodes]), address)
            self.assertEqual(called(nodes, [elements(*nodes)]), address, "both")

    @cases(
        {
            "bare": (f"for={CLIENT}", CLIENT),
            "capitals": (f"FOR={CLIENT};Proto=https", CLIENT),
            "among_others": (f'by=_x;for={CLIENT};host="a.example:443";proto=https', CLIENT),
            "spaces": (f"by=_x ; for={CLIENT} ; proto=https", CLIENT),
            "empty_pairs": (f";for={CLIENT};", CLIENT),
            "quoted_pairs": (r'for="203.0.113\.\9"', CLIENT),
            "hidden_port": (f'for="{CLIENT}:_secret"', CLIENT),
            "comma_in_quotes": (f'for={CLIENT};host="a,b,c"', CLIENT),
            "for_in_quotes": (f'host="x;for=198.51.100.1;y=";for={CLIENT}', CLIENT),
            "element_in_quotes": (f'for={CLIENT};host="x, for=198.51.100.1"', CLIENT),
            "escaped_quote": (f'for={CLIENT};host="x\\", for=\\"198.51.100.1\\""', CLIENT),
            "quote_left_open": (f'for="198.51.100.1, for={CLIENT}', CLIENT),
            "quote_left_open_before_quotes": (f'for=", for="{CLIENT}"', CLIENT),
            "all_but_one_trusted": (f'for={CLIENT}, for="[fd00::2]:80";by=_x', CLIENT),
            "no_for": ("by=10.0.0.1;proto=https", PROXY),
            "twice": (f"for=198.51.100.1;for={CLIENT}", PROXY),
            "not_a_pair": (CLIENT, PROXY),
            "space_before_equals": (f"for ={CLIENT}", PROXY),
            "bare_port": (f"for={CLIENT}:80", PROXY),
            "bare_ipv6": ("for=[2001:db8::1]", PROXY),
            "quote_never_closed": (f'for="{CLIENT}', PROXY),
            "empty_quotes": ('for=""', PROXY),
            "empty": ("for=", PROXY),
            "only_semicolons": (";;", PROXY),
            "too_long_an_element": (f'for={CLIENT};host="{"x" * 1024}"', PROXY),
            "many_commas_in_quotes": (f'for={CLIENT};host="{"," * 21}"', CLIENT),
        }
    )
    def test_forwarded(self, line: str, address: str) -> None:
        """``Forwarded`` is read by its grammar, which what a caller sent cannot bend."""
        self.assertEqual(called([], [line]), address)

    def test_untrusted(self) -> None:
        """From anybody else the headers say nothing."""
        for peer in ("198.51.100.7", "2001:db8::7", UNIX):
            self.assertEqual(called([CLIENT], [elements(CLIENT)], peer=peer), peer)
            self.assertEqual(called([CLIENT], peer=peer), peer)

    def test_unix(self) -> None:
        """Over a UNIX socket they count when those are trusted."""
        trusted = Trusted([UNIX])
        self.assertEqual(caller(UNIX, trusted, [CLIENT.encode()], []), CLIENT)
        self.assertEqual(caller(UNIX, trusted, [b"unix"], []), UNIX)
        self.assertEqual(caller(UNIX, trusted, [b"?"], []), UNIX)
        self.assertEqual(caller(PROXY, trusted, [CLIENT.encode()], []), PROXY)

    def test_nothing_said(self) -> None:
        """Without the headers, or with empty ones, it is the peer."""
        self.assertEqual(called(), PROXY)
        self.assertEqual(called([""], [" , ,"]), PROXY)
        self.assertEqual(called([" ,\t", f",{CLIENT},"]), CLIENT)

    def test_headers_that_differ(self) -> None:
        """Of two headers with different answers one is the caller's own, so neither counts."""
        self.assertEqual(called([CLIENT], [elements("198.51.100.1")]), PROXY)
        self.assertEqual(called([CLIENT], ["nonsense"]), PROXY)
        self.assertEqual(called(["198.51.100.9, " + CLIENT], [elements(CLIENT)]), CLIENT)

    @examples(300)
    @given(st.lists(st.binary(max_size=80)), st.lists(st.binary(max_size=80)))
    def test_any_bytes(self, forwarded_for: list[bytes], forwarded: list[bytes]) -> None:
        """Whatever the headers hold, the answer is an address in its one spelling."""
        address = caller(PROXY, TRUSTED, forwarded_for, forwarded)
        self.assertEqual(str(ipaddress.ip_address(address)), address)

    @examples(300)
    @given(
        st.text(st.sampled_from('for=",;:[]\\ \t.10') | st.characters(max_codepoint=255)),
        st.ip_addresses(),
        st.booleans(),
    )
    def test_forgery(self, forged: str, address: ipaddress.IPv4Address, separate: bool) -> None:
        """Whatever a caller sends ahead, what the proxy appends decides, in either header."""
        text = canonical(str(address))
        expected = text if text not in TRUSTED else None
        for appended, header in (
            (text, "forwarded_for"),
            (elements(f"[{text}]" if ":" in text else text), "forwarded"),
        ):
            lines = [forged, appended] if separate else [f"{forged}, {appended}"]
            given: dict[str, Any] = {header: lines}
            answer = called(**given)
            if expected is not None:
                self.assertEqual(answer, expected)

    def test_cost(self) -> None:
        """A header of 16 KiB, made to be parsed again and again, is soon given up on."""
        hard = [
            'a="' * 5000,
            ',a=";b="' * 2000,
            "," * 16000,
            'for="' + "\\" * 16000,
            ";" * 16000,
            "a=b;" * 4000,
            f"for={'1' * 16000}",
        ]
        begun = time.process_time()
        for text in hard:
            self.assertTrue(re.fullmatch(r"10\.0\.0\.1", called([text], [text])))
        self.assertLess(time.process_time() - begun, 1)
