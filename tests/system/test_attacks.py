"""Hostile peers: each attack costs its sender something and nobody else anything.

All the time a phone and a binary talk on the same relay; see `bystanders`. And no attack may
leave an error in the log; see `SystemTestCase`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests import needs
from tests.peers.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import eventually
from tests.system.harness import BarePeer, Relay, SystemTestCase, bystanders, dial, read_all

MOST_LINES = 12
"""Lines that the log has of refused requests at most: six at once, then one every ten seconds."""


class AttackTestCase(SystemTestCase):
    """A relay that is attacked while others talk."""

    def attack(self, relay: Relay, attack: Callable[[], None]) -> None:
        """Run ``attack``, which blocks, while others talk; they alone are left afterwards."""

        async def scenario() -> None:
            async with bystanders(relay):
                await asyncio.to_thread(attack)
                await asyncio.to_thread(
                    eventually, "the attackers are forgotten", lambda: relay.counts() == (1, 1)
                )

        self.perform(scenario())

    def phone(self, relay: Relay, server_id: str = "bystander") -> BarePeer:
        """Connect a phone."""
        return BarePeer(relay, "/v1/client", phone_fields(server_id))

    def binary(self, relay: Relay, server_id: str = "target") -> BarePeer:
        """Connect a binary."""
        return BarePeer(relay, "/v1/server", binary_fields(server_id))

    def ends(self, peer: BarePeer, data: bytes, code: int, reason: str | None = None) -> None:
        """See what a peer sends end its connection with a close frame."""
        with peer:
            peer.send(data)
            got = peer.ending()
        self.assertEqual(got[0], code, (data[:60], got))
        if reason is not None:
            self.assertEqual(got[1], reason, data[:60])

    def answer(self, relay: Relay, request: bytes) -> bytes:
        """Return all that comes for a request, which may be cut off before all of it is sent."""
        with dial(relay.address) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(request)
            return read_all(sock)


class MessageTests(AttackTestCase):
    """What a phone may not say."""

    def test_messages_that_are_not_one_json_value(self) -> None:
        """Each is answered 1007, and the binary gets not a byte of it."""
        relay = self.relay("--max-phones=3")
        messages = [
            b'1,"conn_id":"other"',
            b'1},{"conn_id":"other","frame":1',
            b'1}{"conn_id":"other","frame":1}',
            b'{"a":1}}',
            b"1 2",
            b"",
            b" \n",
            b"NaN",
            b"-Infinity",
            b"{'a':1}",
            b"[1,]",
            b"\xef\xbb\xbf1",
            b'"\\x00"',
            b'"\x01"',
            b"nul",
            b"01",
            b'"\\ud800',
            b'"\\ud800",1',
            b"[" * 200_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 40_000,
            b'["\\ud800",' * 20_000,
        ]

        def attack() -> None:
            with self.binary(relay) as server:
                coming = server.frames()
                for opcode in (TEXT, BINARY):
                    for message in messages:
                        self.ends(
                            self.phone(relay, "target"),
                            frame(opcode, message),
                            1007,
                            "frame is not valid JSON",
                        )
                        notice = json.loads(next(coming)[1])
                        self.assertEqual(set(notice), {"conn_id", "close_code"}, message[:60])
                        self.assertEqual(notice["close_code"], 1007)

        self.attack(relay, attack)

    def test_invalid_utf8(self) -> None:
        """Bytes that are not UTF-8 end the connection with 1007, in text and binary messages."""
        relay = self.relay()
        invalid = [
            b'"\xff"',
            b'"\xc0\xaf"',
            b'"\xed\xa0\x80"',
            b'"\xf4\x90\x80\x80"',
            b'"\xe2\x82',
            b'"\x80"',
            b'{"a":"\xc3("}',
        ]

        def attack() -> None:
            for payload in invalid:
                for opcode in (TEXT, BINARY):
                    self.ends(self.phone(relay), frame(opcode, payload), 1007)
                    self.ends(self.binary(relay), frame(opcode, payload), 1007)
            split = frame(TEXT, b'"\xe2\x82', fin=False) + frame(CONTINUATION, b'"')
            self.ends(self.phone(relay), split, 1007)

        self.attack(relay, attack)

    def test_messages_over_the_cap(self) -> None:
        """One byte too much ends it with 1009, in one frame, in many, or only announced."""
        relay = self.relay("--max-message-bytes=1000")
        many = frame(TEXT, b'"', fin=False) + frame(CONTINUATION, b"x" * 100, fin=False) * 10

        def attack() -> None:
            self.ends(self.phone(relay), frame(TEXT, b'"' + b"x" * 999 + b'"'), 1009)
            self.ends(self.phone(relay), many, 1009)
            self.ends(self.phone(relay), frame(TEXT, length=1001), 1009)
            self.ends(self.binary(relay), frame(TEXT, length=1000 + 4096 + 1), 1009)
            for length in (2**31, 2**32 + 5, 2**62, 2**63 - 1):
                self.ends(self.phone(relay), frame(TEXT, length=length), 1009)
                self.ends(self.binary(relay), frame(BINARY, length=length), 1009)

        self.attack(relay, attack)

    def test_a_message_that_is_never_finished(self) -> None:
        """A message begun and not completed in time ends with 1008, whatever was dribbled."""
        relay = self.relay("--message-timeout=1")

        def attack() -> None:
            begun = [
                frame(TEXT, b"1")[:1],
                frame(TEXT, b"1")[:5],
                frame(TEXT, b'"x', fin=False),
                frame(TEXT, b'"x', fin=False) + frame(PING),
                frame(TEXT, b"1") + b"\x81",
            ]
            for make in (self.phone, self.binary):
                with ExitStack() as stack:
                    peers = []
                    for number, data in enumerate(begun):
                        name = "bystander" if make == self.phone else f"target-{number}"
                        peers.append(stack.enter_context(make(relay, name)))
                        peers[-1].send(data)
                    for each in peers:
                        expected = (1008, "message not completed in time")
                        self.assertEqual(each.ending(), expected)

        self.attack(relay, attack)

    def test_a_peer_that_answers_no_ping(self) -> None:
        """Silence after a ping ends a connection with 1011, of a phone or of a binary."""
        relay = self.relay("--heartbeat-interval=1", "--heartbeat-timeout=1")

        def attack() -> None:
            for make in (self.phone, self.binary):
                with make(relay) as silent:
                    self.assertEqual(silent.ending(), (1011, "heartbeat timeout"))

        self.attack(relay, attack)


class FramingTests(AttackTestCase):
    """Frames that RFC 6455 forbids, on both legs."""

    def violations(self) -> Iterator[bytes]:
        """Yield what must end with 1002."""
        yield frame(TEXT, b"1", masked=False)
        yield frame(CLOSE, masked=False)
        for reserved in range(1, 8):
            yield frame(TEXT, b"1", rsv=reserved)
        yield frame(PING, rsv=4)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            yield frame(opcode, b"1")
        for opcode in (CLOSE, PING, PONG):
            yield frame(opcode, b"x" * 126)
            yield frame(opcode, length=2**62)
            yield frame(opcode, b"\x03\xe8", fin=False)
        yield frame(CONTINUATION, b"1")
        yield frame(TEXT, b"1", fin=False) + frame(TEXT, b"1")
        yield frame(CLOSE, b"\x03")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535):
            yield close_frame(code)
        yield bytes([0x81, 0x80 | 126, 0, 5]) + bytes(4) + b"12345"  # lengths not minimal
        yield bytes([0x81, 0x80 | 127]) + (5).to_bytes(8, "big") + bytes(4) + b"12345"
        yield bytes([0x81, 0x80 | 127]) + (2**63 + 1).to_bytes(8, "big") + bytes(4)

    def test_violations(self) -> None:
        """Each ends its connection with 1002, and what comes behind it is not looked at."""
        relay = self.relay()
        behind = frame(TEXT, b"{") + frame(PING, b"are you there?") + os.urandom(100)

        def attack() -> None:
            for data in self.violations():
                self.ends(self.phone(relay), data + behind, 1002)
                self.ends(self.binary(relay), data + behind, 1002)
            bad_reason = frame(CLOSE, b"\x03\xe8\xff\xfe")
            self.ends(self.phone(relay), bad_reason + behind, 1007)

        self.attack(relay, attack)

    def test_the_first_close_wins(self) -> None:
        """A peer that is closed and then breaks a rule is told what it was closed for."""
        relay = self.relay()
        refused = frame(TEXT, b"{")

        def attack() -> None:
            for data in self.violations():
                peer = self.phone(relay)
                self.ends(peer, refused + data, 1007, "frame is not valid JSON")
                goodbye = frame(CLOSE, b"\x0f\xa0")
                self.ends(self.phone(relay), goodbye + data, 4000)
                self.ends(self.binary(relay), goodbye + data, 4000)

        self.attack(relay, attack)

    def test_ten_thousand_empty_frames(self) -> None:
        """Empty fragments, pings and pongs are legal, and cost no more than their time."""
        relay = self.relay()

        def attack() -> None:
            with self.binary(relay) as server, self.phone(relay, "target") as peer:
                peer.send(frame(TEXT, b"[", fin=False))
                peer.send(frame(CONTINUATION, fin=False) * 10_000)
                peer.send(frame(PONG) * 10_000)
                peer.send(frame(CONTINUATION, b"]"))
                self.assertEqual(json.loads(next(server.frames())[1])["frame"], [])
                peer.send(frame(PING) * 10_000 + frame(PING, b"last"))
                pongs = 0
                for opcode, payload in peer.frames():
                    self.assertEqual(opcode, PONG)
                    pongs += 1
                    if payload == b"last":
                        break
                self.assertLessEqual(pongs, 10_001)
            # Empty messages are no JSON: the first ends it.
            self.ends(self.phone(relay), frame(TEXT) * 10_000, 1007, "frame is not valid JSON")

        self.attack(relay, attack)

    def test_pings_of_a_peer_that_does_not_read(self) -> None:
        """Pongs do not pile up for it."""
        relay = self.relay("--write-stall=3")
        before = relay.rss()

        def attack() -> None:
            with self.phone(relay) as deaf:
                deaf.sock.settimeout(1)
                with contextlib.suppress(TimeoutError):
                    for _ in range(300):
                        deaf.send(frame(PING, b"x" * 125) * 1000)
                self.assertLess(relay.peak() - before, 16 * 2**20)

        self.attack(relay, attack)


class BinaryTests(AttackTestCase):
    """A binary that sends what it should not: its connection stays, and nobody else notices."""

    def garbage(self, victim: str) -> Iterator[bytes]:
        """Yield messages that do nothing, ``victim`` being another binary's phone."""
        yield from (b"", b" ", b"garbage", b"[]", b"1", b"null", b'"a"', b"{}", b"{", b"{}{}")
        yield b'{"frame":1}'
        yield b'{"conn_id":"","frame":1}'
        yield b'{"conn_id":1,"frame":1}'
        yield b'{"conn_id":null,"close_code":4000}'
        yield b'{"conn_id":"client-target-00000000","frame":1}'
        yield b'{"conn_id":"\\ud800","frame":1}'
        yield b'{"conn_id":"\\ud800","frame":1,}'
        yield b"[" * 200_000
        yield b'{"conn_id":"a","frame":' + b"[" * 200_000
        yield b'{"push_wake":{"platform":"fcm","token":"t"}}'
        name = json.dumps(victim).encode()
        yield b'{"conn_id":%s,"frame":"not yours"}' % name
        yield b'{"conn_id":%s,"close_code":4000}' % name

    def malformed(self, own: str) -> Iterator[bytes]:
        """Yield malformed envelopes for its own phone ``own``."""
        name = json.dumps(own).encode()
        yield b'{"conn_id":%s}' % name
        yield b'{"conn_id":%s,"frame":null}' % name
        for code in (b"0", b"-1", b"65536", b"1e3", b'"1000"', b"null", b"true", b"9" * 400):
            yield b'{"conn_id":%s,"close_code":%s}' % (name, code)
            yield b'{"conn_id":%s,"close_code":%s,"frame":1}' % (name, code)
        yield b'{"conn_id":%s,"frame":1,' % name
        yield b'{"conn_id":%s,"frame":1} 2' % name
        yield b'{"conn_id":%s,"frame":[1,]}' % name
        yield b'{"conn_id":%s,"frame":%s1}' % (name, b"[" * 200_000)

    def test_malformed_envelopes(self) -> None:
        """None reaches a phone, its own or another binary's, and the connection goes on."""
        relay = self.relay()

        def attack() -> None:
            with (
                self.binary(relay) as server,
                self.binary(relay, "other") as other,
                self.phone(relay, "target") as own,
                self.phone(relay, "other") as victim,
            ):
                coming, answers = server.frames(), own.frames()
                own.send(frame(TEXT, b"1"))
                victim.send(frame(TEXT, b"1"))
                own_id = json.loads(next(coming)[1])["conn_id"]
                victim_id = json.loads(next(other.frames())[1])["conn_id"]
                for message in (*self.garbage(victim_id), *self.malformed(own_id)):
                    for opcode in (TEXT, BINARY):
                        server.send(frame(opcode, message))
                    server.send(frame(PING))
                    self.assertEqual(next(coming)[0], PONG, message[:80])
                server.send(frame(TEXT, json.dumps({"conn_id": own_id, "frame": 7}).encode()))
                self.assertEqual(next(answers), (TEXT, b"7"))
                victim.send(frame(PING, b"still there"))
                self.assertEqual(next(victim.frames()), (PONG, b"still there"))

        self.attack(relay, attack)

    def test_illegal_close_codes(self) -> None:
        """A directive whose code may not stand in a close frame closes its phone with 1000."""
        relay = self.relay()
        illegal = (1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
        legal = (1000, 1001, 1003, 1008, 1011, 1012, 1013, 3000, 4401, 4421, 4426, 4999)

        def attack() -> None:
            with self.binary(relay) as server:
                coming = server.frames()
                for code in (*illegal, *legal):
                    with self.phone(relay, "target") as own:
                        own.send(frame(TEXT, b"1"))
                        # No close notice comes for a phone that the binary has closed.
                        directive = {"conn_id": json.loads(next(coming)[1])["conn_id"]}
                        directive |= {"frame": "last", "close_code": code}
                        server.send(frame(TEXT, json.dumps(directive).encode()))
                        expected = code if code in legal else 1000
                        answers = own.frames()
                        self.assertEqual(next(answers), (TEXT, b'"last"'))
                        self.assertEqual(next(answers), (CLOSE, expected.to_bytes(2, "big")))

        self.attack(relay, attack)

    def test_many_that_read_nothing(self) -> None:
        """What they do not read is within the memory budget: they go for it, and nobody else."""
        relay = self.relay(
            "--memory-budget=1M", "--outbox-bytes=1M", "--send-buffer=8K", "--close-timeout=30"
        )
        number = 12
        message = b'"' + b"x" * 200_000 + b'"'

        def attack() -> None:
            with ExitStack() as stack:
                stalled = []
                for each in range(number):
                    fields = binary_fields(f"slow-{each}")
                    server = BarePeer(relay, "/v1/server", fields, 4096)
                    stalled.append(stack.enter_context(server))
                    handset = stack.enter_context(self.phone(relay, f"slow-{each}"))
                    handset.send(frame(TEXT, message) + frame(PING))
                    self.assertEqual(next(handset.frames())[0], PONG)
                answers: Counter[object] = Counter()
                for server in stalled:
                    server.send(frame(PING))
                    coming = server.frames()
                    self.assertGreater(len(next(coming)[1]), len(message))
                    opcode, payload = next(coming)
                    answers[opcode, payload[2:]] += 1
                self.assertEqual(answers, {(PONG, b""): 5, (CLOSE, b"binary backlog full"): 7})

        self.attack(relay, attack)
        self.assertEqual(relay.log().count(" server_released "), number + 1)
        self.assertNotIn("phone backlog full", relay.log())

    def test_flooding_the_log(self) -> None:
        """10,000 pieces of garbage are a few lines of the log."""
        relay = self.relay()

        def attack() -> None:
            with self.binary(relay) as server:
                for message in (b"garbage", b'{"conn_id":"a","frame":1}', b'{"push_wake":1}'):
                    server.send(frame(TEXT, message) * 10_000)
                server.send(frame(PING, b"all seen"))
                self.assertEqual(next(server.frames()), (PONG, b"all seen"))

        self.attack(relay, attack)
        for event in ("binary_envelope_refused", "binary_unknown_conn_id", "push_wake_dropped"):
            lines = relay.log().count(f" {event} ")
            self.assertTrue(1 <= lines <= 50, f"{lines} lines of {event}")

    def test_server_ids_with_quotes_and_backslashes(self) -> None:
        """Ids that look like JSON, paths or formats are only names: they route, and no more."""
        relay = self.relay()
        names = [
            'a"b\\c',
            '","frame":"forged","x":"',
            'x","close_code":4000}',
            "\\",
            '\\"',
            "\\u0041",
            "{}%s%n{conn_id}",
            "../../etc/passwd",
            "a, b",
            "-",
            "'; --",
            '"' * 256,
        ]

        def attack() -> None:
            for name in names:
                with self.binary(relay, name) as server, self.phone(relay, name) as own:
                    own.send(frame(TEXT, b'{"to": "you"}'))
                    opcode, payload = next(server.frames())
                    envelope = json.loads(payload)
                    self.assertEqual(set(envelope), {"conn_id", "frame"}, name)
                    self.assertRegex(envelope["conn_id"][-9:], r"\A-[0-9a-f]{8}\Z")
                    self.assertEqual(envelope["conn_id"][:-9], f"client-{name}")
                    self.assertTrue(payload.endswith(b',"frame":{"to": "you"}}'), payload)
                    server.send(frame(opcode, payload))
                    self.assertEqual(next(own.frames()), (TEXT, b'{"to": "you"}'))

        self.attack(relay, attack)


class RequestTests(AttackTestCase):
    """What comes instead of a proper request."""

    def test_headers_that_hide_something(self) -> None:
        """Control bytes, line ends of other worlds and double routing headers are refused: 400."""
        relay = self.relay()
        fields = phone_fields("bystander")
        plain = upgrade_request("/v1/client", fields)[:-2]
        hidden = [
            b"X-Note: a%sb\r\n" % bytes([byte])
            for byte in (*range(1, 9), 11, 12, *range(14, 32), 127, 0x85)
        ]
        hidden += [
            b"X-Pyrycode-Device-Name: a\x85X-Pyrycode-Server: victim\r\n",
            b"X-Pyrycode-Device-Name: a\x0bX-Pyrycode-Server: victim\r\n",
            b"X-Note: a\x00b\r\n",
        ]
        hidden += [
            name + b": bystander\r\n"
            for name in (
                b"X-Pyrycode-Server",
                b"x-pyrycode-server",
                b"X-PYRYCODE-TOKEN",
                b"User-Agent",
                b"X-Pyrycode-Version: 1\r\nX-Pyrycode-Version",
            )
        ]

        def attack() -> None:
            for line in hidden:
                answer = self.answer(relay, plain + line + b"\r\n")
                self.refused(answer, line)
            for name in ("", " ", "\t", "x" * 257, "a\N{DEGREE SIGN}", "a\tb", "a\x7fb"):
                for path, more in (
                    ("/v1/client", phone_fields("-")),
                    ("/v2/client", phone_fields("-")),
                    ("/v1/server", binary_fields("-")),
                ):
                    request = upgrade_request(path, {**more, "X-Pyrycode-Server": name})
                    self.refused(self.answer(relay, request), name.encode())

        self.attack(relay, attack)
        refused = [line for line in relay.log().splitlines() if " request_refused " in line]
        self.assertLessEqual(len(refused), MOST_LINES)
        self.assertEqual(
            relay.log().count("\n") - len(refused),
            3 + 4,
            "the start, claimed, registered, and their ends",
        )

    def refused(self, answer: bytes, what: bytes) -> None:
        """See that the answer is a bare 400."""
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 400 "), (what, answer))
        self.assertEqual(body, b"", what)
        self.assertNotRegex(head.lower(), rb"autobahn|twisted|python|server:|pyrycode")

    def test_a_mebibyte_of_headers(self) -> None:
        """It is cut off long before its end, in one line or in many, and costs no memory."""
        relay = self.relay()
        before = relay.rss()
        start = upgrade_request("/v1/client", phone_fields("bystander"))[:-2]
        blocks = [
            b"X-Note: " + b"x" * 2**20,
            b"X-Note: x\r\n" * (2**20 // 11),
            b"X-Note: x\r\n " + b" folded\r\n" * (2**20 // 9),
            b"x" * 2**20,
            b"X-Pyrycode-Token: " + b"x" * 2**20,
        ]

        def attack() -> None:
            for block in (*(start + each for each in blocks), b"GET /" + b"x" * 2**20):
                answer = self.answer(relay, block + b"\r\n\r\n")
                self.assertNotIn(b" 101 ", answer)
            self.assertLess(relay.peak() - before, 8 * 2**20)

        self.attack(relay, attack)

    def test_half_requests(self) -> None:
        """A request that is not complete in time costs its sender the connection."""
        relay = self.relay("--header-timeout=1")
        whole = upgrade_request("/v1/client", phone_fields("bystander"))
        beginnings = [whole[:cut] for cut in (0, 1, 4, 20, 60, len(whole) - 2, len(whole) - 1)]
        beginnings.append(b"GET /healthz HTTP/1.1\r\n")

        def attack() -> None:
            with ExitStack() as stack:
                socks = [stack.enter_context(dial(relay.address)) for _ in beginnings * 10]
                for sock, data in zip(socks, beginnings * 10, strict=True):
                    sock.sendall(data)
                for sock in socks:
                    self.assertNotIn(b" 101 ", read_all(sock))

        self.attack(relay, attack)

    def test_headers_that_dribble(self) -> None:
        """A byte now and again does not put off the end."""
        relay = self.relay("--header-timeout=1")

        def attack() -> None:
            with dial(relay.address) as sock:
                sock.sendall(b"GET /v1/client HTTP/1.1\r\nX: ")
                sock.settimeout(0.1)
                for _ in range(100):
                    with contextlib.suppress(TimeoutError):
                        try:
                            sock.sendall(b"x")
                            self.assertEqual(sock.recv(100), b"")
                        except ConnectionError:
                            return
                        return
                self.fail("still open after ten times the time that a request may take")

        self.attack(relay, attack)

    def test_five_hundred_garbage_connections(self) -> None:
        """They get nothing, leave nothing behind, and write nothing into the log."""
        needs.descriptors(1024)
        relay = self.relay("--header-timeout=2", "--close-timeout=2")
        chance = random.Random(2455)
        descriptors = Path(f"/proc/{relay.pid}/fd")
        before = len(list(descriptors.iterdir()))
        kinds = [
            b"",
            b"\r\n" * 50,
            bytes(1000),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET /v1/client HTTP/9.9\r\n\r\n",
            b"CONNECT example:443 HTTP/1.1\r\n\r\n",
            b"POST /v1/client HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
            + b"x" * 999,
            b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"GET http://[::1/v1/client HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /%00%ff?\xff HTTP/1.1\r\nHost: \xff\r\n\r\n",
            b": x\r\n\r\n",
            chance.randbytes(2000),
        ]

        def attack() -> None:
            with ExitStack() as stack:
                socks = []
                for number in range(500):
                    sock = stack.enter_context(dial(relay.address))
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(kinds[number % len(kinds)])
                    if number % 3 == 0:
                        # Closing resets the connection.
                        option = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                        sock.close()
                    else:
                        socks.append(sock)
                for sock in socks:
                    answer = read_all(sock)
                    self.assertNotIn(b" 101 ", answer)
                    self.assertNotRegex(answer.lower(), rb"autobahn|twisted|python|server:")
            eventually(
                "all sockets are closed",
                lambda: len(list(descriptors.iterdir())) <= before + 2,
            )

        self.attack(relay, attack)
        events = [line.split()[2] for line in relay.log().splitlines()]
        limited = [each for each in events if each in {"path_unknown", "request_refused"}]
        self.assertLessEqual(len(limited), 2 * MOST_LINES)
        self.assertEqual(
            sorted({*events} - {*limited, "phone_unregistered", "server_released"}),
            ["listening", "phone_registered", "ready", "server_claimed", "starting"],
        )
        self.assertLessEqual(len(events) - len(limited), 7)

    def test_frames_right_behind_the_request(self) -> None:
        """What comes in the same packet as the request is held to the same rules."""
        relay = self.relay("--close-timeout=1")
        request = upgrade_request("/v1/client", phone_fields("bystander"))
        cases = [
            (frame(TEXT, b"{"), b"\x03\xef" + b"frame is not valid JSON"),
            (frame(TEXT, b"1", masked=False), b"\x03\xea"),
            (frame(TEXT, length=2**62), b"\x03\xf1"),
            (frame(CLOSE, b"\x0f\xa0"), b"\x0f\xa0"),
        ]

        def attack() -> None:
            for data, closing in cases:
                answer = self.answer(relay, request + data)
                head, _, rest = answer.partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 101 "), answer)
                self.assertEqual(rest[0], 0x80 | CLOSE, rest)
                self.assertTrue(rest[2:].startswith(closing), rest)

        self.attack(relay, attack)
