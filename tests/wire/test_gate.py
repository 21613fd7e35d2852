"""The header gate: which requests get a WebSocket (section 1 of the wire contract)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest

from pyrycode_relay.endpoints.binary import BinaryProtocol
from pyrycode_relay.endpoints.phone import PhoneProtocol
from pyrycode_relay.events import Event
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from tests.peers.frames import frame
from tests.peers.requests import TOKEN, Headers, binary_headers, phone_headers, upgrade_request
from tests.wire.harness import MemoryEpoll, Peer, WireTest

ALL_PATHS = (b"/v1/server", b"/v1/client", b"/v2/server", b"/v2/client")

REQUIRED = {
    b"/v1/server": (b"X-Pyrycode-Server", b"X-Pyrycode-Version", b"User-Agent"),
    b"/v2/server": (b"X-Pyrycode-Server", b"X-Pyrycode-Version", b"User-Agent"),
    b"/v1/client": (b"X-Pyrycode-Server", b"X-Pyrycode-Token", b"User-Agent"),
    b"/v2/client": (b"X-Pyrycode-Server", b"User-Agent"),
}


def good(path: bytes) -> list[tuple[bytes, bytes]]:
    """Return headers that pass the gate of ``path``."""
    return binary_headers() if path.endswith(b"server") else phone_headers()


def replaced(
    headers: list[tuple[bytes, bytes]], name: bytes, value: bytes | None
) -> list[tuple[bytes, bytes]]:
    """Return ``headers`` with one value replaced, or with None, left out."""
    kept = [each for each in headers if each[0] != name]
    return kept if value is None else [*kept, (name, value)]


class GateTest(WireTest):
    """Requests that pass the gates, and requests that do not."""

    def ask(self, path: bytes, headers: Headers) -> Peer:
        """Send an upgrade request."""
        return self.relay.request(upgrade_request(path, headers))

    def assert_refused(self, peer: Peer, case: str) -> None:
        """Check for a bare 400 and the end of the connection, and for nothing else."""
        answer = peer.answer
        self.assertEqual(answer.status, 400, case)
        self.assertEqual(answer.body, b"", case)
        self.assertEqual(answer.headers["content-length"], "0", case)
        self.assertNotIn("server", answer.headers, case)
        self.assertNotIn("x-powered-by", answer.headers, case)
        for word in b"autobahn twisted python traceback pyry courier home".split():
            self.assertNotIn(word, answer.raw.lower(), case)
        self.assertTrue(peer.gone, case)
        self.assertFalse(peer.was_reset, case)
        self.assertEqual(self.relay.counts, (0, 0, 0), case)
        self.assertEqual(self.relay.seen.loud(), [], case)
        self.assertEqual(self.log_loud(), [], case)

    def assert_upgraded(self, peer: Peer, case: str) -> None:
        """Check that the connection has become a WebSocket."""
        self.assertEqual(peer.answer.status, 101, case)
        self.assertFalse(peer.gone, case)

    def test_good_requests_are_upgraded(self) -> None:
        """Each endpoint accepts a request with its required headers."""
        for path in ALL_PATHS:
            headers = good(path)
            if path == b"/v2/client":
                headers = replaced(headers, b"X-Pyrycode-Token", None)
            self.assert_upgraded(self.ask(path, headers), path.decode())

    def test_each_required_header(self) -> None:
        """A required header that is missing, empty or only white space is refused."""
        for path, names in REQUIRED.items():
            for name in names:
                for value in (None, b"", b"   ", b"\t \t"):
                    peer = self.ask(path, replaced(good(path), name, value))
                    self.assert_refused(peer, f"{path!r} with {name!r}: {value!r}")

    def test_refusals_are_counted(self) -> None:
        """A refusal is one event, for the metrics and for the log, and quotes no value."""
        for path in ALL_PATHS:
            self.relay.seen.clear()
            self.ask(path, replaced(good(path), b"User-Agent", None))
            ((event, fields),) = self.relay.seen.events
            self.assertIs(event, Event.REQUEST_REFUSED)
            missing = UpgradeRefusal.NO_USER_AGENT
            expected = {"remote": "192.0.2.7", "path": path.decode(), "err": missing}
            self.assertEqual(fields, expected)

    def test_refused_handshake_takes_the_same_event(self) -> None:
        """A request that fails both gate and handshake is refused by the gate, and counted once."""
        for path, names in REQUIRED.items():
            self.relay.seen.clear()
            headers = replaced(good(path), names[0], None)
            peer = self.relay.request(upgrade_request(path, headers, change={b"Upgrade": None}))
            self.assert_refused(peer, path.decode())
            self.assertEqual([each for each, _ in self.relay.seen.events], [Event.REQUEST_REFUSED])

    def test_header_names_in_any_case(self) -> None:
        """Header names are case-insensitive."""
        for path in ALL_PATHS:
            for change in (bytes.lower, bytes.upper, bytes.swapcase):
                headers = [(change(name), value) for name, value in good(path)]
                peer = self.ask(path, headers)
                self.assert_upgraded(peer, f"{path!r} {change}")
                peer.finish()
                self.relay.advance(60)

    def test_v2_phones_need_no_token(self) -> None:
        """A v2 phone may send any token, an empty one or none."""
        for token in (None, b"", b" ", TOKEN.encode()):
            headers = replaced(phone_headers(), b"X-Pyrycode-Token", token)
            self.assert_upgraded(self.ask(b"/v2/client", headers), repr(token))

    def test_binaries_need_no_token(self) -> None:
        """A binary may send a token, which is ignored."""
        headers = [*binary_headers(), (b"X-Pyrycode-Token", TOKEN.encode())]
        self.assert_upgraded(self.ask(b"/v1/server", headers), "with a token")

    def test_duplicate_routing_headers(self) -> None:
        """A routing header that occurs twice is refused, even with the same value."""
        for path in ALL_PATHS:
            for name, value in good(path):
                for other in (value, b"other", b""):
                    for spelt in (name, name.lower(), name.upper()):
                        peer = self.ask(path, [*good(path), (spelt, other)])
                        self.assert_refused(peer, f"{path!r} {spelt!r}: {other!r}")

    def test_duplicate_device_name(self) -> None:
        """A device name that occurs twice is refused."""
        twice = [(b"X-Pyrycode-Device-Name", b"a"), (b"X-Pyrycode-Device-Name", b"b")]
        self.assert_refused(self.ask(b"/v1/client", [*phone_headers(), *twice]), "device name")

    def test_forbidden_bytes_in_the_server_id(self) -> None:
        """A control byte, DEL or a byte from 0x80 on in a server-id is refused."""
        forbidden = [*range(0x20), *range(0x7F, 0x100)]
        for byte in forbidden:
            if byte in b"\r\n":
                continue
            value = b"ho" + bytes([byte]) + b"me"
            for path in (b"/v1/server", b"/v2/client"):
                peer = self.ask(path, replaced(good(path), b"X-Pyrycode-Server", value))
                self.assert_refused(peer, f"{path!r} {value!r}")

    def test_forbidden_bytes_at_the_edges(self) -> None:
        """A forbidden byte is also refused at a value's edges, where white space is trimmed."""
        forbidden = [*range(0x09), *range(0x0B, 0x0D), *range(0x0E, 0x20), *range(0x7F, 0x100)]
        for name in (b"X-Pyrycode-Server", b"X-Pyrycode-Version"):
            for byte in (bytes([each]) for each in forbidden):
                for value in (byte + b"home", b"home" + byte):
                    peer = self.ask(b"/v1/server", replaced(binary_headers(), name, value))
                    self.assert_refused(peer, f"{name!r}: {value!r}")

    def test_forbidden_bytes_in_the_version(self) -> None:
        """A control byte, DEL or a byte from 0x80 on in a version is refused."""
        for byte in (*range(0x20), *range(0x7F, 0x100)):
            if byte in b"\r\n":
                continue
            value = b"1." + bytes([byte]) + b"2"
            peer = self.ask(b"/v1/server", replaced(binary_headers(), b"X-Pyrycode-Version", value))
            self.assert_refused(peer, repr(value))

    def test_every_printable_byte_is_fine(self) -> None:
        """A server-id may contain any printable ASCII, quotes and backslashes included."""
        server_id = bytes(range(0x21, 0x7F)).decode()
        binary, phone = self.relay.binary(server_id), self.relay.phone(server_id)
        phone.text("1")
        (envelope,) = binary.envelopes
        self.assertTrue(envelope["conn_id"].startswith(f"client-{server_id}-"))
        binary.forward(phone, "2")
        self.assertEqual(phone.messages, [b"2"])

    def test_limits_of_length(self) -> None:
        """A server-id of 256 bytes and other values of 4096 pass; one byte more does not."""
        cases = (
            (b"/v1/server", b"X-Pyrycode-Server", 256),
            (b"/v1/client", b"X-Pyrycode-Server", 256),
            (b"/v2/client", b"X-Pyrycode-Server", 256),
            (b"/v1/server", b"X-Pyrycode-Version", 4096),
            (b"/v1/server", b"User-Agent", 4096),
            (b"/v1/client", b"User-Agent", 4096),
            (b"/v1/client", b"X-Pyrycode-Token", 4096),
            (b"/v2/client", b"X-Pyrycode-Token", 4096),
        )
        for path, name, limit in cases:
            long = self.ask(path, replaced(good(path), name, b"x" * (limit + 1)))
            self.assert_refused(long, f"{path!r} {name!r} too long")
        for path, name, limit in cases:
            fits = self.ask(path, replaced(good(path), name, b"x" * limit))
            self.assert_upgraded(fits, f"{path!r} {name!r} at its limit")

    def test_no_byte_smuggles_a_header_in(self) -> None:
        """A byte that ends a line for some parsers cannot smuggle in a second header."""
        for byte in (b"\x85", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\r", b"\n"):
            for name in (b"User-Agent", b"X-Anything", b"Cookie", b"X-Pyrycode-Token", b"Origin"):
                for path in (b"/v1/client", b"/v1/server"):
                    value = b"a" + byte + b"X-Pyrycode-Server: victim"
                    headers = [
                        *replaced(good(path), name, value),
                    ]
                    peer = self.ask(path, headers)
                    self.assert_refused(peer, f"{name!r}: {value!r}")
                    without = replaced(headers, b"X-Pyrycode-Server", None)
                    self.assert_refused(self.ask(path, without), f"{name!r}: {value!r}, alone")

    def test_no_byte_smuggles_a_header_in_by_the_device_name(self) -> None:
        """A device name, the only free text, cannot smuggle in a header either."""
        for value in (
            b"a\x85X-Pyrycode-Token: t",
            b"\xc3\x85\x85X-Pyrycode-Token: t",
            b"a\x0bX-Pyrycode-Token: t",
            b"a\x0cX-Pyrycode-Token: t",
            b"a\x1cX-Pyrycode-Token: t",
            b"a\x1dX-Pyrycode-Token: t",
            b"a\x1eX-Pyrycode-Token: t",
            b"\xc2\x85X-Pyrycode-Token: t",
            b"\xe2\x80\xa8X-Pyrycode-Token: t",
        ):
            headers = [
                *replaced(phone_headers(), b"X-Pyrycode-Token", None),
                (b"X-Pyrycode-Device-Name", value),
            ]
            self.assert_refused(self.ask(b"/v1/client", headers), repr(value))

    def test_folded_header_is_one_value(self) -> None:
        """A folded header line is one value of one header."""
        headers = replaced(phone_headers(), b"User-Agent", b"a\r\n X-Pyrycode-Server: victim")
        self.assert_upgraded(self.ask(b"/v1/client", headers), "folded")
        (fields,) = self.relay.seen.of(Event.PHONE_REGISTER_NO_SERVER)
        self.assertEqual(fields["server_id"], "home")

    def test_utf8_device_name(self) -> None:
        """A device name may be UTF-8, even if its bytes are controls in latin-1."""
        self.relay.binary()
        for name in ("Åsa", "телефон ю", "📱 phone", "…"):
            self.relay.seen.clear()
            headers = [*phone_headers(), (b"X-Pyrycode-Device-Name", name.encode())]
            self.assert_upgraded(self.ask(b"/v1/client", headers), name)
            (fields,) = self.relay.seen.of(Event.PHONE_REGISTERED)
            self.assertEqual(fields["device_name"], name)

    def test_device_name_is_cleaned(self) -> None:
        """The log gets 128 characters without controls; bytes that are not UTF-8 are replaced."""
        self.relay.binary()
        for raw, shown in (
            (b"a\xffb", "a\ufffdb"),
            ("\u202eevil\u2028x".encode(), "evilx"),
            ("a\u0085b".encode(), "ab"),
            (b"\xc2\x9b31mred", "31mred"),
            (b"", ""),
            (b"n" * 5000, "n" * 128),
            ("å".encode() * 200, "å" * 128),
        ):
            self.relay.seen.clear()
            headers = [*phone_headers(), (b"X-Pyrycode-Device-Name", raw)]
            self.assert_upgraded(self.ask(b"/v1/client", headers), repr(raw))
            (fields,) = self.relay.seen.of(Event.PHONE_REGISTERED)
            self.assertEqual(fields["device_name"], shown)

    def test_origin_is_ignored(self) -> None:
        """The Origin header is ignored."""
        for origin in (b"https://evil.example", b"null", b"", b"not a url", b"file://"):
            for path in ALL_PATHS:
                peer = self.ask(path, [*good(path), (b"Origin", origin)])
                self.assert_upgraded(peer, repr(origin))

    def test_query_string_changes_nothing(self) -> None:
        """A query has no effect, even one that some libraries read headers or redirects from."""
        self.relay.binary()
        query = b"?redirect=http://evil.example&after=0&x-pyrycode-server=victim"
        self.assert_upgraded(self.ask(b"/v1/client" + query, phone_headers()), "query")
        (fields,) = self.relay.seen.of(Event.PHONE_REGISTERED)
        self.assertEqual(fields["server_id"], "home")


class OnceTest(WireTest):
    """The gate is asked once, by the HTTP side, and a refused request leaves nothing behind."""

    def setUp(self) -> None:
        """Record calls of ``onConnect``, places taken and sockets polled."""
        super().setUp()
        self.asked: list[weakref.ref[Any]] = []
        """The protocols whose ``onConnect`` was called."""
        self.before: list[tuple[int, int, int]] = []
        """At each call: waiting channels, connections of the factories, places taken."""
        self.places = 0
        self.polled: list[int] = []
        for kind in (BinaryProtocol, PhoneProtocol):
            self.watch(kind)
        admission = self.relay.service.admission
        enter, register = admission.enter, MemoryEpoll.register

        def entered(*args: Any) -> Any:
            self.places += 1
            return enter(*args)

        def registered(epoll: MemoryEpoll, fd: int, events: int) -> None:
            self.polled.append(fd)
            register(epoll, fd, events)

        self.patch(admission, "enter", entered)
        self.patch(MemoryEpoll, "register", registered)

    def watch(self, kind: type[BinaryProtocol | PhoneProtocol]) -> None:
        original = kind.onConnect

        def watched(connection: Any, request: ConnectionRequest) -> None:
            self.asked.append(weakref.ref(connection))
            service = self.relay.service
            waiting = len(service.site.channels)
            self.before.append((waiting, len(self.relay.connections()), service.admission.total))
            original(connection, request)

        self.patch(kind, "onConnect", watched)

    def break_gates(self, error: Exception) -> None:
        """Make ``onConnect`` raise ``error``."""

        def broken(*_: object) -> None:
            raise error

        for kind in (BinaryProtocol, PhoneProtocol):
            self.patch(kind, "onConnect", broken)
            self.watch(kind)

    def assert_nothing_left(self, peer: Peer, status: int, asked: int) -> None:
        """Check the answer, the calls of ``onConnect``, and that the request left nothing."""
        self.assertEqual((peer.answer.status, peer.answer.body), (status, b""))
        self.assertTrue(peer.gone)
        self.assertEqual(len(self.asked), asked)
        self.assertEqual([each() for each in self.asked], [None] * asked, "an object is left")
        self.assertEqual(self.before, [(1, 0, 0)] * asked)
        self.assertEqual((self.places, self.polled), (0, []))
        self.assertEqual(self.relay.connections(), [])
        self.assertEqual(self.relay.reactor.getDelayedCalls(), [])
        self.asked.clear()
        self.before.clear()

    def assert_refused(self, peer: Peer, status: int, refusal: UpgradeRefusal, asked: int) -> None:
        """Check that a request was refused and reported once, and left nothing."""
        ((event, fields),) = self.relay.seen.events
        self.assertIs(event, Event.REQUEST_REFUSED)
        self.assertIs(fields["err"], refusal)
        self.assert_nothing_left(peer, status, asked)
        self.relay.seen.clear()

    def test_refused(self) -> None:
        """A refusal is reported once, and leaves no object, timer, place or polled socket."""
        # No cycle of references keeps anything until a collection.
        gc.disable()
        self.addCleanup(gc.enable)
        for path in ALL_PATHS:
            headers = good(path)
            faulty = replaced(headers, b"User-Agent", None)
            twice = [*headers, headers[0]]
            for block, change, status, refusal, asked in (
                (faulty, {}, 400, UpgradeRefusal.NO_USER_AGENT, 1),
                (faulty, {b"Upgrade": None}, 400, UpgradeRefusal.NO_USER_AGENT, 1),
                (twice, {}, 400, UpgradeRefusal.REPEATED_HEADER, 0),
                (twice, {b"Upgrade": None}, 400, UpgradeRefusal.REPEATED_HEADER, 0),
                (headers, {b"Upgrade": None}, 426, UpgradeRefusal.NO_HANDSHAKE, 1),
                (headers, {b"Sec-WebSocket-Key": b"x"}, 400, UpgradeRefusal.NO_HANDSHAKE, 1),
            ):
                peer = self.relay.request(upgrade_request(path, block, change=change))
                self.assert_refused(peer, status, refusal, asked)
            peer = self.relay.request(upgrade_request(path, faulty, method=b"POST"))
            self.assert_refused(peer, 400, UpgradeRefusal.NO_USER_AGENT, 1)
            peer = self.relay.request(upgrade_request(path, headers, method=b"POST"))
            self.assert_refused(peer, 405, UpgradeRefusal.NO_HANDSHAKE, 1)

    def test_accepted(self) -> None:
        """For an accepted request the gate is asked once, before it has a place or is polled."""
        for number, path in enumerate(ALL_PATHS):
            peer = self.relay.request(upgrade_request(path, good(path)))
            self.assertEqual(peer.answer.status, 101)
            (connection,) = [each() for each in self.asked]
            self.assertIn(connection, self.relay.connections())
            self.assertEqual(self.before, [(1, number, number)])
            self.assertEqual(self.places, number + 1)
            self.assertEqual(self.polled[-1], peer.socket.fileno())
            self.asked.clear()
            self.before.clear()

    def test_bug(self) -> None:
        """A bug in ``onConnect`` is a bare 500, logged once, and leaves nothing behind."""
        self.break_gates(RuntimeError(TOKEN))
        for path in ALL_PATHS:
            peer = self.relay.request(upgrade_request(path, good(path)))
            self.assertNotIn(TOKEN.encode(), peer.received)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.assertEqual(self.relay.seen.events, [])
            self.assertEqual((len(self.asked), self.places, self.polled), (1, 0, []))
            self.assertEqual(self.relay.reactor.getDelayedCalls(), [])
            self.assertEqual((peer.answer.status, peer.answer.body), (500, b""))
            self.assertTrue(peer.gone)
            self.asked.clear()

    def test_denial_without_a_cause(self) -> None:
        """A denial without a cause is a bug: its status and text are not sent."""
        self.break_gates(ConnectionDeny(403, TOKEN))
        peer = self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.assertEqual((peer.answer.status, peer.answer.body), (500, b""))
        self.assertNotIn(TOKEN.encode(), peer.received)
        self.assertEqual(len(self.flushLoggedErrors(ConnectionDeny)), 1)
        self.assertEqual((self.relay.seen.events, self.places, self.polled), ([], 0, []))


class UpgradeTest(WireTest):
    """The 101 and the first frames."""

    def test_answer_is_bare(self) -> None:
        """The 101 has the headers that RFC 6455 requires, no banner and no negotiation."""
        offers = [
            (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits"),
            (b"Sec-WebSocket-Protocol", b"chat, pyry.v1"),
        ]
        for path in ALL_PATHS:
            peer = self.relay.request(upgrade_request(path, [*good(path), *offers]))
            answer = peer.answer
            self.assertEqual(answer.status, 101)
            self.assertEqual(set(answer.headers), {"upgrade", "connection", "sec-websocket-accept"})
            # The accept for a key of sixteen zero bytes (RFC 6455, section 4.2.2).
            self.assertEqual(answer.headers["sec-websocket-accept"], "ICX+Yqv66kxgM0FcWaLWlFLwTAI=")

    def test_offered_compression_is_not_spoken(self) -> None:
        """A frame with RSV1 set is a violation, even after an offer of compression."""
        self.relay.binary()
        offer = (b"Sec-WebSocket-Extensions", b"permessage-deflate")
        phone = self.relay.client("/v1/client", [*phone_headers(), offer])
        phone.send(frame(1, b"\xaa\x56\x2a\x2f\x2a\x01\x00", rsv=4))
        self.assertEqual((phone.closed or (0,))[0], 1002)

    def test_frames_behind_the_request(self) -> None:
        """Frames in the same packet as the request are served, in order."""
        binary = self.relay.binary()
        phone = self.relay.phone(tail=frame(1, b"1") + frame(1, b"2") + frame(9, b"hi"))
        self.assertEqual(binary.data_from(phone), [1, 2])
        phone.text("3")
        self.assertEqual(binary.data_from(phone), [1, 2, 3])
        self.assertEqual([bytes(each.data) for each in phone.frames], [b"hi"])

    def test_half_a_frame_behind_the_request(self) -> None:
        """A frame that begins in the request's packet and ends in another is served."""
        binary = self.relay.binary()
        whole = frame(1, b'"' + b"x" * 300 + b'"')
        for cut in (1, 2, 3, 5, 8, 100):
            phone = self.relay.phone(tail=whole[:cut])
            phone.send(whole[cut:])
            self.assertEqual(binary.data_from(phone), ["x" * 300], f"cut at {cut}")

    def test_upgrade_behind_another_request(self) -> None:
        """A connection serves one request: an upgrade after a health check is ignored."""
        binary = self.relay.binary()
        self.relay.seen.clear()
        peer = self.relay.request(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
            + upgrade_request(b"/v1/client", phone_headers())
            + frame(1, b'"behind"')
        )
        self.assertEqual(peer.received.count(b"HTTP/1.1"), 1)
        self.assertTrue(peer.gone)
        self.assertEqual(binary.envelopes, [])
        self.assertEqual(self.relay.seen.events, [])

    def test_request_in_single_bytes(self) -> None:
        """A request may arrive byte by byte."""
        peer = self.relay.tcp()
        for byte in upgrade_request(b"/v2/client", phone_headers()):
            peer.send(bytes([byte]))
        self.assertEqual(peer.answer.status, 101)

    def test_token_is_nowhere(self) -> None:
        """A token is in no event, no log line, no envelope and no object of the connection."""
        binary, phone = self.relay.pair()
        phone.text("1")
        binary.forward(phone, "2")
        text = TOKEN
        self.assertNotIn(text, str(self.relay.seen.events))
        self.assertNotIn(text, self.log_text())
        self.assertNotIn(TOKEN.encode(), bytes(binary.received))
        self.assertNotIn(TOKEN.encode(), bytes(phone.received))
        found = list(_texts(self.relay.server_side(phone)))
        self.assertTrue(any("client-home-" in each for each in found), "the walk finds texts")
        self.assertFalse([each for each in found if text in each])


def _texts(root: object) -> list[str]:
    """Return all texts and bytes that are reachable from an object, except through classes."""
    found: list[str] = []
    seen: set[int] = set()
    todo: list[object] = [root]
    while todo and len(seen) < 100_000:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, bytes | bytearray):
            found.append(bytes(each).decode("latin-1"))
        elif isinstance(each, dict):
            todo += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            todo += each
        elif type(each).__module__.startswith(
            ("pyrycode_relay", "autobahn", "twisted.internet.tcp")
        ):
            todo += vars(each).values() if hasattr(each, "__dict__") else []
            for kind in type(each).__mro__:
                todo += [getattr(each, name, None) for name in getattr(kind, "__slots__", ())]
    return found
