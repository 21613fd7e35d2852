"""Any byte anywhere in a request: one answer, no 500, and nothing that fills the log."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import example, given
from hypothesis import strategies as st

from pyrycode_relay.addresses import source
from pyrycode_relay.events import Event, LineLimit
from pyrycode_relay.http.paths import PathFault
from pyrycode_relay.http.server import Site
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.unit.bench import examples
from tests.wire.harness import Peer, WireTest

PATHS = (b"/v1/server", b"/v2/server", b"/v1/client", b"/v2/client", b"/healthz", b"/readyz")
ADMIN_PATHS = (b"/", b"/metrics", b"/status.json", b"/status.js")
CHALLENGE = b"/.well-known/acme-challenge/token"
HEADERS = (
    b"Host", b"Upgrade", b"Connection", b"Sec-WebSocket-Version", b"Sec-WebSocket-Key",
    b"Sec-WebSocket-Extensions", b"Sec-WebSocket-Protocol", b"Origin", b"User-Agent",
    b"X-Pyrycode-Server", b"X-Pyrycode-Version", b"X-Pyrycode-Token", b"X-Pyrycode-Device-Name",
    b"X-Forwarded-For", b"Forwarded", b"Authorization", b"Cookie", b"Expect", b"Content-Type",
    b"Content-Length", b"Transfer-Encoding", b"Range", b"If-None-Match", b"Accept-Encoding",
)  # fmt: skip
ODD_BYTES = [bytes([byte]) for byte in (*range(0x21), *b'",;:=\\%', *range(0x7F, 0x100, 9), 0xFF)]
VALUES = (
    b"", b"websocket", b"Upgrade", b"close", b"13", b"relay.example", b"localhost:9090", b"[::1]",
    b"chunked", b"100-continue", b"0", b"99999999999999999999", b"for=192.0.2.1;proto=https",
    b"192.0.2.1, 10.0.0.1", b"Basic aG9tZTpzZWNyZXQ=", b"\xc3\xa9", b"\xff", b"\x85",
)  # fmt: skip
PROXY_HEADER = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n"
STATUSES = {101, 200, 400, 404, 405, 421, 426}
"""Answers to a request. 429 and 503 are for too many requests, and 500 is for a bug."""

few_bytes = st.binary(max_size=6)
values = st.one_of(
    st.sampled_from(VALUES),
    st.binary(max_size=40),
    st.builds(b"%s%s%s".__mod__, st.tuples(few_bytes, st.sampled_from(VALUES), few_bytes)),
)
names = st.one_of(st.sampled_from(HEADERS), st.binary(min_size=1, max_size=8))
lines = st.one_of(
    st.builds(b"%s: %s".__mod__, st.tuples(names, values)),
    st.binary(max_size=30),
)
targets = st.one_of(
    st.sampled_from([*PATHS, *ADMIN_PATHS, CHALLENGE]),
    st.builds(
        b"%s%s%s".__mod__, st.tuples(few_bytes, st.sampled_from([*PATHS, CHALLENGE]), few_bytes)
    ),
    st.builds(b"%s?%s".__mod__, st.tuples(st.sampled_from(PATHS), st.binary(max_size=20))),
    st.binary(max_size=30),
)
methods = st.one_of(st.sampled_from([b"GET", b"HEAD", b"POST", b"PRI"]), few_bytes)
versions = st.one_of(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]), few_bytes)
request_lines = st.one_of(
    st.builds(b"GET %s HTTP/1.1".__mod__, targets),
    st.builds(b"%s %s %s".__mod__, st.tuples(methods, targets, versions)),
    st.binary(max_size=40),
)
assembled = st.builds(
    lambda line, fields, end, tail: end.join([line, *fields]) + end * 2 + tail,
    request_lines,
    st.lists(lines, max_size=6),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]),
    few_bytes,
)
"""Requests of any lines."""

upgrades = st.builds(
    lambda path, change, more: upgrade_request(
        path, [*(binary_headers() if b"server" in path else phone_headers()), *more], change=change
    ),
    st.sampled_from(PATHS[:4]),
    st.dictionaries(st.sampled_from(HEADERS[:5]), st.one_of(st.none(), values), max_size=2),
    st.lists(st.tuples(names, values), max_size=3),
)
"""Valid requests for an upgrade, or nearly valid ones."""


def damaged(request: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """Return a request in which some bytes are replaced."""
    for place, size, instead in damage:
        at = place % (len(request) + 1)
        request = request[:at] + instead + request[at + size :]
    return request


edits = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3), few_bytes), max_size=3)
requests = st.one_of(assembled, upgrades, st.builds(damaged, upgrades, edits))


class BytesTest(WireTest):
    """Sends requests to a relay with all its listeners."""

    settings: ClassVar[dict[str, Any]] = {"admin_listen": "tcp:0:interface=127.0.0.1"}
    host = "192.0.2.7"
    ahead = b""
    """What is sent ahead of each request."""

    def setUp(self) -> None:
        """Start a relay with a challenge on port 80."""
        super().setUp()
        self.relay.service.challenge_site.challenges[CHALLENGE] = b"token.thumbprint"

    def send(self, data: bytes, site: Site | None = None, pieces: int = 1) -> Peer:
        """Send a request in pieces, see what it gets, and go."""
        peer = Peer(self.relay, self.host)
        self.relay._accept(peer, site)
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            peer.send(data[start : start + size])
        self.check(peer, data)
        peer.reset()
        self.relay.peers.remove(peer)
        self.relay.seen.clear()
        return peer

    def check(self, peer: Peer, data: bytes) -> None:
        """See that a request made no 500, no traceback, and only lines of a bounded number."""
        case = repr(data)
        status = peer.answer.status if peer.received else None
        self.assertIn(status, {None, *STATUSES}, case)
        self.assertEqual(self.log_loud(), [], case)
        if status != 101:
            self.assertEqual(self.relay.seen.loud(), [], case)
            self.assertEqual(self.relay.connections(), [], case)
        for event, fields in self.relay.seen.events:
            if event.line_limit is LineLimit.TOTAL:
                self.assertLessEqual({*fields}, {"remote", "path", "err"}, case)
                self.assertIn(fields.get("path", "/healthz").encode(), PATHS, case)
                self.assertIsInstance(fields["err"], PathFault | UpgradeRefusal)

    def try_each_header(self) -> None:
        """Each header with an odd byte in front of its value, in it, and behind it."""
        usual = dict(
            line.split(b": ", 1)
            for line in upgrade_request(b"/", phone_headers()).split(b"\r\n")[1:-2]
        )
        for name in HEADERS:
            good = usual.get(name, b"x")
            others = [(each, value) for each, value in usual.items() if each != name]
            for byte in ODD_BYTES:
                for value in (byte + good, good + byte, good[:2] + byte + good[2:]):
                    fields = [*others, (name, value)]
                    head = b"".join(b"%s: %s\r\n" % field for field in fields)
                    self.send(self.ahead + b"GET /v1/client HTTP/1.1\r\n" + head + b"\r\n")

    def try_upgrade_and_connection(self) -> None:
        """A byte above 0x7F in the lists of the handshake is 400, on either endpoint."""
        for name, good in ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")):
            for value in (b"\xff", good + b"\xff", b"\xff, " + good, good + b", \xc3\xa9"):
                for path, headers in (
                    (b"/v1/client", phone_headers()),
                    (b"/v1/server", binary_headers()),
                ):
                    data = upgrade_request(path, headers, change={name: value})
                    self.assertEqual(self.send(self.ahead + data).answer.status, 400, repr(data))


class PublicTest(BytesTest):
    """The public listener."""

    @examples(400)
    @given(requests, st.sampled_from([1, 1, 2, 50]))
    @example(upgrade_request(b"/v1/client", phone_headers(), change={b"Upgrade": b"\xff"}), 1)
    def test_public(self, data: bytes, pieces: int) -> None:
        """Any request, or anything else."""
        self.send(self.ahead + data, None, pieces)

    def test_each_header(self) -> None:
        """An odd byte in any header."""
        self.try_each_header()

    def test_upgrade_and_connection(self) -> None:
        """A byte above 0x7F in the lists of the handshake."""
        self.try_upgrade_and_connection()


class OtherListenersTest(BytesTest):
    """The operator's listener, and the CA's."""

    @examples(300)
    @given(requests, st.sampled_from([1, 50]))
    def test_any(self, data: bytes, pieces: int) -> None:
        """Any request, or anything else."""
        self.send(data, self.relay.service.admin, pieces)
        self.send(data, self.relay.service.challenge_site, pieces)


class ProxiedTest(BytesTest):
    """The public listener behind a PROXY header, and behind a proxy that names the caller."""

    settings: ClassVar[dict[str, Any]] = {
        **BytesTest.settings,
        "proxy_protocol": True,
        "trusted_proxy": (source("10.0.0.0/8"), source("203.0.113.0/24")),
    }
    host = "10.0.0.1"
    ahead = PROXY_HEADER

    @examples(400)
    @given(requests, st.sampled_from([1, 50]))
    def test_any(self, data: bytes, pieces: int) -> None:
        """Any request behind a good PROXY header, or anything else."""
        self.send(self.ahead + data, None, pieces)

    def test_each_header(self) -> None:
        """An odd byte in any header, those that name the caller included."""
        self.try_each_header()

    def test_upgrade_and_connection(self) -> None:
        """A byte above 0x7F in the lists of the handshake."""
        self.try_upgrade_and_connection()

    @examples(300)
    @given(st.builds(damaged, st.just(PROXY_HEADER), edits), requests)
    def test_header(self, header: bytes, data: bytes) -> None:
        """A damaged PROXY header is one warning of the kind that is limited for each address."""
        peer = self.relay.tcp(self.host)
        peer.send(header + data)
        refused = self.relay.seen.of(Event.PROXY_REFUSED)
        self.assertEqual(self.log_loud(), [])
        if refused:
            self.assertEqual((len(self.relay.seen.events), peer.received), (1, b""))
        else:
            self.check(peer, header + data)
        peer.reset()
        self.relay.seen.clear()
