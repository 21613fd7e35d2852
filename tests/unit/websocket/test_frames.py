"""Frames as bytes: headers, UTF-8, and payloads that arrive in pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.websocket.frames import PartialFrame, apply_mask, is_utf8, text_header
from tests.unit.bench import Cases, cases, examples

MASK = b"\x37\xfa\x21\x3d"


def is_strictly_utf8(data: bytes) -> bool:
    """Return what the interpreter's own decoder says."""
    try:
        data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    return True


def can_become_utf8(data: bytes) -> bool:
    """Return whether some bytes behind ``data`` make UTF-8 of it, by trying those there may be."""
    tails = [b"", b"\x80", b"\x90", b"\xa0", b"\x80\x80", b"\x90\x80", b"\xa0\x80", b"\x80" * 3]
    tails.append(b"\x90\x80\x80")
    return any(is_strictly_utf8(data + tail) for tail in tails)


class HeaderTests(Cases):
    @cases(
        {
            "empty": (0, b"\x81\x00"),
            "longest_of_7_bits": (125, b"\x81\x7d"),
            "shortest_of_16_bits": (126, b"\x81\x7e\x00\x7e"),
            "longest_of_16_bits": (65535, b"\x81\x7e\xff\xff"),
            "shortest_of_64_bits": (65536, b"\x81\x7f" + (65536).to_bytes(8, "big")),
        }
    )
    def test_text_header(self, size: int, header: bytes) -> None:
        """A length is written in the fewest bytes, as RFC 6455, section 5.2, asks for."""
        self.assertEqual(text_header(size), header)


class Utf8Tests(Cases):
    @examples(300)
    @given(st.one_of(st.binary(max_size=12), st.text().map(str.encode)))
    def test_is_utf8(self, data: bytes) -> None:
        """It is UTF-8 exactly when the interpreter decodes it."""
        self.assertEqual(is_utf8(data), is_strictly_utf8(data))


texts = st.text(st.sampled_from("aé€😀\x00\uffff"), max_size=12).map(str.encode)
payloads = st.one_of(texts, st.builds(lambda text, end: text + end, texts, st.binary(max_size=4)))


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """A payload in the pieces in which it arrives, some of them perhaps empty."""
    payload = draw(payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=6)))
    return [payload[a:b] for a, b in itertools.pairwise([0, *cuts, len(payload)])]


class PartialFrameTests(Cases):
    @examples(500)
    @given(pieces())
    def test_pieces(self, parts: list[bytes]) -> None:
        """The payload is unmasked as it comes. A piece is refused as soon as no further bytes
        could make UTF-8 of it, and a last piece if it does not end a character."""
        whole = b"".join(parts)
        masked = apply_mask(whole, MASK)
        frame = PartialFrame(MASK, len(whole))
        arrived = 0
        for part in parts:
            taken = frame.take(masked[arrived : arrived + len(part)])
            arrived += len(part)
            so_far = whole[:arrived]
            complete = arrived == len(whole)
            self.assertEqual(bytes(frame.payload), so_far)
            if part:
                fits = is_strictly_utf8(so_far) if complete else can_become_utf8(so_far)
                self.assertEqual(taken, fits, so_far)
            if not taken:
                return

    def test_each_byte(self) -> None:
        """Each byte of a surrogate, of an overlong form and of too large a number is refused
        where it first shows."""
        for wrong, at in (
            (b"\xed\xa0\x80", 1),
            (b"\xed\xbf\xbf", 1),
            (b"\xc0\xaf", 0),
            (b"\xe0\x9f\xbf", 1),
            (b"\xf0\x8f\xbf\xbf", 1),
            (b"\xf4\x90\x80\x80", 1),
            (b"\xf5\x80\x80\x80", 0),
            (b"\x80", 0),
            (b"\xe2\x82\xff", 2),
        ):
            frame = PartialFrame(bytes(4), 100)
            self.assertTrue(frame.take(b"abc"))
            taken = [frame.take(bytes([byte])) for byte in wrong[: at + 1]]
            self.assertEqual(taken, [True] * at + [False], wrong)
