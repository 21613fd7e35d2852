"""Token buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from pyrycode_relay.token_buckets import TokenBuckets
from tests.unit.bench import Cases, examples


class TokenBucketTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()

    def buckets(self, rate: float = 1, burst: float = 3, max_keys: int = 10) -> TokenBuckets:
        """Return token buckets on this test's clock."""
        return TokenBuckets(rate, burst, self.clock.seconds, max_keys)

    def taken(self, buckets: TokenBuckets, key: object, tries: int) -> int:
        """Return how many of ``tries`` tries get a token."""
        return sum(buckets.take(key) for _ in range(tries))

    def test_burst(self) -> None:
        """An unused bucket is full."""
        self.assertEqual(self.taken(self.buckets(), "a", 10), 3)

    def test_refill(self) -> None:
        """Tokens are added at the rate."""
        buckets = self.buckets(rate=2)
        self.taken(buckets, "a", 10)
        self.clock.advance(0.49)
        self.assertFalse(buckets.take("a"))
        self.clock.advance(0.02)
        self.assertTrue(buckets.take("a"))
        self.assertFalse(buckets.take("a"))

    def test_no_more_than_the_burst(self) -> None:
        """A bucket never holds more than the burst, however long it is unused."""
        buckets = self.buckets()
        self.taken(buckets, "a", 10)
        self.clock.advance(1_000_000)
        self.assertEqual(self.taken(buckets, "a", 10), 3)

    def test_refused_tries_cost_nothing(self) -> None:
        """A key that tries in vain all the time still gets the next token."""
        buckets = self.buckets(rate=0.1)
        self.taken(buckets, "a", 3)
        got = 0
        for _ in range(200):
            self.clock.advance(0.1)
            got += buckets.take("a")
        self.assertIn(got, {1, 2})

    def test_clock_set_back(self) -> None:
        """A clock that is set back takes no tokens away."""
        self.clock.advance(10_000)
        buckets = self.buckets()
        self.taken(buckets, "a", 2)
        self.clock.rightNow -= 3600
        self.assertEqual(buckets.wait("a"), 0)
        self.assertEqual(self.taken(buckets, "a", 10), 1)
        self.assertEqual(buckets.wait("a"), 1)
        self.clock.advance(1)
        self.assertTrue(buckets.take("a"))

    def test_apart(self) -> None:
        """Each key has its own bucket."""
        buckets = self.buckets()
        self.taken(buckets, "a", 10)
        self.assertEqual(self.taken(buckets, "b", 10), 3)

    def test_bounded(self) -> None:
        """The number of buckets is bounded."""
        buckets = self.buckets(max_keys=10)
        for number in range(100):
            buckets.take(number)
        self.assertEqual(len(buckets), 10)

    def test_longest_unused_is_forgotten(self) -> None:
        """The key used least recently is forgotten; a busy key keeps its empty bucket."""
        buckets = self.buckets(burst=1, max_keys=3)
        buckets.take("busy")
        for number in range(20):
            buckets.take(number)
            self.assertFalse(buckets.take("busy"))
        self.assertTrue(buckets.take(0))

    def test_swept(self) -> None:
        """Using a bucket removes those that have filled up again, and no others."""
        buckets = self.buckets(rate=1, burst=3, max_keys=1000)
        for number in range(100):
            buckets.take(number)
        self.clock.advance(2.5)
        buckets.take("late")
        self.assertEqual(len(buckets), 101)
        self.clock.advance(0.5)
        for _ in range(50):
            buckets.take("busy")
        self.assertEqual(len(buckets), 2)

    def test_wait(self) -> None:
        """After the wait that is reported there is a token, and not before."""
        buckets = self.buckets(rate=0.25, burst=2)
        self.assertEqual(buckets.wait("a"), 0)
        self.taken(buckets, "a", 2)
        self.assertEqual(buckets.wait("a"), 4)
        self.clock.advance(3)
        self.assertFalse(buckets.take("a"))
        self.assertEqual(buckets.wait("a"), 1)
        self.clock.advance(buckets.wait("a"))
        self.assertTrue(buckets.take("a"))

    @examples(100)
    @given(
        st.sampled_from([0.5, 1.0, 4.0]),
        st.integers(1, 5),
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.25, 1.0, 8.0]))),
    )
    def test_any_use(self, rate: float, burst: int, tries: list[tuple[str, float]]) -> None:
        """In any interval a key gets at most the burst and what the rate adds.

        It gets no less either: a try succeeds if the pause before it has added a token.
        """
        clock = Clock()
        # Two more keys, to be swept: that takes nothing from the others.
        buckets = TokenBuckets(rate, burst, clock.seconds, 10)
        buckets.take("c")
        buckets.take("d")
        granted: dict[str, list[float]] = {"a": [], "b": []}
        last_try: dict[str, float] = {}
        for key, pause in tries:
            clock.advance(pause)
            now = clock.seconds()
            allowed = buckets.take(key)
            if key not in last_try or now - last_try[key] >= 1 / rate:
                self.assertTrue(allowed)
            last_try[key] = now
            if allowed:
                granted[key].append(now)
        for times in granted.values():
            for first, start in enumerate(times):
                for last in range(first, len(times)):
                    self.assertLessEqual(last - first + 1, burst + rate * (times[last] - start))
