"""The breaker: when it opens, whom it lets through, and what closes it."""

from __future__ import annotations

from twisted.internet.task import Clock

from pyrycode_relay.push.breaker import Breaker, BreakerState
from tests.unit.bench import Cases


class BreakerTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.breaker = Breaker(self.clock.seconds, threshold=3, pause=30)

    def fail(self, times: int = 1) -> None:  # type: ignore[override]
        """Have tries fail."""
        for _ in range(times):
            self.assertTrue(self.breaker.allows())
            self.breaker.failed()

    def test_opens(self) -> None:
        """Failures in a row open it, and nothing gets through."""
        self.fail(2)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)
        self.fail()
        self.assertIs(self.breaker.state, BreakerState.OPEN)
        self.assertFalse(self.breaker.allows())

    def test_a_success_between(self) -> None:
        """A success between failures begins the row anew."""
        self.fail(2)
        self.breaker.succeeded()
        self.fail(2)
        self.assertTrue(self.breaker.allows())

    def test_undecided(self) -> None:
        """A try that says nothing about the provider counts neither way."""
        self.fail(2)
        self.assertTrue(self.breaker.allows())
        self.breaker.undecided()
        self.fail()
        self.assertIs(self.breaker.state, BreakerState.OPEN)

    def test_one_try_after_the_pause(self) -> None:
        """After the pause one try gets through, and no second beside it."""
        self.fail(3)
        self.clock.advance(29.9)
        self.assertFalse(self.breaker.allows())
        self.clock.advance(0.1)
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        self.assertTrue(self.breaker.allows())
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        self.assertFalse(self.breaker.allows())

    def test_clock_set_back(self) -> None:
        """A clock that is set back by an hour does not keep it open for an hour."""
        self.clock.advance(10_000)
        self.fail(3)
        self.clock.rightNow -= 3600
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        self.assertTrue(self.breaker.allows())
        self.assertFalse(self.breaker.allows())
        self.breaker.failed()
        self.assertIs(self.breaker.state, BreakerState.OPEN)
        self.assertFalse(self.breaker.allows())
        self.clock.advance(30)
        self.assertTrue(self.breaker.allows())

    def test_closes(self) -> None:
        """If that try succeeds, everything gets through."""
        self.fail(3)
        self.clock.advance(30)
        self.assertTrue(self.breaker.allows())
        self.breaker.succeeded()
        self.assertIs(self.breaker.state, BreakerState.CLOSED)
        self.fail(2)
        self.assertTrue(self.breaker.allows())

    def test_opens_again(self) -> None:
        """If that try fails, nothing gets through for another pause."""
        self.fail(3)
        self.clock.advance(30)
        self.fail()
        self.assertIs(self.breaker.state, BreakerState.OPEN)
        self.clock.advance(29.9)
        self.assertFalse(self.breaker.allows())
        self.clock.advance(0.1)
        self.assertTrue(self.breaker.allows())

    def test_try_that_says_nothing(self) -> None:
        """If that try says nothing, the next one gets through."""
        self.fail(3)
        self.clock.advance(30)
        self.assertTrue(self.breaker.allows())
        self.breaker.undecided()
        self.assertTrue(self.breaker.allows())
