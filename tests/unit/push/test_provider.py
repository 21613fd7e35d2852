"""The classes of failure: how they count, and how they read."""

from __future__ import annotations

from collections import Counter

from pyrycode_relay.protocol.push_wake import WakeOutcome
from pyrycode_relay.push.provider import Failed, SendFault
from tests.unit.bench import Cases, cases


class FaultTests(Cases):
    def test_outcomes(self) -> None:
        """A dead token and a failed fetch have outcomes of their own, all else has failed."""
        special = {
            SendFault.UNREGISTERED: WakeOutcome.UNREGISTERED,
            SendFault.TOKEN_FETCH: WakeOutcome.TOKEN_FETCH_FAILED,
        }
        for fault in SendFault:
            expected = special.get(fault, WakeOutcome.SEND_FAILED)
            self.assertIs(Failed(fault).outcome, expected, fault)

    def test_labels(self) -> None:
        """Each class has a label of its own."""
        labels = Counter(Failed(fault).label for fault in SendFault)
        self.assertEqual(labels.most_common(1)[0][1], 1)

    @cases(
        {
            "bare": (Failed(SendFault.TIMEOUT), "the provider did not answer in time"),
            "details": (
                Failed(SendFault.UNREGISTERED, ("404", "NOT_FOUND", "UNREGISTERED")),
                "the token is no longer registered (404 NOT_FOUND UNREGISTERED)",
            ),
        }
    )
    def test_text(self, failed: Failed, text: str) -> None:
        """The text for the log has the class, and behind it what the provider said."""
        self.assertEqual(str(failed), text)
