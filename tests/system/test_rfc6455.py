"""RFC 6455, sections 5 to 7, rule by rule: raw sockets, a real relay, and the exact close code.

Each rule is tried on both legs, in one packet and byte by byte. Behind everything that breaks a
rule stands a good frame, which must not be looked at any more.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import ClassVar, NamedTuple

from tests.peers.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    close_frame,
    frame,
)
from tests.peers.requests import binary_fields, phone_fields
from tests.system.harness import BarePeer, SystemTestCase

CAP = 262_144
ALLOWANCE = 4096
GOOD = b'"good"'


class Broken(NamedTuple):
    """A stream that breaks a rule, and the code that says so."""

    section: str
    stream: bytes
    code: int = 1002


class Kept(NamedTuple):
    """A stream that keeps the rules: the messages in it, and the pongs that it is answered."""

    section: str
    stream: bytes
    messages: tuple[bytes, ...] = ()
    pongs: tuple[bytes, ...] = ()


class Closed(NamedTuple):
    """A close frame, and the code and the reason of the answer."""

    section: str
    stream: bytes
    code: int
    reason: str = ""


BROKEN = {
    # 5.1: a server must close the connection upon receiving a frame that is not masked.
    **{
        f"unmasked_{opcode}": Broken("5.1", frame(opcode, payload, masked=False))
        for opcode, payload in ((TEXT, b"1"), (BINARY, b"1"), (PING, b""), (CLOSE, b"\x03\xe8"))
    },
    "unmasked_continuation": Broken(
        "5.1", frame(TEXT, b'"', fin=False) + frame(CONTINUATION, b'"', masked=False)
    ),
    # 5.2: reserved bits and opcodes, and lengths that are not minimal.
    **{
        f"reserved_bits_{bits}_on_{opcode}": Broken("5.2", frame(opcode, b"", rsv=bits))
        for bits in range(1, 8)
        for opcode in (TEXT, PING)
    },
    **{
        f"reserved_opcode_{opcode}": Broken("5.2", frame(opcode, b"1"))
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "length_of_125_in_two_bytes": Broken("5.2", b"\x81\xfe\0\x7d" + bytes(4) + b"1" * 125),
    "length_of_65535_in_eight": Broken("5.2", b"\x81\xff" + struct.pack("!Q", 65_535) + bytes(4)),
    "length_with_the_top_bit": Broken("5.2", b"\x81\xff" + b"\x80" + bytes(7) + bytes(4)),
    # 5.4: fragments.
    "continuation_of_nothing": Broken("5.4", frame(CONTINUATION, b"1")),
    "open_continuation_of_nothing": Broken("5.4", frame(CONTINUATION, b"1", fin=False)),
    "continuation_after_a_whole_message": Broken(
        "5.4", frame(TEXT, GOOD) + frame(CONTINUATION, b"1")
    ),
    "text_within_a_message": Broken("5.4", frame(TEXT, b'"', fin=False) + frame(TEXT, b'"')),
    "binary_within_a_message": Broken("5.4", frame(TEXT, b'"', fin=False) + frame(BINARY, b'"')),
    # 5.5: control frames are whole, and no longer than 125 bytes.
    **{
        f"fragmented_{opcode}": Broken("5.5", frame(opcode, b"", fin=False))
        for opcode in (CLOSE, PING, PONG)
    },
    **{
        f"long_{opcode}": Broken("5.5", frame(opcode, b"\x03\xe8" + b"x" * 124))
        for opcode in (CLOSE, PING, PONG)
    },
    # 5.5.1 and 7.4: what a close frame may say.
    "close_of_one_byte": Broken("5.5.1", frame(CLOSE, b"\x03")),
    **{
        f"close_{code}": Broken("7.4", close_frame(code))
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "close_reason_no_utf8": Broken("5.5.1", close_frame(1000, b"\xff"), 1007),
    "close_reason_cut": Broken("5.5.1", close_frame(1000, b"ok\xc3"), 1007),
    # 5.6 and 8.1: text is UTF-8, over all its fragments; and fails at the first byte that is not.
    "text_no_utf8": Broken("5.6", frame(TEXT, b'"\xff"'), 1007),
    "text_overlong": Broken("5.6", frame(TEXT, b'"\xc0\xaf"'), 1007),
    "text_surrogate": Broken("5.6", frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "text_beyond_unicode": Broken("5.6", frame(TEXT, b'"\xf4\x90\x80\x80"'), 1007),
    "text_cut": Broken("5.6", frame(TEXT, b'"\xe2\x82'), 1007),
    "text_no_utf8_yet_unfinished": Broken("8.1", frame(TEXT, b'"\xff', fin=False), 1007),
    "text_no_utf8_in_a_fragment": Broken(
        "8.1", frame(TEXT, b'"\xe2', fin=False) + frame(CONTINUATION, b"\x28\xa1"), 1007
    ),
    "binary_no_utf8": Broken("5.6", frame(BINARY, b'"\xff"'), 1007),
    # 7.4.1: a message that is too big to process.
    "too_big": Broken("7.4.1", frame(TEXT, b"", length=CAP + ALLOWANCE + 1), 1009),
    "too_big_by_far": Broken("7.4.1", frame(BINARY, b"", length=2**62), 1009),
    "too_big_in_fragments": Broken(
        "7.4.1",
        frame(TEXT, b'"', fin=False) + frame(CONTINUATION, b"", length=CAP + ALLOWANCE),
        1009,
    ),
}

KEPT = {
    "mask_of_zeros": Kept("5.3", b"\x81\x83" + bytes(4) + b'"0"', (b'"0"',)),
    "mask": Kept("5.3", frame(TEXT, b'"masked"'), (b'"masked"',)),
    "mask_of_a_long_frame": Kept(
        "5.3", frame(TEXT, b'"' + b"m" * 70_001 + b'"'), (b'"' + b"m" * 70_001 + b'"',)
    ),
    "lengths": Kept(
        "5.2",
        b"".join(frame(TEXT, b"1" * size) for size in (1, 125, 126, 127, 65_535, 65_536)),
        tuple(b"1" * size for size in (1, 125, 126, 127, 65_535, 65_536)),
    ),
    "fragments": Kept(
        "5.4",
        frame(TEXT, b'"a', fin=False)
        + frame(CONTINUATION, b"b", fin=False)
        + frame(CONTINUATION, b'c"'),
        (b'"abc"',),
    ),
    "empty_fragments": Kept(
        "5.4",
        frame(TEXT, b"", fin=False)
        + frame(CONTINUATION, b"1", fin=False)
        + frame(CONTINUATION, b""),
        (b"1",),
    ),
    "character_cut_by_fragments": Kept(
        "5.6",
        frame(TEXT, b'"\xe2', fin=False) + frame(CONTINUATION, b'\x82\xac"'),
        ('"€"'.encode(),),
    ),
    "binary_opcode": Kept("5.6", frame(BINARY, b"[1]"), (b"[1]",)),
    "binary_in_fragments": Kept(
        "5.6", frame(BINARY, b"[", fin=False) + frame(CONTINUATION, b"1]"), (b"[1]",)
    ),
    "ping": Kept("5.5.2", frame(PING, b"are you there"), pongs=(b"are you there",)),
    "empty_ping": Kept("5.5.2", frame(PING), pongs=(b"",)),
    "ping_of_125_bytes": Kept("5.5.2", frame(PING, b"p" * 125), pongs=(b"p" * 125,)),
    "ping_within_a_message": Kept(
        "5.4",
        frame(TEXT, b'"a', fin=False) + frame(PING, b"now") + frame(CONTINUATION, b'b"'),
        (b'"ab"',),
        (b"now",),
    ),
    "ping_that_is_no_utf8": Kept("5.5.2", frame(PING, b"\xff\xfe"), pongs=(b"\xff\xfe",)),
    "pong_nobody_asked_for": Kept("5.5.3", frame(PONG, b"hello") + frame(TEXT, b"2"), (b"2",)),
}

CLOSED = {
    "empty": Closed("7.1.5", frame(CLOSE), 1005),
    "reason": Closed("5.5.1", close_frame(1000, "adiós".encode()), 1000, "adiós"),
    "reason_of_123_bytes": Closed("5.5.1", close_frame(4000, b"r" * 123), 4000, "r" * 123),
    **{
        f"code_{code}": Closed("7.4", close_frame(code), code)
        for code in (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)
    },
    "frames_behind_it": Closed("5.5.1", close_frame(1000) + frame(TEXT, GOOD) + frame(3), 1000),
}


class RuleTestCase(SystemTestCase):
    """One relay for all the rules of a class."""

    legs: ClassVar = ("phone", "binary")
    number = 0

    def setUp(self) -> None:
        super().setUp()
        self.running = self.relay()

    def pair(self) -> tuple[BarePeer, BarePeer]:
        """Connect a daemon and a phone of its own."""
        type(self).number += 1
        server_id = f"rule-{self.number}"
        binary = BarePeer(self.running, "/v1/server", binary_fields(server_id))
        return binary, BarePeer(self.running, "/v1/client", phone_fields(server_id))

    def pour(self, peer: BarePeer, stream: bytes, *, dribbling: bool) -> None:
        """Send a stream at once, or byte by byte."""
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(stream)) if dribbling else ():
            peer.send(stream[at : at + 1])
        if not dribbling:
            peer.send(stream)


class BrokenRuleTests(RuleTestCase):
    """What breaks a rule."""

    def test_each(self) -> None:
        """It ends the connection with the code that the rule has, and nothing behind it counts."""
        for name, rule in BROKEN.items():
            for leg in self.legs:
                for dribbling in (False, True):
                    with self.subTest(name=name, leg=leg, dribbling=dribbling):
                        self.check(rule, leg, dribbling=dribbling)

    def check(self, rule: Broken, leg: str, *, dribbling: bool) -> None:
        """Try one rule."""
        binary, phone = self.pair()
        offender = phone if leg == "phone" else binary
        before = frame(TEXT, GOOD) in rule.stream
        with binary, phone:
            self.pour(offender, rule.stream + frame(TEXT, b'"behind"'), dribbling=dribbling)
            self.assertEqual(offender.ending()[0], rule.code)
            if leg == "phone":
                told = [json.loads(payload) for opcode, payload in self.until_notice(binary)]
                self.assertEqual([each.get("frame") for each in told[:-1]], ["good"] * before)
                self.assertEqual(told[-1]["close_code"], rule.code)

    def until_notice(self, binary: BarePeer) -> list[Frame]:
        """Return what a daemon gets, up to the close notice."""
        got = []
        for each in binary.frames():
            got.append(each)
            if b'"close_code"' in each.payload:
                return got
        raise AssertionError(f"the daemon was not told: {got}")


class KeptRuleTests(RuleTestCase):
    """What keeps the rules."""

    def test_each(self) -> None:
        """Its messages are delivered and its pings answered, and the connection goes on."""
        for name, rule in KEPT.items():
            for dribbling in (False, True):
                with self.subTest(name=name, dribbling=dribbling):
                    self.check(rule, dribbling=dribbling and len(rule.stream) < 1000)

    def check(self, rule: Kept, *, dribbling: bool) -> None:
        """Try one rule, as a phone; and close politely."""
        binary, phone = self.pair()
        with binary, phone:
            self.pour(phone, rule.stream + close_frame(1000), dribbling=dribbling)
            came = [*phone.frames()]
            self.assertEqual(came[-1], (CLOSE, b"\x03\xe8"))
            self.assertEqual(came[:-1], [(PONG, pong) for pong in rule.pongs])
            for message, (opcode, payload) in zip(rule.messages, binary.frames(), strict=False):
                self.assertEqual(opcode, TEXT)
                self.assertTrue(payload.endswith(b'"frame":' + message + b"}"), payload[:80])


class ClosingTests(RuleTestCase):
    """Section 7: a close frame is answered with its own code, and the connection ends."""

    def test_each(self) -> None:
        """The answer has the code and the reason; then comes the end, and not by a reset."""
        for name, rule in CLOSED.items():
            for leg in self.legs:
                with self.subTest(name=name, leg=leg):
                    binary, phone = self.pair()
                    with binary, phone:
                        closing = phone if leg == "phone" else binary
                        closing.send(rule.stream)
                        self.assertEqual(closing.ending(), (rule.code, rule.reason))
                        self.assertEqual(closing.sock.recv(1), b"")
