"""PROXY headers: which bytes are one, which are not, and how soon the parser knows."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.addresses import UNIX, canonical
from pyrycode_relay.http.proxy_protocol import (
    SIGNATURE,
    V2_MAX,
    Header,
    HeaderError,
    ProxyRefusal,
    parse,
)
from tests.unit.bench import Cases, cases, examples

TCP4, UDP4, TCP6, UDP6, STREAM, DATAGRAM = 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
LOCAL, PROXY = 0x20, 0x21
HERE4 = ipaddress.IPv4Address("192.0.2.1")
HERE6 = ipaddress.IPv6Address("2001:db8::1")
V1_LONGEST = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".ljust(105, b" ") + b"\r\n"


def v2(command: int, family: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a version 2 header; ``length`` overrides the announced size of the payload."""
    size = len(payload) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + payload


def tcp4(host: str, port: int, tlvs: bytes = b"") -> bytes:
    """Return the payload for a caller over IPv4."""
    packed = ipaddress.IPv4Address(host).packed
    return packed + HERE4.packed + struct.pack("!HH", port, 443) + tlvs


def tcp6(host: str, port: int, tlvs: bytes = b"") -> bytes:
    """Return the payload for a caller over IPv6."""
    packed = ipaddress.IPv6Address(host).packed
    return packed + HERE6.packed + struct.pack("!HH", port, 443) + tlvs


TLVS = (
    b"\x01\x00\x08http/1.1"  # ALPN
    b"\x02\x00\x0crelay.example"  # authority
    b"\x03\x00\x04\xde\xad\xbe\xef"  # CRC32C
    b"\x04\x00\x03\x00\x00\x00"  # padding
    b"\x20\x00\x05\x01\x00\x00\x00\x00"  # TLS
)

