"""An hour's history: rates, the reactor's lag, and that it is bounded."""

from __future__ import annotations

from twisted.internet.task import Clock

from pyrycode_relay.monitoring.history import BEAT, BEATS, LAGS, SAMPLES, SERIES, History, Reading
from pyrycode_relay.tally import Histogram
from tests.unit.bench import Cases

INTERVAL = BEAT * BEATS


def reading(*values: int) -> Reading:
    """Return a reading with these numbers; the process itself takes nothing."""
    traffic = ("frames_to_binaries", "frames_to_phones", "bytes_to_binaries", "bytes_to_phones")
    names = ("binaries", "phones", "queue_bytes", *traffic, "refusals")
    return Reading(**dict(zip(names, values, strict=True)))


class HistoryTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.reading = Reading()
        self.lag = Histogram(LAGS)
        self.history = History(self.clock, lambda: self.reading, self.lag)
        self.history.start()

    def beat(self, times: int = BEATS) -> None:
        self.clock.pump([BEAT] * times)

    def test_gauges_and_rates(self) -> None:
        """A sample has what there is, and what has been done since the last one, by the second."""
        self.reading = reading(2, 5, 77, 100, 50, 4000, 2000, 10)
        self.beat()
        self.reading = reading(3, 6, 0, 100, 70, 4000, 2000, 10)
        self.beat()
        columns = self.history.columns(5000.0)
        self.assertEqual(columns["time"], [5000.0 - 2 * INTERVAL, 5000.0 - INTERVAL, 5000.0])
        self.assertEqual((columns["binaries"], columns["phones"]), ([0, 2, 3], [0, 5, 6]))
        self.assertEqual(columns["queue_bytes"], [0, 77, 0])
        self.assertEqual(columns["frames_to_binaries"], [0, 100 / INTERVAL, 0])
        self.assertEqual(columns["frames_to_phones"], [0, 50 / INTERVAL, 20 / INTERVAL])
        self.assertEqual(columns["bytes_to_phones"], [0, 2000 / INTERVAL, 0])
        self.assertEqual(columns["refusals"], [0, 10 / INTERVAL, 0])

    def test_latest(self) -> None:
        """What is now is there before the first sample, and its rates are no jumps."""
        self.reading = Reading(phones=4, frames_to_phones=50)
        self.beat(BEATS // 2)
        latest = dict(zip(SERIES, self.history.latest(), strict=True))
        self.assertEqual(latest["phones"], 4)
        self.assertEqual(latest["frames_to_phones"], 50 / (INTERVAL / 2))
        self.beat(BEATS // 2)
        latest = dict(zip(SERIES, self.history.latest(), strict=True))
        self.assertEqual(latest["frames_to_phones"], 50 / INTERVAL)

    def test_lag(self) -> None:
        """A beat that comes late is counted as late, and a sample has the worst of its time."""
        self.beat(3)
        self.clock.advance(BEAT + 0.3)
        self.beat(BEATS - 4)
        self.beat()
        self.assertEqual(self.history.columns(0)["lag"], [0, 0.3, 0])
        self.assertEqual(sum(self.lag.counts), 2 * BEATS)
        self.assertEqual(self.lag.counts[LAGS.index(0.5)], 1)

    def test_a_clock_that_is_set_back(self) -> None:
        """Nothing is below zero when the clock jumps back."""
        self.reading = Reading(frames_to_phones=100)
        self.clock.rightNow -= 0.2
        self.beat()
        self.reading = Reading()
        self.beat()
        columns = self.history.columns(0)
        for name in SERIES:
            self.assertGreaterEqual(min(columns[name]), 0, name)

    def test_bounded(self) -> None:
        """No more than an hour is kept, the latest."""
        for number in range(SAMPLES + 5):
            self.reading = Reading(phones=number)
            self.beat()
        phones = self.history.columns(0)["phones"]
        self.assertEqual(phones, [*range(5, SAMPLES + 5)])

    def test_stop(self) -> None:
        """No timer is left behind."""
        self.history.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.history.stop()
