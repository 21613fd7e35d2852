"""The frame lane changes nothing: the same stream, with the lane and without, to the same end.

Two relays read the same bytes in the same pieces. One has its lane; in the other Autobahn parses
everything. What the sender is answered, what reaches the other side, how the connections end and
when, must be the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.websocket.connection import RelayProtocol
from tests.peers.frames import frame
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.unit.bench import examples
from tests.wire.harness import Peer, Relay, WireTest

CAP = 1000
"""The largest message here, so that one that is too large need not be long."""

LONG = "".join(chr(97 + number % 26) for number in range(CAP))


def without_lane(relay: Relay) -> Relay:
    """Make Autobahn parse everything that ``relay`` reads."""

    def no_lane(_: RelayProtocol, data: bytes) -> bytes:
        return data

    for factory in (*relay.service._phones, *relay.service._binaries):
        whole = cast(Any, factory.protocol)
        factory.protocol = type(whole.__name__, (whole,), {"_run_lane": no_lane})
    return relay


def text(size: int) -> bytes:
    """Return a JSON text of ``size`` bytes."""
    return json.dumps(LONG[: size - 2]).encode() if size > 1 else b"1"


sizes = st.one_of(st.integers(1, 40), st.sampled_from([124, 125, 126, 127, 128, 300, CAP - 1, CAP]))
json_texts = st.one_of(
    sizes.map(text),
    st.sampled_from([b'{"a":[1,2]}', b"null", '"Å…😀"'.encode(), b'"\\ud800"', b" 1 "]),
)
BAD_UTF8 = [
    b'"\xff"',
    b'"\xc3',
    b'"\xed\xa0\x80"',
    b'"\xf0\x9f\x98',
    b"\x80",
    b'"' + b"a" * 200 + b"\xe2",
]
bad_utf8 = st.sampled_from(BAD_UTF8)
payloads = st.one_of(json_texts, json_texts, json_texts, bad_utf8, st.sampled_from([b"", b"no"]))

common = json_texts.map(lambda payload: frame(1, payload))
binary_opcode = payloads.map(lambda payload: frame(2, payload))
control = st.builds(frame, st.sampled_from([9, 10]), st.binary(max_size=125))
CLOSING = [
    frame(8, body)
    for body in (
        b"", b"\x03\xe8", b"\x0f\xa1bye", b"\x03\xe7", b"\x03", b"\x03\xf6", b"\x03\xe8\xff",
    )
]  # fmt: skip
closing = st.sampled_from(CLOSING)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message in fragments, perhaps with control frames between them."""
    payload = draw(payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    edges = [0, *cuts, len(payload)]
    parts = [payload[a:b] for a, b in itertools.pairwise(edges)]
    stream = b""
    for number, part in enumerate(parts):
        if number:
            stream += draw(st.one_of(st.just(b""), control))
        opcode = draw(st.sampled_from([1, 1, 2])) if number == 0 else 0
        stream += frame(opcode, part, fin=number == len(parts) - 1)
    return stream


WRONG = [
    frame(1, b"1", masked=False),
    *(frame(1, b"1", rsv=rsv) for rsv in range(1, 8)),
    *(frame(opcode, b"1") for opcode in (3, 5, 7, 11, 15)),
    frame(0, b"1"),
    frame(9, b"1", fin=False),
    frame(9, b"x" * 126),
    frame(1, text(CAP + 1)),
    frame(1, b"1", length=2**62),
    frame(1, b"1", length=2**63),
    # Lengths that would have fitted into fewer bytes.
    b"\x81\xfe\x00\x05" + bytes(4) + b'"abc"',
    b"\x81\xff" + (200).to_bytes(8, "big") + bytes(4) + text(200),
    *(frame(1, payload) for payload in BAD_UTF8),
    frame(1, b""),
    frame(1, b"no"),
]
wrong = st.sampled_from(WRONG)

items = st.one_of(common, common, common, binary_opcode, control, fragmented(), wrong, closing)
calm = st.one_of(common, common, common, control, fragmented())


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A stream of bytes, in the pieces in which it is read."""
    stream = b"".join(draw(st.lists(calm, max_size=6)) + draw(st.lists(items, max_size=6)))
    stream = stream[: len(stream) - draw(st.sampled_from([0, 0, 0, 1, 2, 5, 9, 50]))]
    if draw(st.booleans()):
        step = draw(st.sampled_from([1, 2, 3, 7, 64, 1000]))
        if step < 7:
            stream = stream[:800]  # Single bytes of long streams take long and show nothing else.
        return [stream[at : at + step] for at in range(0, len(stream), step)]
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]


class Outcome:
    """One relay, fed; what can be seen of it from outside."""

    def __init__(self, relay: Relay, sender: str, pieces: list[bytes]) -> None:
        suffixes = itertools.count()
        relay.service.context.registry._suffix = lambda: f"{next(suffixes):08x}"
        relay.start()
        binary = relay.request(upgrade_request(b"/v1/server", binary_headers()))
        phone = relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.seen: list[object] = []
        feeding = binary if sender == "binary" else phone
        for piece in pieces:
            feeding.send(piece)
            self.look(binary, phone)
        for _ in range(12):
            relay.advance(6)
            self.look(binary, phone)
        relay.service.stopService()
        relay.advance(30)

    def look(self, *peers: Peer) -> None:
        """Note what each peer has received so far, and whether it is gone."""
        self.seen.append([(bytes(peer.received), peer.gone, peer.was_reset) for peer in peers])


class LaneTest(WireTest):
    """With the lane and without."""

    def check(self, sender: str, pieces: list[bytes]) -> None:
        """Feed both and compare."""
        limits: dict[str, Any] = {"max_message_bytes": CAP, "message_timeout": 20.0}
        with_it = Outcome(Relay(**limits), sender, pieces)
        without = Outcome(without_lane(Relay(**limits)), sender, pieces)
        for number, (one, other) in enumerate(zip(with_it.seen, without.seen, strict=True)):
            self.assertEqual(one, other, f"after piece {number} of {pieces}")

    @examples(150)
    @given(streams())
    def test_phone(self, pieces: list[bytes]) -> None:
        """Whatever a phone sends."""
        self.check("phone", pieces)

    @examples(150)
    @given(streams())
    def test_binary(self, pieces: list[bytes]) -> None:
        """Whatever a binary sends; what it sends here is mostly no envelope, and it stays."""
        self.check("binary", pieces)

    def test_each_mistake(self) -> None:
        """Each wrong frame and each close: whole, among common frames, and cut at every byte."""
        for sender in ("phone", "binary"):
            for item in (*WRONG, *CLOSING):
                self.check(sender, [item])
                self.check(sender, [frame(1, b"1") + item + frame(1, b"2"), frame(1, b"3")])
                for cut in (*range(1, min(len(item), 24)), len(item) - 1):
                    self.check(sender, [item[:cut], item[cut:], frame(1, b"1")])

    def test_every_cut(self) -> None:
        """Three frames, of each kind of length, cut in two at every byte."""
        stream = frame(1, b"1") + frame(1, text(300)) + frame(1, text(30))
        for cut in range(len(stream)):
            self.check("phone", [stream[:cut], stream[cut:]])

    def test_a_bug_on_the_way(self) -> None:
        """An error in handling a message costs what it costs without the lane: what comes
        behind it in the same read is found where it is, whole or in pieces."""
        bad, answer = frame(1, text(200)), frame(8, b"\x03\xf3")
        streams = (
            [bad + answer],
            [bad[:50], bad[50:] + answer],
            [bad[:50], bad[50:] + frame(9) + answer],
            [bad + frame(1, text(90))[:30], frame(1, text(90))[30:] + answer],
        )

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        for pieces in streams:
            ends = []
            for relay in (Relay(), without_lane(Relay())):
                relay.start()
                relay.binary()
                phone = relay.request(upgrade_request(b"/v1/client", phone_headers()))
                (side,) = (each for each in relay.connections() if hasattr(each, "phone"))
                self.patch(side, "message", fail)
                for piece in pieces:
                    phone.send(piece)
                ends.append((bytes(phone.received[-30:]), phone.gone, phone.was_reset))
                relay.service.stopService()
                relay.advance(30)
                self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.assertEqual(ends[0], ends[1], f"{pieces}")
            self.assertTrue(ends[0][1])

    def test_a_bug_in_writing(self) -> None:
        """An error in writing to one phone costs that phone; others get what was gathered."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(3)]
        sock: Any = phones[1].socket

        def fail(_: bytes) -> None:
            raise RuntimeError("a bug")

        sock.send = fail
        stream = b"".join(
            frame(1, b'{"conn_id":"%s","frame":1}' % phone.conn_id.encode()) for phone in phones
        )
        binary.send(stream)
        self.assertEqual([phones[0].messages, phones[2].messages], [[b"1"], [b"1"]])
        self.assertIsNone(binary.closed)
        self.assertTrue(phones[1].gone)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_it_is_the_lane(self) -> None:
        """The comparison is of two different ways: Autobahn sees nothing of common frames."""
        for relay, expected in ((Relay(), 0), (without_lane(Relay()), 1)):
            seen: list[bytes] = []
            relay.start()
            relay.binary()
            phone = relay.phone()
            side = relay.server_side(phone)
            parse = side.processData

            def counted(seen: list[bytes] = seen, parse: Callable[[], object] = parse) -> object:
                seen.append(b"")
                return parse()

            self.patch(side, "processData", counted)
            phone.send(frame(1, text(40)))
            phone.send(frame(1, text(400))[:100])
            phone.send(frame(1, text(400))[100:])
            self.assertEqual(bool(seen), bool(expected))
            relay.service.stopService()
            relay.advance(30)
