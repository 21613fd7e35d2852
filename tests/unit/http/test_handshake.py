"""The opening handshake: which requests are valid, and the response that accepts one."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.http.handshake import HandshakeFault, Headers, find_fault, response
from tests.unit.bench import Cases, cases, examples

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
VALID: dict[bytes, list[bytes]] = {
    b"host": [b"relay.example"],
    b"upgrade": [b"websocket"],
    b"connection": [b"Upgrade"],
    b"sec-websocket-version": [b"13"],
    b"sec-websocket-key": [KEY],
}


def fault(headers: Headers) -> HandshakeFault | None:
    """Return the fault of a GET request by HTTP/1.1 without a body."""
    return find_fault(b"GET", b"HTTP/1.1", headers, has_body=False)


class FaultTests(Cases):
    def test_valid(self) -> None:
        """A request with all that RFC 6455 requires is valid; other headers do not matter."""
        self.assertIsNone(fault(VALID))
        self.assertIsNone(fault({**VALID, b"origin": [b"null"], b"cookie": [b"a", b"b"]}))

    @cases(
        {
            "upgrade_case": (b"upgrade", [b"WebSocket"]),
            "upgrade_list": (b"upgrade", [b"h2c, websocket"]),
            "upgrade_lines": (b"upgrade", [b"h2c", b"websocket"]),
            "connection_case": (b"connection", [b"upgrade"]),
            "connection_list": (b"connection", [b"keep-alive,UPGRADE"]),
            "connection_lines": (b"connection", [b"keep-alive", b" Upgrade "]),
            "host_empty": (b"host", [b""]),
        }
    )
    def test_lenient(self, name: bytes, values: list[bytes]) -> None:
        """Tokens may be in any case, in lists and on several lines."""
        self.assertIsNone(fault({**VALID, name: values}))

    @cases(
        {
            "host": (b"host", HandshakeFault.MALFORMED),
            "upgrade": (b"upgrade", HandshakeFault.UPGRADE_REQUIRED),
            "connection": (b"connection", HandshakeFault.UPGRADE_REQUIRED),
            "version": (b"sec-websocket-version", HandshakeFault.UPGRADE_REQUIRED),
            "key": (b"sec-websocket-key", HandshakeFault.MALFORMED),
        }
    )
    def test_required(self, name: bytes, expected: HandshakeFault) -> None:
        """Each header is required, and those with one value must occur once."""
        without = {each: values for each, values in VALID.items() if each != name}
        self.assertIs(fault(without), expected)
        self.assertIs(fault({**VALID, name: []}), expected)
        if name not in {b"upgrade", b"connection"}:
            self.assertIs(fault({**VALID, name: VALID[name] * 2}), expected)

    @cases(
        {
            "upgrade_substring": (b"upgrade", b"websockets"),
            "connection_substring": (b"connection", b"Upgrades"),
            "connection_separator": (b"connection", b"keep-alive;Upgrade"),
            "version_8": (b"sec-websocket-version", b"8"),
            "version_list": (b"sec-websocket-version", b"13, 8"),
            "version_zero": (b"sec-websocket-version", b"013"),
        }
    )
    def test_upgrade_required(self, name: bytes, value: bytes) -> None:
        """A request for another protocol or version is told what the relay speaks."""
        found = fault({**VALID, name: [value]})
        assert found is HandshakeFault.UPGRADE_REQUIRED
        self.assertEqual(found.status, 426)
        self.assertEqual(found.headers, {b"Upgrade": b"websocket", b"Sec-WebSocket-Version": b"13"})

    @cases({"upgrade": (b"upgrade", b"websocket"), "connection": (b"connection", b"Upgrade")})
    def test_tokens_are_ascii(self, name: bytes, good: bytes) -> None:
        """A byte above 0x7F, UTF-8 or not, is malformed in a list of tokens."""
        for value in (b"\xff", good + b"\xff", b"\xc3\xa9, " + good, b"\x85"):
            for values in ([value], [good, value]):
                self.assertIs(fault({**VALID, name: values}), HandshakeFault.MALFORMED)

    @cases(
        {
            "empty": (b"",),
            "short": (KEY[:-4] + b"==",),
            "long": (b"A" + KEY,),
            "unpadded": (b"A" * 24,),
            "url_alphabet": (b"_-" + KEY[2:],),
            "line_end": (KEY + b"\n",),
        }
    )
    def test_key(self, key: bytes) -> None:
        """A key is 16 bytes in base64."""
        self.assertIs(fault({**VALID, b"sec-websocket-key": [key]}), HandshakeFault.MALFORMED)

    @cases({"post": (b"POST",), "head": (b"HEAD",), "lower_case": (b"get",)})
    def test_method(self, method: bytes) -> None:
        """Only GET opens a WebSocket, which the answer says."""
        found = find_fault(method, b"HTTP/1.1", VALID, has_body=False)
        assert found is HandshakeFault.NOT_GET
        self.assertEqual((found.status, found.headers), (405, {b"Allow": b"GET"}))

    def test_http_version(self) -> None:
        """HTTP/1.0 has no upgrades."""
        found = find_fault(b"GET", b"HTTP/1.0", VALID, has_body=False)
        assert found is HandshakeFault.MALFORMED
        self.assertEqual((found.status, found.headers), (400, None))

    def test_body(self) -> None:
        """A request with a body is refused, because a proxy could disagree on where it ends."""
        found = find_fault(b"GET", b"HTTP/1.1", VALID, has_body=True)
        self.assertIs(found, HandshakeFault.MALFORMED)


class ResponseTests(Cases):
    def test_response(self) -> None:
        """The response to the key of RFC 6455, section 1.3, has that section's accept value."""
        self.assertEqual(
            response(VALID),
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )

    @examples(100)
    @given(st.binary(min_size=16, max_size=16))
    def test_any_key(self, nonce: bytes) -> None:
        """Every base64 of 16 bytes is a valid key; the response does not quote it."""
        key = base64.b64encode(nonce)
        headers = {**VALID, b"sec-websocket-key": [key]}
        self.assertIsNone(fault(headers))
        answer = response(headers)
        self.assertNotIn(key, answer)
        self.assertEqual((answer.count(b"\r\n"), answer[-4:]), (5, b"\r\n\r\n"))
