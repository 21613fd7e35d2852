"""Phones that have left lately: for how long they are known, to whom, and how many."""

from __future__ import annotations

from twisted.internet.task import Clock

from pyrycode_relay.limits import DEPARTURE_SECONDS, DEPARTURES
from pyrycode_relay.registry.departures import RecentDepartures
from tests.unit.bench import Cases


class DeparturesTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.departures = RecentDepartures(self.clock.seconds)

    def test_a_minute(self) -> None:
        """A phone that has left is known for a minute."""
        self.assertFalse(self.departures.has("home", "a"))
        self.departures.add("home", "a")
        self.clock.advance(DEPARTURE_SECONDS - 1)
        self.assertTrue(self.departures.has("home", "a"))
        self.clock.advance(1)
        self.assertFalse(self.departures.has("home", "a"))

    def test_own_server_id(self) -> None:
        """A phone of another server-id is not known."""
        self.departures.add("home", "a")
        self.assertFalse(self.departures.has("other", "a"))
        self.assertFalse(self.departures.has("home", "b"))

    def test_again(self) -> None:
        """A conn_id that leaves again counts from then on."""
        self.departures.add("home", "a")
        self.clock.advance(DEPARTURE_SECONDS - 1)
        self.departures.add("home", "a")
        self.clock.advance(1)
        self.assertTrue(self.departures.has("home", "a"))
        self.assertEqual(len(self.departures), 1)

    def test_forgotten(self) -> None:
        """Those that left too long ago are forgotten as others leave."""
        for number in range(100):
            self.departures.add("home", str(number))
        self.clock.advance(DEPARTURE_SECONDS)
        self.departures.add("home", "last")
        self.assertEqual(len(self.departures), 1)

    def test_bounded(self) -> None:
        """However many leave, a fixed number is known: those that left last."""
        for number in range(DEPARTURES + 10):
            self.departures.add("home", str(number))
        self.assertEqual(len(self.departures), DEPARTURES)
        self.assertFalse(self.departures.has("home", "9"))
        self.assertTrue(self.departures.has("home", "10"))
