"""Tallies: histograms, the traffic of phones, and pauses whose sum never goes down."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.tally import FRAME, Histogram, Pauses, PhoneTally
from tests.unit.bench import Cases, examples


class HistogramTests(Cases):
    def test_buckets(self) -> None:
        """A value on a bound belongs to it, and one above them all to the last bucket."""
        histogram = Histogram((1.0, 2.0))
        for value in (0.0, 1.0, 1.5, 2.0, 2.5, 100.0):
            histogram.observe(value)
        self.assertEqual(histogram.counts, [2, 2, 2])
        self.assertEqual(histogram.sum, 107.0)

    @examples(100)
    @given(st.lists(st.floats(0, 100), max_size=50))
    def test_every_value_counts_once(self, values: list[float]) -> None:
        """Each value is in just one bucket, that of the least bound that it does not pass."""
        histogram = Histogram((0.5, 1.0, 10.0))
        for value in values:
            histogram.observe(value)
        expected = [0] * 4
        for value in values:
            expected[bisect_left((0.5, 1.0, 10.0), value)] += 1
        self.assertEqual(histogram.counts, expected)


class TrafficTests(Cases):
    @examples(100)
    @given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40))))
    def test_sum(self, sizes: list[tuple[int, int]]) -> None:
        """However many frames of whatever size, their numbers and their bytes stay apart."""
        tally = PhoneTally()
        for received, sent in sizes:
            tally.received += FRAME + received
            tally.sent += 2 * FRAME + sent
        count, sums = len(sizes), [sum(each) for each in zip(*sizes, strict=True)] or [0, 0]
        self.assertEqual(tally.traffic(), (count, sums[0], 2 * count, sums[1]))

    def test_bytes_are_no_frames(self) -> None:
        """However many bytes there are, exabytes of them, none of them is a frame."""
        tally, size = PhoneTally(), 2**61
        tally.received, tally.sent = 3 * (FRAME + size), 5 * (FRAME + size) + 7
        self.assertEqual(tally.traffic(), (3, 3 * size, 5, 5 * size + 7))


class PauseTests(Cases):
    def test_sum(self) -> None:
        """Pauses that overlap add up, and those under way count up to now."""
        pauses = Pauses()
        pauses.begin(10)
        pauses.begin(12)
        self.assertEqual((pauses.begun, pauses.under_way, pauses.seconds(13)), (2, 2, 4))
        pauses.end(14)
        self.assertEqual((pauses.begun, pauses.under_way, pauses.seconds(15)), (2, 1, 7))
        pauses.end(15)
        self.assertEqual((pauses.under_way, pauses.seconds(99)), (0, 7))

    @examples(100)
    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e3)), max_size=60))
    def test_never_down(self, steps: list[tuple[bool, float]]) -> None:
        """However pauses begin and end, at times as large as a clock's, the sum only grows."""
        pauses, now, exact, before = Pauses(), 1.8e9, 0.0, 0.0
        for begins, delay in steps:
            exact += pauses.under_way * delay
            now += delay
            if begins:
                pauses.begin(now)
            elif pauses.under_way:
                pauses.end(now)
            after = pauses.seconds(now)
            self.assertGreaterEqual(after, before)
            self.assertLess(abs(after - exact), 0.001)
            before = after
