"""Push wakes on the wire: a binary asks, the service sends, and the answer finds its way back."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from pyrycode_relay.events import Event
from pyrycode_relay.protocol.push_wake import WakeRefusal
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent
from pyrycode_relay.push.service import PushService
from tests.wire.harness import WireTest


class Device:
    """A provider whose sends last until the test ends them."""

    def __init__(self) -> None:
        self.outcome: Deferred[Outcome] = Deferred()
        self.tokens: list[str] = []

    is_one_server = True

    async def send(self, token: str, ttl: float) -> Outcome:
        """Wait for the test's word."""
        self.tokens.append(token)
        return await self.outcome

    async def close(self) -> None:
        """Do nothing."""


class PushTest(WireTest):
    """A relay with push."""

    def setUp(self) -> None:
        super().setUp()
        self.device = Device()
        service = self.relay.service
        service.context.waker = PushService(
            self.relay.reactor, service.events, {"fcm": self.device}
        )

    WAKE = '{"push_wake":{"platform":"fcm","token":"wake-secret"%s}}'
    ASKING = WAKE % ',"reply":"w-1"'

    def result(self, outcome: str) -> dict[str, object]:
        """Return the message with an outcome."""
        return {"push_result": {"reply": "w-1", "outcome": outcome}}

    def test_sent(self) -> None:
        """A binary that asks is told the outcome, once it is known."""
        binary, phone = self.relay.pair()
        binary.text(self.ASKING)
        self.relay.advance(1)
        self.assertEqual(self.device.tokens, ["wake-secret"])
        self.assertEqual(binary.messages, [])
        self.device.outcome.callback(Sent())
        self.relay.pump()
        self.assertEqual(binary.envelopes, [self.result("sent")])
        self.assertEqual(phone.messages, [])

    def test_not_asked(self) -> None:
        """A binary that does not ask is told nothing, whatever becomes of the wake."""
        binary = self.relay.binary()
        binary.text(self.WAKE % "")
        binary.text('{"push_wake":[]}')
        self.device.outcome.callback(Failed(SendFault.UNREGISTERED))
        self.relay.advance(1)
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_FAILED)), 1)
        self.assertEqual(binary.messages, [])

    def test_refused(self) -> None:
        """A refused wake is dropped; the binary's connection stays, and so do its frames."""
        binary, phone = self.relay.pair()
        binary.text('{"push_wake":{"platform":"apns","token":"wake-secret","reply":"w-1"}}')
        self.assertEqual(binary.envelopes, [self.result("dropped")])
        [fields] = self.relay.seen.of(Event.PUSH_WAKE_DROPPED)
        self.assertIs(fields["reason"], WakeRefusal.PLATFORM)
        self.assertEqual(fields["remote"], "192.0.2.7")
        binary.forward(phone, "7")
        self.assertEqual(phone.messages, [b"7"])

    def test_gone(self) -> None:
        """The send goes on without its binary; the next binary is not told."""
        binary = self.relay.binary()
        binary.text(self.ASKING)
        binary.close(1000)
        successor = self.relay.binary()
        self.relay.advance(1)
        self.device.outcome.callback(Sent())
        self.relay.pump()
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_SENT)), 1)
        self.assertEqual(successor.messages, [])

    def test_slow(self) -> None:
        """The answer waits for a binary that does not read."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for _ in range(8):
            phone.text('"' + "x" * 100_000 + '"')
        binary.text(self.ASKING)
        self.device.outcome.callback(Sent())
        self.relay.advance(1)
        self.assertEqual(binary.messages, [])
        binary.resume_reading()
        self.relay.pump()
        self.assertEqual(len(binary.envelopes), 9)
        self.assertIn(self.result("sent"), binary.envelopes)

    def test_nothing_is_shown(self) -> None:
        """The token is in no event and in no line of the log."""
        binary = self.relay.binary()
        for wake in (self.ASKING, self.WAKE % ',"reply":"a b"', self.WAKE % ',"reply":1'):
            binary.text(wake)
        self.device.outcome.callback(Failed(SendFault.INVALID_TOKEN, ("400",)))
        self.relay.advance(1)
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_FAILED)), 1)
        self.assertNotIn("wake-secret", str(self.relay.seen.events))
        self.assertNotIn("wake-secret", self.log_text())
