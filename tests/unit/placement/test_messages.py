"""The messages between workers."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.http.admission import Leg
from pyrycode_relay.http.relay_site import Upgrade
from pyrycode_relay.placement.messages import (
    VERSION,
    Arrival,
    CloseCarried,
    Message,
    Moving,
    decode,
    encode,
)
from tests.unit.bench import Cases, cases, examples

ARRIVAL = Arrival(
    upgrade=Upgrade(
        leg=Leg.PHONE,
        path="/v1/client",
        server_id="id",
        binary_version="",
        device_name="Kim's phone",
        remote="192.0.2.1",
        accepted=1.5,
        response=b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ),
    rest=b"\x81\x80",
    ticket=7,
    carried=3,
)


class MessageTests(Cases):
    """What is sent is what arrives."""

    @cases({"arrival": (ARRIVAL,), "close": (CloseCarried(5),), "moving": (Moving(),)})
    def test_round_trip(self, message: Message) -> None:
        """A message arrives as it was sent."""
        self.assertEqual(message, decode(encode(message)))

    def test_another_version(self) -> None:
        """A message of another version is refused, and so is one with an unknown name."""
        other = encode(CloseCarried(5, version=VERSION + 1))
        unknown = msgspec.msgpack.encode(["news", VERSION])
        for each in (other, unknown, b"", encode(ARRIVAL)[:-1]):
            self.assertRaises(ValueError, decode, each)

    @given(st.binary(max_size=64))
    @examples(200)
    def test_any_bytes(self, data: bytes) -> None:
        """Any other bytes are refused with a `ValueError`."""
        try:
            message = decode(data)
        except ValueError:
            return
        self.assertEqual(VERSION, message.version)
