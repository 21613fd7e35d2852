"""When certificates are renewed and attempts repeated: bounds that hold for every lifetime."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.acme.schedule import (
    ADVICE_AGE,
    DAY,
    HOUR,
    LONGEST_RETRY_AFTER,
    LONGEST_WAIT,
    REFUSED,
    UNREACHABLE,
    Lifetime,
    advice_due,
    due,
    retry_in,
    suggested,
)
from tests.unit.bench import Cases, cases, examples

lifetimes = st.builds(
    lambda start, length: Lifetime(start, start + length),
    st.floats(0, 4e9),
    st.floats(1, 400 * DAY),
)
seeds = st.integers(0, 2**32).map(Random)


class RenewalTests(Cases):
    @given(lifetimes, seeds)
    @examples(200)
    def test_two_thirds(self, lifetime: Lifetime, random: Random) -> None:
        """A renewal is due at two thirds of the lifetime, or up to a thirtieth of it before."""
        share = (due(lifetime, random) - lifetime.start) / (lifetime.end - lifetime.start)
        self.assertTrue(0.63 < share < 0.67, share)

    def test_spread(self) -> None:
        """Relays that got their certificates at once renew them at different times."""
        lifetime = Lifetime(0, 90 * DAY)
        moments = [due(lifetime, Random(seed)) for seed in range(200)]
        self.assertGreater(max(moments) - min(moments), 2.5 * DAY)

    @given(lifetimes, st.floats(-1e10, 1e10))
    @examples(200)
    def test_suggested(self, lifetime: Lifetime, moment: float) -> None:
        """A CA's suggestion counts, if it leaves a sixth of the lifetime for attempts."""
        limit = lifetime.end - (lifetime.end - lifetime.start) / 6
        self.assertAlmostEqual(suggested(lifetime, moment), min(moment, limit), delta=1)

    def test_advice(self) -> None:
        """A certificate that is younger than a day is not asked about."""
        self.assertEqual(advice_due(Lifetime(1000, 90 * DAY)), 1000 + ADVICE_AGE)


class RetryTests(Cases):
    @given(st.integers(1, 10**6), st.floats(0.1, 1e4), st.floats(-1e6, 1e12), seeds)
    @examples(300)
    def test_bounds(self, failures: int, first: float, asked: float, random: Random) -> None:
        """No wait is shorter than the first, or longer than the longest of either kind."""
        wait = retry_in(failures, first, asked, random)
        self.assertGreaterEqual(wait, min(first, LONGEST_WAIT))
        self.assertLessEqual(wait, 1.25 * max(LONGEST_WAIT, LONGEST_RETRY_AFTER))

    @given(st.integers(1, 50), st.floats(1, LONGEST_RETRY_AFTER), seeds)
    @examples(100)
    def test_retry_after(self, failures: int, asked: float, random: Random) -> None:
        """A CA that asks for patience gets it."""
        self.assertGreaterEqual(retry_in(failures, UNREACHABLE, asked, random), asked)

    @cases({"unreachable": (UNREACHABLE,), "refused": (REFUSED,)})
    def test_doubles(self, first: float) -> None:
        """Waits double up to the longest, or up to a quarter longer."""
        expected = first
        for failures in range(1, 30):
            wait = retry_in(failures, first, 0, Random(failures))
            self.assertTrue(expected <= wait <= 1.25 * expected, (failures, wait))
            expected = min(2 * expected, LONGEST_WAIT)

    @given(seeds)
    @examples(100)
    def test_first_hour(self, random: Random) -> None:
        """A CA that refuses is asked five times at most in the first hour, then hourly."""
        moments, failures = [0.0], 0
        while moments[-1] < 10 * HOUR:
            failures += 1
            moments.append(moments[-1] + retry_in(failures, REFUSED, 0, random))
        self.assertLessEqual(sum(moment < HOUR for moment in moments), 5)
        self.assertLessEqual(len(moments), 5 + 10)
