"""Hostile bytes on an open WebSocket (RFC 6455): exact codes, nobody else hurt, no memory kept."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator
from random import Random
from typing import ClassVar

from pyrycode_relay.events import Event
from pyrycode_relay.websocket.frames import PartialFrame
from tests.peers.frames import close_frame, frame
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.wire.harness import Binary, Client, WireTest

GOOD_CODES = (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)
"""Close codes that may stand on the wire. 1014 was registered later than the others."""
BAD_CODES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
"""Close codes that may not."""


def header(first: int, second: int, extended: bytes = b"") -> bytes:
    """Return a masked frame's header made by hand."""
    return bytes([first, 0x80 | second]) + extended + b"\0\0\0\0"


def held_by(connection: object) -> int:
    """Return how many bytes of memory a connection's buffers take."""
    total = 0
    seen: set[int] = set()
    slots = [name for each in type(connection).__mro__ for name in vars(each).get("__slots__", ())]
    todo: list[object] = [*vars(connection).values()]
    todo += [getattr(connection, name) for name in slots if hasattr(connection, name)]
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, bytes | bytearray | str):
            total += sys.getsizeof(each)
        elif isinstance(each, list | tuple):
            total += sys.getsizeof(each)
            todo += each
        elif isinstance(each, PartialFrame):
            todo += [each.payload, each.mask]
    return total


