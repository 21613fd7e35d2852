"""Frames against another implementation of RFC 6455, that of the ``websockets`` library."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from tests.peers import frames
from tests.peers.frames import CLOSE, NO_STATUS, PING, TEXT
from tests.peers.reference import read_frame
from tests.unit.bench import Cases, cases, examples

SIZES = {str(size): (size,) for size in (0, 1, 125, 126, 127, 65_535, 65_536)}


class EncoderTests(Cases):
    @cases(SIZES)
    def test_sizes(self, size: int) -> None:
        """Another implementation reads what is written, at each change of the header."""
        payload = bytes(index & 0xFF for index in range(size))
        self.assertEqual(read_frame(frames.frame(TEXT, payload)), Frame(Opcode.TEXT, payload))

    @examples(50)
    @given(st.sampled_from([0, 1, 2]), st.binary(max_size=300), st.booleans(), st.booleans())
    def test_any(self, opcode: int, payload: bytes, fin: bool, masked: bool) -> None:
        """So it does with fragments, and with frames without a mask."""
        data = frames.frame(opcode, payload, fin=fin, masked=masked)
        self.assertEqual(read_frame(data, masked=masked), Frame(Opcode(opcode), payload, fin))

    def test_masked(self) -> None:
        """A mask changes the payload, and a second time changes it back."""
        masked = b"\x7f\x9f\x4d\x51\x58"
        self.assertEqual(frames.mask(b"Hello"), masked)
        self.assertEqual(frames.mask(masked), b"Hello")
        self.assertEqual(frames.frame(TEXT, b"Hello"), b"\x81\x85\x37\xfa\x21\x3d" + masked)

    def test_wrong(self) -> None:
        """Reserved bits and opcodes, and a length that is not the payload's, are as given."""
        self.assertEqual(frames.frame(15, rsv=7, fin=False)[:2], b"\x7f\x80")
        self.assertEqual(frames.frame(PING, b"1", length=2**63)[:10], b"\x89\xff\x80" + bytes(7))

    def test_close(self) -> None:
        """A close frame has a code and a reason, or nothing."""
        found = read_frame(frames.close_frame(4401, "é".encode()))
        self.assertEqual(Close.parse(found.data), Close(4401, "é"))
        self.assertEqual(read_frame(frames.close_frame(None)).data, b"")


class DecoderTests(Cases):
    @cases(SIZES)
    def test_sizes(self, size: int) -> None:
        """Another implementation's frame is read as soon as all of it is there."""
        sent = Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
        data = bytearray(sent[:-1])
        self.assertIsNone(frames.take_frame(data))
        self.assertEqual(data, sent[:-1], "nothing is lost")
        data += sent[-1:] + b"\x8a"
        self.assertEqual(frames.take_frame(data), (TEXT, b"x" * size))
        self.assertEqual(data, b"\x8a")

    @cases({"masked": (b"\x81\x80",), "rsv": (b"\xc1\0",), "fragment": (b"\x01\0",)})
    def test_what_the_relay_never_sends(self, data: bytes) -> None:
        """A mask, a reserved bit or a fragment is an error, not a frame."""
        self.assertRaises(AssertionError, frames.take_frame, bytearray(data + bytes(8)))

    def test_close(self) -> None:
        """A close frame's payload is a code and a reason; an empty one has a code for that."""
        payload = Close(1011, "é").serialize()
        self.assertEqual(frames.code_and_reason(payload), (1011, "é"))
        self.assertEqual(frames.code_and_reason(b""), (NO_STATUS, ""))
        self.assertEqual(CLOSE, Opcode.CLOSE)
