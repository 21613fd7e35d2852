"""The numbers of the contract, and the token buckets."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from pyrycode_relay.limits import ENVELOPE_ALLOWANCE, Limits, OnReclaim, TokenBuckets
from pyrycode_relay.protocol.envelope import SUFFIX, close_notice, data_prefix
from pyrycode_relay.protocol.header_gate import MAX_SERVER_ID
from tests.unit.bench import Cases, cases, examples

CONTRACT = {
    "grace": 30,
    "on_reclaim": OnReclaim.EVICT,
    "max_phones": 16,
    "max_message_bytes": 262_144,
    "outbox_bytes": 4 * 2**20,
    "hold_bytes": 2**20,
    "memory_budget": 256 * 2**20,
    "write_stall": 30,
    "message_timeout": 30,
    "heartbeat_interval": 30,
    "heartbeat_timeout": 30,
    "probe_timeout": 10,
    "close_timeout": 5,
    "header_timeout": 5,
    "drain_timeout": 10,
    "upgrade_rate": 10,
    "upgrade_burst": 20,
    "max_connections_per_address": 64,
    "max_connections": 0,
    "limits_dry_run": False,
}
"""The defaults that the contract gives."""


class LimitsTests(Cases):
    @cases({name: (name, value) for name, value in CONTRACT.items()})
    def test_default(self, name: str, value: object) -> None:
        """A limit's default is the contract's."""
        self.assertEqual(getattr(Limits(), name), value)

    def test_frozen(self) -> None:
        """Nobody changes the limits of a running relay."""
        self.assertRaises(FrozenInstanceError, setattr, Limits(), "grace", 0)

    def test_envelope_allowance(self) -> None:
        """The allowance has room for the longest envelope, each of its bytes escaped.

        It is what the contract says, and it is above what the relay itself puts around a frame.
        """
        self.assertEqual(ENVELOPE_ALLOWANCE, 4096)
        server_id = '"' * MAX_SERVER_ID
        conn_id = f"client-{server_id}-01234567"
        escaped = "".join(f"\\u{ord(each):04x}" for each in conn_id)
        longest = f'{{"conn_id":"{escaped}","frame":,"close_code":65535}}'
        self.assertLess(len(longest), ENVELOPE_ALLOWANCE)
        self.assertLess(len(data_prefix(conn_id) + SUFFIX), ENVELOPE_ALLOWANCE)
        self.assertLess(len(close_notice(conn_id, 65535)), ENVELOPE_ALLOWANCE)


class TokenBucketTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()

    def buckets(self, rate: float = 1, burst: float = 3, max_keys: int = 10) -> TokenBuckets:
        """Return token buckets on this test's clock."""
        return TokenBuckets(rate, burst, self.clock.seconds, max_keys)

    def taken(self, buckets: TokenBuckets, key: object, tries: int) -> int:
        """Return how many of so many tries get a token."""
        return sum(buckets.take(key) for _ in range(tries))

    def test_burst(self) -> None:
        """A bucket that has not been used is full."""
        self.assertEqual(self.taken(self.buckets(), "a", 10), 3)

    def test_refill(self) -> None:
        """Tokens come back at the rate, as time goes on."""
        buckets = self.buckets(rate=2)
        self.taken(buckets, "a", 10)
        self.clock.advance(0.49)
        self.assertFalse(buckets.take("a"))
        self.clock.advance(0.02)
        self.assertTrue(buckets.take("a"))
        self.assertFalse(buckets.take("a"))

    def test_no_more_than_the_burst(self) -> None:
        """However long it takes, a bucket holds no more than the burst."""
        buckets = self.buckets()
        self.taken(buckets, "a", 10)
        self.clock.advance(1_000_000)
        self.assertEqual(self.taken(buckets, "a", 10), 3)

    def test_refused_tries_cost_nothing(self) -> None:
        """Whoever tries in vain all the time gets the token that comes nevertheless."""
        buckets = self.buckets(rate=0.1)
        self.taken(buckets, "a", 3)
        got = 0
        for _ in range(200):
            self.clock.advance(0.1)
            got += buckets.take("a")
        self.assertIn(got, {1, 2})

    def test_apart(self) -> None:
        """Each key has a bucket of its own."""
        buckets = self.buckets()
        self.taken(buckets, "a", 10)
        self.assertEqual(self.taken(buckets, "b", 10), 3)

    def test_bounded(self) -> None:
        """The number of keys in mind is bounded."""
        buckets = self.buckets(max_keys=10)
        for number in range(100):
            buckets.take(number)
        self.assertEqual(len(buckets), 10)

    def test_longest_unused_is_forgotten(self) -> None:
        """What is forgotten is the key unused for longest; one in use keeps its empty bucket."""
        buckets = self.buckets(burst=1, max_keys=3)
        buckets.take("busy")
        for number in range(20):
            buckets.take(number)
            self.assertFalse(buckets.take("busy"))
        self.assertTrue(buckets.take(0))

    def test_swept(self) -> None:
        """Buckets that are full again are swept away as another is used, and no others."""
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
        """The time that is said to be left until a token is what it takes, to the end."""
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
        """In no stretch of time does a key get more than the burst and what the rate adds.

        Nor less: a try after a pause in which a token has come is never in vain.
        """
        clock = Clock()
        # Sweeping takes nothing from anybody: the other keys are there to be swept.
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