class ViolationTest(WireTest):
    """One violation each."""

    count = 0

    def sides(self) -> Iterator[tuple[Client, Client]]:
        """Yield an attacker and the one that must not notice: a phone's case, a daemon's case."""
        for attacker_is_binary in (False, True):
            type(self).count += 1
            server_id = f"case-{self.count}"
            binary, phone = self.relay.binary(server_id), self.relay.phone(server_id)
            yield (binary, phone) if attacker_is_binary else (phone, binary)
            binary.reset()
            phone.reset()

    def assert_fails(self, data: bytes, code: int, case: str = "") -> None:
        """Check that ``data`` fails the connection with ``code``, and nothing behind it counts."""
        case = case or repr(data[:40])
        for attacker, watcher in self.sides():
            if isinstance(attacker, Binary):
                behind = frame(1, f'{{"conn_id":"{watcher.conn_id}","frame":1}}'.encode())
            else:
                behind = frame(1, b"1")
            attacker.send(data + behind)
            self.assertIsNotNone(attacker.closed, f"{case}: no close frame")
            self.assertEqual((attacker.closed or (0,))[0], code, case)
            self.assertTrue(attacker.gone, case)
            self.assertFalse(attacker.was_reset, case)
            self.assertEqual(
                [each.opcode for each in attacker.frames if each.opcode != 8], [], case
            )
            self.assertIsNone(watcher.closed, case)
            if isinstance(watcher, Binary):
                self.assertEqual(watcher.data_from(attacker), [], case)
                self.assertEqual(watcher.notices, [(attacker.conn_id, code)], case)
            else:
                self.assertEqual(watcher.messages, [], case)

    def test_unmasked(self) -> None:
        """1002: frames without a mask, of every kind."""
        for opcode, payload in ((1, b"1"), (2, b"1"), (9, b""), (10, b""), (8, b"\x03\xe8")):
            self.assert_fails(frame(opcode, payload, masked=False), 1002)

    def test_reserved_bits(self) -> None:
        """1002: any of the three reserved bits, on every kind of frame."""
        for rsv in range(1, 8):
            for opcode in (1, 2, 8, 9, 10):
                self.assert_fails(frame(opcode, b"", rsv=rsv), 1002)

    def test_reserved_opcodes(self) -> None:
        """1002: opcodes that have no meaning."""
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            self.assert_fails(frame(opcode, b""), 1002)
            self.assert_fails(frame(opcode, b"x" * 10), 1002)

    def test_fragmented_control(self) -> None:
        """1002: control frames in fragments."""
        for opcode in (8, 9, 10):
            self.assert_fails(frame(opcode, b"", fin=False), 1002)

    def test_large_control(self) -> None:
        """1002: control frames of more than 125 bytes, by their header alone."""
        for opcode in (8, 9, 10):
            self.assert_fails(frame(opcode, b"\x03\xe8" + b"x" * 124), 1002)
            self.assert_fails(header(0x80 | opcode, 127, b"\x40" + bytes(7)), 1002)

    def test_huge_length(self) -> None:
        """1009: a length of 2^62, and of one byte over the cap, by the header alone."""
        for opcode in (1, 2):
            for size in (1 << 62, (1 << 63) - 1, 1 << 32, 262_144 + 4096 + 1):
                self.assert_fails(header(0x80 | opcode, 127, struct.pack("!Q", size)), 1009)
                self.assert_fails(header(opcode, 127, struct.pack("!Q", size)), 1009)

    def test_huge_length_in_a_fragment(self) -> None:
        """1009: fragments are summed, and the one that would pass the cap is not waited for."""
        start = frame(1, b'"', fin=False)
        self.assert_fails(start + header(0x80, 127, struct.pack("!Q", 1 << 62)), 1009)
        self.assert_fails(start + header(0x00, 127, struct.pack("!Q", 266_240)), 1009)

    def test_length_with_the_top_bit(self) -> None:
        """1002: a length whose most significant bit is set."""
        for size in (1 << 63, (1 << 64) - 1):
            self.assert_fails(header(0x81, 127, struct.pack("!Q", size)), 1002)

    def test_length_not_minimal(self) -> None:
        """1002: a length that would have fitted into fewer bytes."""
        self.assert_fails(header(0x81, 126, b"\0\x01") + b"1", 1002)
        self.assert_fails(header(0x81, 126, b"\0\x7d") + b"1" * 125, 1002)
        self.assert_fails(header(0x81, 127, struct.pack("!Q", 1)) + b"1", 1002)
        self.assert_fails(header(0x81, 127, struct.pack("!Q", 65_535)), 1002)

    def test_one_byte_close(self) -> None:
        """1002: a close frame with half a code."""
        self.assert_fails(frame(8, b"\x03"), 1002)

    def test_bad_close_codes(self) -> None:
        """1002: close codes that may not stand on the wire."""
        for code in BAD_CODES:
            self.assert_fails(close_frame(code), 1002, f"close {code}")

    def test_good_close_codes(self) -> None:
        """Close codes that may stand on the wire are echoed, and told to the daemon."""
        binary = self.relay.binary()
        for code in GOOD_CODES:
            phone = self.relay.phone()
            phone.send(close_frame(code, "adiós".encode()))
            self.assertEqual(phone.closed, (code, "adiós"), str(code))
            self.assertEqual(binary.notices[-1], (phone.conn_id, code))
        self.assertEqual(len(binary.notices), len(GOOD_CODES))

    def test_good_close_code_alone(self) -> None:
        """A close code without a reason is echoed without one."""
        binary = self.relay.binary()
        for code in GOOD_CODES:
            phone = self.relay.phone()
            phone.send(close_frame(code))
            self.assertEqual(phone.closed, (code, ""))
            self.assertEqual(binary.notices[-1], (phone.conn_id, code))

    def test_bad_close_reason(self) -> None:
        """1007: a close reason that is no UTF-8, behind any code; the daemon hears of 1007."""
        for reason in (b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\x80"):
            for code in GOOD_CODES:
                self.assert_fails(close_frame(code, reason), 1007, f"close {code}")
        binary = self.relay.binary("other")
        for code in GOOD_CODES:
            phone = self.relay.phone("other")
            phone.send(close_frame(code, b"\xff"))
            self.assertEqual(binary.notices[-1], (phone.conn_id, 1007), str(code))

    def test_bad_close_code_and_reason(self) -> None:
        """1002: a code that may not stand on the wire, whatever its reason."""
        for code in BAD_CODES:
            self.assert_fails(close_frame(code, b"\xff"), 1002, f"close {code}")

    def test_continuation_without_start(self) -> None:
        """1002: a continuation of nothing, final or not."""
        self.assert_fails(frame(0, b"1"), 1002)
        self.assert_fails(frame(0, b"1", fin=False), 1002)
        for attacker, _ in self.sides():
            attacker.send(frame(1, b"{}", fin=False) + frame(0, b""))
            if attacker.closed is None:
                attacker.send(frame(0, b""))
                self.assertEqual((attacker.closed or (0,))[0], 1002)

    def test_message_inside_a_message(self) -> None:
        """1002: a new message before the last fragment of the one before."""
        for opcode in (1, 2):
            self.assert_fails(frame(1, b'"', fin=False) + frame(opcode, b"1"), 1002)

    def test_invalid_utf8_early(self) -> None:
        """1007 at the first invalid byte of a text message, not only at its end."""
        self.assert_fails(frame(1, b'"\xff', fin=False), 1007)
        for attacker, _ in self.sides():
            attacker.send(frame(1, b'"\xff' + b"x" * 1000)[:20])
            self.assertEqual((attacker.closed or (0,))[0], 1007)

    def test_random_bytes(self) -> None:
        """Bytes by no rule end in one close or none, never in an error or in a frame."""

        source = Random(6455)
        for _ in range(150):
            for attacker, watcher in self.sides():
                attacker.send(source.randbytes(source.randrange(1, 400)))
                self.relay.advance(0)
                self.assertIsNone(watcher.closed)
                if attacker.closed:
                    self.assertIn(attacker.closed[0], {1002, 1007, 1009})
        self.assertEqual(self.log_loud(), [])


class GoneTest(WireTest):
    """A peer that is gone before it is answered."""

    def test_frames_behind_the_request(self) -> None:
        """A peer whose socket fails at the answer, or right after it, costs no error."""
        for works in range(3):
            for tail in (frame(1, b"1"), b"\xff" * 100, frame(9), close_frame(1000)):
                for path, headers in (
                    (b"/v1/client", phone_headers()),
                    (b"/v1/server", binary_headers(f"{works}-{tail.hex()}")),
                ):
                    peer = self.relay.tcp()
                    sends = iter([peer.socket.send] * works)
                    self.patch(
                        peer.socket, "send", lambda data, sends=sends: next(sends, _fail)(data)
                    )
                    peer.send(upgrade_request(path, headers) + tail)
        self.assertEqual(self.log_loud(), [])


def _fail(_: object) -> int:
    raise BrokenPipeError(errno.EPIPE, "gone")


class SecondMistakeTest(WireTest):
    """A peer that goes on misbehaving still hears the first close, and only that."""

    def assert_first(self, data: bytes, close: int, *, later: bytes = b"") -> None:
        """Check that ``data``, in one packet, ends in ``close`` and without a reset."""
        binary, phone = self.relay.pair()
        phone.send(data)
        if later and not phone.gone:
            phone.send(later)
        self.assertIsNotNone(phone.closed, "the close frame was lost")
        self.assertEqual((phone.closed or (0,))[0], close)
        self.assertFalse(phone.was_reset)
        self.assertEqual(binary.notices, [(phone.conn_id, close)])
        self.assertEqual(len(self.relay.seen.of(Event.PHONE_UNREGISTERED)), 1)

    def test_violation_then_violation(self) -> None:
        """A second bad frame behind a first one is not looked at."""
        self.assert_first(frame(3) + frame(1, b"\xff"), 1002)

    def test_bad_close_then_violation(self) -> None:
        """What follows a bad close frame is not looked at."""
        self.assert_first(close_frame(999) + frame(1, b"1", masked=False), 1002)

    def test_bad_close_reason_then_violation(self) -> None:
        """What follows a close frame with a bad reason is not looked at."""
        self.assert_first(close_frame(1000, b"\xff") + frame(3), 1007)

    def test_too_large_and_invalid(self) -> None:
        """The payload of a message that is too large is not looked at."""
        self.assert_first(frame(1, b"\xff" * 1000, length=1 << 20), 1009)

    def test_too_large_then_violation(self) -> None:
        """What follows a message that is too large is not looked at."""
        self.assert_first(frame(1, b"1" * 262_145) + frame(3), 1009)

    def test_not_json_then_violation(self) -> None:
        """A phone closed for its JSON hears that, whatever else is in the packet."""
        self.assert_first(frame(1, b"oops") + frame(3), 1007)

    def test_good_close_then_violation(self) -> None:
        """What follows a close frame is not looked at."""
        self.assert_first(close_frame(4000) + frame(3) + frame(1, b"\xff"), 4000)


class MemoryTest(WireTest):
    """What a hostile peer can make the relay keep."""

    limits: ClassVar = {"max_message_bytes": 4_096}
    allowed = 2 * 65_536 + 4_096 + 20_000
    """Two reads, one message, and the connection itself."""

    def test_after_a_violation(self) -> None:
        """Of what comes after a violation nothing is kept, however much it is."""
        for data in (frame(3), header(0x81, 127, struct.pack("!Q", 1 << 62)), close_frame(999)):
            _, phone = self.relay.pair()
            phone.answers = False
            side = self.relay.server_side(phone)
            phone.send(data)
            for _ in range(40):
                phone.send(b"\x00" * 65_536)
            self.assertLess(held_by(side), self.allowed)
            self.assertEqual(len(phone.socket.inbound), 0)
            self.relay.advance(5.125)
            self.assertTrue(phone.gone)
            self.relay.peers[-2].reset()
            self.relay.advance(31)

    def test_empty_messages(self) -> None:
        """10,000 empty messages are one mistake: one close, one line in the log."""
        binary, phone = self.relay.pair()
        phone.send(frame(1) * 10_000)
        self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))
        self.assertEqual(len(self.relay.seen.of(Event.PHONE_FRAME_REFUSED)), 1)
        self.assertEqual(binary.notices, [(phone.conn_id, 1007)])

    def test_empty_fragments(self) -> None:
        """10,000 empty fragments are legal; a message with them in it is delivered whole."""
        binary, phone = self.relay.pair()
        phone.send(frame(1, b'"a', fin=False) + frame(0, fin=False) * 10_000 + frame(0, b'b"'))
        self.assertEqual(binary.data_from(phone), ["ab"])
        phone.send(frame(1, fin=False) + frame(0, fin=False) * 10_000 + frame(0))
        self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))

    def test_empty_fragments_without_end(self) -> None:
        """Empty fragments without end cost time of the message deadline and no memory."""
        _, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        phone.send(frame(1, fin=False))
        for _ in range(10):
            phone.send(frame(0, fin=False) * 10_000)
        self.assertLess(held_by(side), self.allowed)
        self.relay.advance(30.125)
        self.assertEqual(phone.closed, (1008, "message not completed in time"))

    def test_fragments_of_one_byte(self) -> None:
        """A message in fragments of one byte is bounded by the cap, at an object for each byte."""
        binary, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        phone.send(frame(1, b'"', fin=False) + frame(0, b"x", fin=False) * 4_000)
        self.assertLess(held_by(side), self.allowed + 64 * 4_096)
        phone.send(frame(0, b'"'))
        self.assertEqual(binary.data_from(phone), ["x" * 4_000])
        phone.send(frame(1, b'"', fin=False) + frame(0, b"x", fin=False) * 5_000)
        self.assertEqual((phone.closed or (0,))[0], 1009)

    def test_fragments_in_single_bytes(self) -> None:
        """A message whose payload dribbles in byte by byte keeps no more than itself."""
        binary, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        for byte in frame(1, b'"' + b"x" * 4_000 + b'"'):
            phone.send(bytes([byte]))
        self.assertEqual(binary.data_from(phone), ["x" * 4_000])
        self.assertLess(held_by(side), self.allowed)

    def test_pongs_nobody_asked_for(self) -> None:
        """10,000 pongs are legal, have no answer and leave nothing."""
        binary, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        phone.send(frame(10, b"x" * 125) * 10_000)
        self.assertLess(held_by(side), self.allowed)
        phone.text("1")
        self.assertEqual(binary.data_from(phone), [1])
        self.assertEqual(len(phone.frames), 0)

    def test_pings_of_a_reader(self) -> None:
        """10,000 pings of a peer that reads are answered in order."""
        _, phone = self.relay.pair()
        phone.send(b"".join(frame(9, str(number).encode()) for number in range(10_000)))
        self.assertEqual([int(each.data) for each in phone.frames], list(range(10_000)))
