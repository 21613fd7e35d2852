"""What a push service's answers mean. ``tests.live.test_web_push`` has the requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.push.http_client import Answer
from pyrycode_relay.push.provider import Failed, SendFault, Sent
from pyrycode_relay.push.subscription import Subscription
from pyrycode_relay.push.web_push import MAX_WAIT, outcome_of
from tests.unit.bench import Cases, cases, examples

SUBSCRIPTION = Subscription("push.example.org", "/wpush/v2/hunter")


class OutcomeTests(Cases):
    @cases(
        {
            "url": ("https://push.example.org/m/gAAA-b_c", "gAAA-b_c"),
            "path": ("/m/0:15%25", "0:15%25"),
            "bare": ("message", "message"),
            "none": ("", ""),
            "own": ("https://push.example.org/wpush/v2/hunter", ""),
            "part_of_own": ("/hunt", ""),
            "host": ("https://push.example.org", ""),
            "query": ("/m/a?b", ""),
            "line": ("/m/a\nb", ""),
            "long": ("/m/" + "a" * 257, ""),
        }
    )
    def test_message_id(self, location: str, name: str) -> None:
        """The last part of Location, if it is fit for the log and not the subscription's."""
        self.assertEqual(outcome_of(Answer(201, location=location), SUBSCRIPTION), Sent(name))

    @given(st.integers(0, 999), st.none() | st.floats(0, 10**9), st.text())
    @examples(500)
    def test_all(self, status: int, wait: float | None, location: str) -> None:
        """Every status has an outcome; only 429 and 503 are worth another try, and a short one."""
        outcome = outcome_of(Answer(status, b"hunter", wait, location), SUBSCRIPTION)
        self.assertEqual(isinstance(outcome, Sent), 200 <= status < 300)
        if isinstance(outcome, Failed):
            dead = outcome.fault is SendFault.UNREGISTERED
            self.assertEqual(dead, status in {404, 410})
            short = wait is None or wait <= MAX_WAIT
            self.assertEqual(outcome.retryable, short and status in {429, 503})
            self.assertNotIn("hunter", str(outcome))
