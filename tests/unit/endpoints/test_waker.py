"""A relay without push refuses every wake, in the same way as one with push."""

from __future__ import annotations

from pyrycode_relay.endpoints.waker import PushOff
from pyrycode_relay.events import Event
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal, WakeRequest
from tests.recorder import Recorder
from tests.unit.bench import Cases, cases


class PushOffTests(Cases):
    @cases({"good": (WakeRequest("fcm", "t"),), "malformed": (None,)})
    def test_refused(self, request: WakeRequest | None) -> None:
        """A wake is one warning, and dropped if the binary asks."""
        seen = Recorder()
        answers: list[WakeOutcome] = []
        push = PushOff(seen)
        push.wake("home", "192.0.2.1", request, answers.append)
        push.wake("home", "192.0.2.1", request, None)
        fields = {"server_id": "home", "remote": "192.0.2.1", "reason": WakeRefusal.OFF}
        self.assertEqual(seen.events, [(Event.PUSH_WAKE_DROPPED, fields)] * 2)
        self.assertEqual(answers, [WakeOutcome.DROPPED])