GOOD: dict[str, tuple[bytes, tuple[str, int] | None]] = {
    "v1_tcp4": (b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n", ("203.0.113.9", 56324)),
    "v1_tcp6": (b"PROXY TCP6 2001:DB8::9 ::1 0 65535\r\n", ("2001:db8::9", 0)),
    "v1_unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1_unknown_and_more": (b"PROXY UNKNOWN ffff::1 \xff\n\0 0 ?\r\n", None),
    "v1_longest": (V1_LONGEST, None),
    "v2_tcp4": (v2(PROXY, TCP4, tcp4("203.0.113.9", 1)), ("203.0.113.9", 1)),
    "v2_tcp4_tlvs": (v2(PROXY, TCP4, tcp4("203.0.113.9", 1, TLVS)), ("203.0.113.9", 1)),
    "v2_tlvs_that_are_none": (v2(PROXY, TCP4, tcp4("1.2.3.4", 5, b"\xff" * 9)), ("1.2.3.4", 5)),
    "v2_tcp6": (v2(PROXY, TCP6, tcp6("2001:db8::9", 65535)), ("2001:db8::9", 65535)),
    "v2_mapped": (v2(PROXY, TCP6, tcp6("::ffff:1.2.3.4", 5)), ("1.2.3.4", 5)),
    "v2_unix": (v2(PROXY, STREAM, b"/run/proxy".ljust(216, b"\0")), (UNIX, 0)),
    "v2_longest": (v2(PROXY, TCP4, tcp4("1.2.3.4", 5).ljust(V2_MAX, b"\4")), ("1.2.3.4", 5)),
    "v2_unspecified": (v2(PROXY, 0, b""), None),
    "v2_unspecified_tlvs": (v2(PROXY, 0, TLVS), None),
    "v2_local": (v2(LOCAL, 0, b""), None),
    "v2_local_with_addresses": (v2(LOCAL, TCP4, tcp4("1.2.3.4", 5)), None),
    "v2_local_with_anything": (v2(LOCAL, 0xFF, b"x"), None),
}

BAD: dict[str, tuple[bytes, ProxyRefusal]] = {
    "http": (b"GET / HTTP/1.1\r\n\r\n", ProxyRefusal.ABSENT),
    "tls": (b"\x16\x03\x01\x02\x00\x01", ProxyRefusal.ABSENT),
    "zeros": (b"\0", ProxyRefusal.ABSENT),
    "lower_case": (b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.ABSENT),
    "post": (b"PO", ProxyRefusal.ABSENT),
    "pri": (b"PRI * HTTP/2.0\r\n", ProxyRefusal.ABSENT),
    "space_before": (b" PROXY UNKNOWN\r\n", ProxyRefusal.ABSENT),
    "signature_cut_short": (b"\r\n\r\n\0\r\nQUIT\r", ProxyRefusal.ABSENT),
    "v1_no_end": (b"PROXY TCP4 " + b"1" * 96, ProxyRefusal.ENDLESS),
    "v1_too_long": (b"PROXY UNKNOWN".ljust(106, b" ") + b"\r\n", ProxyRefusal.ENDLESS),
    "v1_only_lf": (b"PROXY UNKNOWN\n" * 9, ProxyRefusal.ENDLESS),
    "v1_nothing": (b"PROXY \r\n", ProxyRefusal.MALFORMED),
    "v1_family": (b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_udp": (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_unknown_word": (b"PROXY UNKNOWNS\r\n", ProxyRefusal.MALFORMED),
    "v1_mixed": (b"PROXY TCP4 ::1 ::1 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_mixed_the_other_way": (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_no_address": (b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_no_address_of_ours": (b"PROXY TCP4 1.2.3.4 1.2.3.400 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_name": (b"PROXY TCP4 localhost 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_no_ports": (b"PROXY TCP4 1.2.3.4 1.2.3.4\r\n", ProxyRefusal.MALFORMED),
    "v1_one_port": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", ProxyRefusal.MALFORMED),
    "v1_three_ports": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", ProxyRefusal.MALFORMED),
    "v1_high_port": (b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", ProxyRefusal.MALFORMED),
    "v1_high_port_of_ours": (b"PROXY TCP4 1.2.3.4 1.2.3.4 2 65536\r\n", ProxyRefusal.MALFORMED),
    "v1_negative_port": (b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_octal_port": (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", ProxyRefusal.MALFORMED),
    "v1_two_spaces": (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_tab": (b"PROXY TCP4\t1.2.3.4 1.2.3.4 1 2\r\n", ProxyRefusal.MALFORMED),
    "v1_space_behind": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", ProxyRefusal.MALFORMED),
    "v1_lf_inside": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n", ProxyRefusal.MALFORMED),
    "v2_version_1": (SIGNATURE + b"\x11\x11\x00\x0c", ProxyRefusal.UNKNOWN_VERSION),
    "v2_version_3": (SIGNATURE + b"\x31\x11\x00\x0c", ProxyRefusal.UNKNOWN_VERSION),
    "v2_command": (SIGNATURE + b"\x22\x11\x00\x0c", ProxyRefusal.UNKNOWN_VERSION),
    "v2_too_long": (v2(PROXY, TCP4, b"", V2_MAX + 1), ProxyRefusal.TOO_LONG),
    "v2_longest_of_all": (v2(PROXY, TCP4, b"", 0xFFFF), ProxyRefusal.TOO_LONG),
    "v2_local_too_long": (v2(LOCAL, 0, b"", 0xFFFF), ProxyRefusal.TOO_LONG),
    "v2_udp4": (v2(PROXY, UDP4, tcp4("1.2.3.4", 5)), ProxyRefusal.NOT_A_STREAM),
    "v2_udp6": (v2(PROXY, UDP6, tcp6("::1", 5)), ProxyRefusal.NOT_A_STREAM),
    "v2_datagrams": (v2(PROXY, DATAGRAM, bytes(216)), ProxyRefusal.NOT_A_STREAM),
    "v2_no_such_family": (v2(PROXY, 0x41, bytes(216)), ProxyRefusal.NOT_A_STREAM),
    "v2_no_transport": (v2(PROXY, 0x10, tcp4("1.2.3.4", 5)), ProxyRefusal.NOT_A_STREAM),
    "v2_short_tcp4": (v2(PROXY, TCP4, b"", 11), ProxyRefusal.MALFORMED),
    "v2_short_tcp6": (v2(PROXY, TCP6, b"", 35), ProxyRefusal.MALFORMED),
    "v2_short_unix": (v2(PROXY, STREAM, b"", 215), ProxyRefusal.MALFORMED),
}

BEHIND = {"nothing": b"", "http": b"GET / HTTP/1.1\r\n\r\n", "another": GOOD["v1_tcp4"][0]}


class ParserTests(Cases):
    @cases(GOOD)
    def test_header(self, data: bytes, source: tuple[str, int] | None) -> None:
        """A header is complete with its last byte, whatever follows."""
        for more in BEHIND.values():
            self.assertEqual(parse(data + more), Header(len(data), source))
            self.assertEqual(parse(bytearray(data + more)), Header(len(data), source))
        for end in range(len(data)):
            self.assertIsNone(parse(data[:end]))

    @cases(BAD)
    def test_no_header(self, data: bytes, refusal: ProxyRefusal) -> None:
        """Data that cannot become a header is refused for a cause, which quotes no byte of it."""
        error = self.assertRaises(HeaderError, parse, data)
        self.assertIs(error.refusal, refusal)
        self.assertEqual(str(error), refusal.value)
        self.assertRaises(HeaderError, parse, data + b"\r\n" * 5000)

    def test_known_early(self) -> None:
        """The first byte that differs decides that data is no header."""
        for good in (b"PROXY ", SIGNATURE):
            for end in range(len(good)):
                wrong = bytes([good[end] ^ 0x80])
                self.assertIsNone(parse(good[:end]))
                self.assertRaises(HeaderError, parse, good[:end] + wrong)

    @examples(500)
    @given(
        st.one_of(
            st.binary(max_size=300),
            st.builds(bytes.__add__, st.just(b"PROXY "), st.binary(max_size=120)),
            st.builds(bytes.__add__, st.just(SIGNATURE), st.binary(max_size=300)),
            st.builds(
                v2,
                st.sampled_from([LOCAL, PROXY]),
                st.integers(0, 255),
                st.binary(max_size=260),
                st.none() | st.integers(0, 300),
            ),
        )
    )
    def test_any_bytes(self, data: bytes) -> None:
        """A verdict is final: no later byte changes it."""
        verdict: Header | str | None = None
        for end in range(len(data) + 1):
            try:
                found: Header | str | None = parse(data[:end])
            except HeaderError as error:
                found = str(error)
            if verdict is not None:
                self.assertEqual(found, verdict, end)
            if isinstance(found, Header):
                self.assertLessEqual(found.size, end)
                self.assertGreater(found.size, end - 1 if verdict is None else 0)
            verdict = found

    @examples(300)
    @given(
        st.ip_addresses(),
        st.integers(0, 65535),
        st.binary(max_size=500),
        st.binary(max_size=50),
        st.booleans(),
    )
    def test_round_trip(
        self,
        host: ipaddress.IPv4Address | ipaddress.IPv6Address,
        port: int,
        tlvs: bytes,
        behind: bytes,
        old: bool,
    ) -> None:
        """The parser returns the announced caller, in either version."""
        here = HERE4 if host.version == 4 else HERE6
        if old:
            header = f"PROXY TCP{host.version} {host} {here} {port} 443\r\n".encode()
        elif host.version == 4:
            header = v2(PROXY, TCP4, tcp4(str(host), port, tlvs))
        else:
            header = v2(PROXY, TCP6, tcp6(str(host), port, tlvs))
        found = parse(header + behind)
        assert found is not None
        assert found.source is not None
        self.assertEqual((found.size, found.source[1]), (len(header), port))
        self.assertEqual(found.source[0], canonical(str(host)))
