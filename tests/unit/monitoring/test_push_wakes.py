"""What the metrics and the status page show of push wakes."""

from __future__ import annotations

import json

from pyrycode_relay.events import Event
from pyrycode_relay.monitoring.counters import Counters, EventCounter
from pyrycode_relay.monitoring.monitored import Push
from pyrycode_relay.monitoring.push_wakes import PushWakes
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal
from pyrycode_relay.push.breaker import BreakerState
from pyrycode_relay.push.provider import Failed, SendFault
from tests.unit.bench import Cases, cases


class PushWakesTests(Cases):
    def setUp(self) -> None:
        self.now = 1000.0
        self.state = BreakerState.CLOSED
        push = Push(
            faults=[each.label for each in SendFault],
            breakers=lambda: {"fcm": self.state.value},
            under_way=lambda: 3,
        )
        counters = Counters()
        self.counter = EventCounter(counters)
        self.wakes = PushWakes(push, counters, lambda: self.now)

    def saw(self, event: Event, **fields: object) -> None:
        """Tell of an event, a second after the last."""
        self.now += 1
        self.counter.saw(event, **fields)
        self.wakes.saw(event, **fields)

    def sent(self) -> None:
        self.saw(Event.PUSH_WAKE_SENT, server_id="home", token_fp="0123abcd")

    def failed(self, fault: SendFault) -> None:
        error = Failed(fault, ("500", "A_PROVIDERS_WORD"))
        self.saw(Event.PUSH_WAKE_FAILED, server_id="home", token_fp="0123abcd", err=error)

    def samples(self) -> dict[str, float]:
        """Return the values by name and label."""
        return {
            " ".join([sample.name.removeprefix("pyrycode_relay_push_"), *sample.labels.values()]): (
                sample.value
            )
            for family in self.wakes.families()
            for sample in family.samples
        }

    def test_from_the_start(self) -> None:
        """Every class of failure is there at 0, and nothing has happened."""
        samples = self.samples()
        for fault in SendFault:
            self.assertEqual(samples[f"failures_total {fault.label}"], 0)
        document = self.wakes.document()
        self.assertEqual(set(document["outcomes"]), {each.label for each in WakeOutcome})
        self.assertEqual(set(document["refusals"]), {each.label for each in WakeRefusal})
        self.assertEqual({*document["outcomes"].values(), *document["refusals"].values()}, {0})
        self.assertIsNone(document["last_sent"])
        self.assertIsNone(document["last_failure"])
        self.assertFalse(document["failing"])

    def test_counts(self) -> None:
        """Wakes are counted by outcome, and those that could not be sent by class."""
        self.sent()
        self.failed(SendFault.TIMEOUT)
        self.failed(SendFault.UNREGISTERED)
        self.failed(SendFault.TOKEN_FETCH)
        self.saw(Event.PUSH_WAKE_DROPPED, server_id="home", reason=WakeRefusal.RATE)
        document = self.wakes.document()
        self.assertEqual(
            document["outcomes"],
            {
                "sent": 1,
                "unregistered": 1,
                "send_failed": 1,
                "token_fetch_failed": 1,
                "dropped": 1,
            },
        )
        self.assertEqual(document["refusals"]["rate"], 1)
        self.assertEqual(document["faults"]["timeout"], 1)
        self.assertEqual(self.samples()["failures_total timeout"], 1)

    def test_since_when(self) -> None:
        """A row of failures has its beginning, until a wake is sent; the last one stays known."""
        self.sent()
        self.failed(SendFault.TIMEOUT)
        self.failed(SendFault.UNAUTHORIZED)
        document = self.wakes.document()
        self.assertTrue(document["failing"])
        self.assertEqual(
            document["last_failure"],
            {
                "fault": "unauthorized",
                "text": str(SendFault.UNAUTHORIZED),
                "time": 1003.0,
                "since": 1002.0,
            },
        )
        self.sent()
        document = self.wakes.document()
        self.assertFalse(document["failing"])
        self.assertEqual((document["last_sent"], document["last_failure"]["time"]), (1004, 1003))
        self.failed(SendFault.TIMEOUT)
        self.assertEqual(self.wakes.document()["last_failure"]["since"], 1005)

    def test_dead_tokens(self) -> None:
        """A dead token is counted, but the provider is not at fault."""
        self.failed(SendFault.UNREGISTERED)
        document = self.wakes.document()
        self.assertFalse(document["failing"])
        self.assertIsNone(document["last_failure"])
        self.assertEqual(self.samples()["failures_total unregistered"], 1)

    @cases({state.value: (state,) for state in BreakerState})
    def test_breakers(self, state: BreakerState) -> None:
        """A breaker counts as open until its provider is known to work again."""
        self.state = state
        samples = self.samples()
        self.assertEqual(samples["breaker_open fcm"], state is not BreakerState.CLOSED)
        self.assertEqual(samples["wakes_under_way"], 3)
        document = self.wakes.document()
        self.assertEqual((document["breakers"], document["under_way"]), ({"fcm": state.value}, 3))

    def test_only_the_relays_own_words(self) -> None:
        """No server-id, no fingerprint and no word of a provider is shown."""
        self.failed(SendFault.UNAVAILABLE)
        shown = json.dumps(self.wakes.document()) + str(self.samples())
        for word in ("home", "0123abcd", "A_PROVIDERS_WORD"):
            self.assertNotIn(word, shown)
