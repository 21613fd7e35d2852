"""When memory is returned to the system."""

from __future__ import annotations

from twisted.internet.task import Clock

from pyrycode_relay.heap_trimmer import HeapTrimmer
from tests.unit.bench import Cases


class HeapTrimmerTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.trims: list[float] = []
        self.trimmer = HeapTrimmer(self.clock, lambda: self.trims.append(self.clock.seconds()))

    def test_once_for_many(self) -> None:
        """It is done once, some seconds after the queues have shrunk, however often they did."""
        for _ in range(2):
            for _ in range(4):
                self.trimmer.plan()
                self.clock.advance(1)
            self.clock.advance(1)
        self.assertEqual(self.trims, [5.0, 10.0])
        self.assertEqual(self.clock.getDelayedCalls(), [], "no timer while nothing happens")

    def test_stop(self) -> None:
        """No timer is left when it stops, however often."""
        self.trimmer.plan()
        for _ in range(2):
            self.trimmer.stop()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_real_one(self) -> None:
        """The C library is asked, if it can."""
        HeapTrimmer(self.clock).plan()
        self.clock.advance(5)
        self.assertEqual(self.clock.getDelayedCalls(), [])
