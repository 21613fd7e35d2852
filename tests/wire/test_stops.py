"""A relay that was stopped, or whose machine was: no deadline counts before input is read."""

from __future__ import annotations

from typing import ClassVar

from websockets.frames import Opcode

from tests.peers.frames import frame
from tests.peers.requests import phone_headers, upgrade_request
from tests.wire.harness import WireTest

STOP = 40.0
"""Longer than every deadline."""


class StopTest(WireTest):
    """Deadlines that fire late."""

    limits: ClassVar = {"grace": 600.0}

    def test_rest_of_a_message(self) -> None:
        """A message whose rest has come meanwhile is delivered, though it takes many reads."""
        binary, phone = self.relay.pair()
        whole = frame(1, b'"' + b"x" * 250_000 + b'"')
        phone.answers = False
        phone.send(whole[:1_000])
        phone.socket.inbound += whole[1_000:]
        self.relay.stop(STOP)
        self.relay.advance(STOP)
        self.assertIsNone(phone.closed)
        self.assertEqual(len(binary.data_from(phone)), 1)

    def test_rest_of_a_message_that_comes_later(self) -> None:
        """A peer gets the time in which the relay was stopped, because its data may be lost."""
        binary, phone = self.relay.pair()
        whole = frame(1, b'"ab"')
        phone.answers = False
        phone.send(whole[:4])
        self.relay.advance(1)
        self.relay.stop(STOP)
        self.relay.advance(10)
        phone.send(whole[4:])
        self.assertEqual(binary.data_from(phone), ["ab"])

    def test_message_without_a_rest(self) -> None:
        """A message whose rest does not come is still given up, also after many stops."""
        for stops in (1, 10):
            binary, phone = self.relay.pair()
            phone.send(frame(1, b'"', fin=False))
            for _ in range(stops):
                self.relay.stop(STOP)
            self.relay.advance(31)
            self.assertEqual(phone.closed, (1008, "message not completed in time"))
            binary.reset()

    def test_pong(self) -> None:
        """A pong that has come meanwhile counts, also if the relay stops again at once."""
        for stops in (1, 2, 5, 10):
            binary, phone = self.relay.pair()
            phone.answers = False
            while not phone.count(Opcode.PING):
                self.relay.advance(0.25)
            for _ in range(stops):
                phone.socket.inbound += frame(10)
                self.relay.stop(STOP)
                self.relay.advance(0.125)
            self.assertIsNone(phone.closed)
            self.relay.advance(100)
            self.assertEqual(phone.closed, (1011, "heartbeat timeout"))
            binary.reset()

    def test_probe(self) -> None:
        """A daemon's answer to a probe that has come meanwhile counts."""
        incumbent, _ = self.relay.pair()
        incumbent.answers = False
        newcomer = self.relay.binary()
        incumbent.socket.inbound += frame(10)
        self.relay.stop(STOP)
        self.assertEqual(newcomer.closed, (4409, "server-id already claimed"))
        self.assertIsNone(incumbent.closed)
        newcomer = self.relay.binary()
        self.relay.stop(STOP)
        self.relay.advance(31)
        self.assertEqual(incumbent.closed, (1011, "heartbeat timeout"))
        self.assertIsNone(newcomer.closed)

    def test_write_stall(self) -> None:
        """A peer that takes nothing while the relay is stopped can take it afterwards."""
        for takes in (True, False):
            binary, phone = self.relay.pair()
            phone.answers = False
            phone.stop_reading()
            for _ in range(5):
                binary.forward(phone, '"' + "x" * 50_000 + '"')
            self.relay.stop(STOP)
            self.relay.advance(5)
            self.assertEqual(binary.notices, [])
            if takes:
                phone.resume_reading()
                self.assertEqual(len(phone.messages), 5)
            else:
                self.relay.advance(61)
                self.assertEqual(binary.notices, [(phone.conn_id, 1011)])
            binary.reset()
            phone.reset()

    def test_headers(self) -> None:
        """A request whose rest has come meanwhile is answered; one that stays incomplete ends."""
        self.relay.binary()
        request = upgrade_request("/v1/client", phone_headers())
        peers = [self.relay.request(request[:40]) for _ in range(2)]
        peers[0].socket.inbound += request[40:]
        self.relay.stop(STOP)
        self.relay.advance(31)
        self.assertEqual(peers[0].answer.status, 101)
        self.assertEqual(peers[1].answer.status, 0)
        self.assertTrue(peers[1].was_reset)

    def test_closing_handshake(self) -> None:
        """A connection whose answer to the close has come meanwhile ends without a reset."""
        for answers in (True, False):
            binary, phone = self.relay.pair()
            phone.answers = False
            binary.direct(phone, 4000)
            self.assertEqual(phone.closed, (4000, ""))
            if answers:
                phone.socket.inbound += frame(8, b"\x0f\xa0")
            self.relay.stop(STOP)
            self.relay.advance(31)
            self.assertTrue(phone.gone)
            self.assertEqual(phone.was_reset, not answers)
            binary.reset()

    def test_grace(self) -> None:
        """A daemon that comes back as soon as the relay runs again has its slot."""
        binary, phone = self.relay.pair()
        binary.reset()
        phone.text("1")
        self.relay.stop(700)
        again = self.relay.binary()
        self.assertIsNone(again.closed)
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
