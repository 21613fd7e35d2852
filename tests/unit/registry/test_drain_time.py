"""How long a queue takes to drain, by what its peer has taken lately."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.registry.drain_time import (
    FAIR_DRAIN_TIME,
    FAIR_RATE,
    FAIR_START,
    Intake,
    Pace,
    drain_time,
)
from tests.unit.bench import Cases, cases, examples

MIB = 2**20
BURST = 31_000_000
"""Bytes of an attachment, as a daemon sends it at once."""
OLD = 100.0
DEAD = Pace(0, 5.0)


class IntakeTests(Cases):
    def test_within_a_period(self) -> None:
        """What was acknowledged since the start counts, with what is not added yet."""
        intake = Intake(100.0)
        self.assertEqual(intake.pace(100.0, 0), (0, 0.0))
        intake.add(30)
        intake.add(12)
        self.assertEqual(intake.pace(102.0, 8), (50, 2.0))
        self.assertEqual(intake.pace(102.0, 0), (42, 2.0), "to ask changes nothing")

    def test_two_periods_count(self) -> None:
        """This period and the one before count; everything earlier is forgotten."""
        intake = Intake(0.0)
        for period, taken in enumerate((1000, 200, 30)):
            intake.add(taken)
            intake.next_period(2.0 * (period + 1))
        intake.add(4)
        self.assertEqual(intake.pace(7.0, 0), (34, 3.0))

    def test_nothing_lately(self) -> None:
        """A peer that stops has taken nothing lately once two periods have gone by."""
        intake = Intake(0.0)
        intake.add(1_000_000)
        intake.next_period(2.5)
        self.assertEqual(intake.pace(4.0, 0).taken, 1_000_000)
        intake.next_period(5.0)
        self.assertEqual(intake.pace(5.0, 0), (0, 2.5))

    def test_a_queue_begins(self) -> None:
        """What was acknowledged before a queue began does not count, added or not."""
        intake = Intake(0.0)
        intake.add(500)
        intake.next_period(2.0)
        intake.restart(3.0, ahead=70)
        self.assertEqual(intake.pace(3.0, 70), (0, 0.0))
        self.assertEqual(intake.pace(4.0, 75), (5, 1.0))


class DrainTimeTests(Cases):
    def test_at_the_recent_pace(self) -> None:
        """The time is the bytes that wait by the peer's recent rate."""
        self.assertEqual(drain_time(10 * MIB, Pace(5 * MIB, 2.5), OLD), 5.0)

    def test_nothing_taken(self) -> None:
        """A peer that took nothing lately takes for ever, be its queue ever so small."""
        self.assertEqual(drain_time(65, DEAD, OLD), math.inf)
        self.assertEqual(drain_time(65, Pace(-5, 2.5), OLD), math.inf)

    def test_first_moments(self) -> None:
        """A rate is measured over half a second at least: a peer's kernel takes the first bytes."""
        self.assertEqual(
            drain_time(MIB, Pace(MIB, 0.001), OLD), drain_time(MIB, Pace(MIB, 0.5), OLD)
        )

    def test_a_new_queue_has_a_fair_start(self) -> None:
        """A new queue is not that of a dead peer, but the longer its peer takes nothing, the worse
        off it is; from then on its peer alone counts."""
        times = [drain_time(BURST, Pace(), age) for age in (0.0, 0.5, 1.0, 1.9, FAIR_START)]
        self.assertEqual(times[0], FAIR_DRAIN_TIME)
        self.assertEqual(times, sorted(times))
        self.assertLess(times[-2], 10 * FAIR_DRAIN_TIME)
        self.assertEqual(times[-1], math.inf)

    def test_a_new_queue_of_a_reader(self) -> None:
        """What the peer takes of a new queue soon counts for more than the start."""
        self.assertLess(drain_time(BURST, Pace(100_000, 0.1), 0.1), FAIR_DRAIN_TIME)
        self.assertLess(drain_time(BURST, Pace(1_500_000, 1.5), 1.5), 40.0)
        self.assertLess(drain_time(BURST, Pace(18_000_000, 1.5), 1.5), 4.0)

    def test_a_small_new_queue(self) -> None:
        """A small new queue drains soon: it is not dropped before large ones."""
        self.assertEqual(drain_time(2 * FAIR_RATE, Pace(), 0.0), 2.0)

    @cases({
        "one": (BURST, Pace(5_000_000, 5.0)),
        "three": (BURST, Pace(15_000_000, 5.0)),
        "twelve": (BURST, Pace(60_000_000, 5.0)),
        "full": (64 * MIB, Pace(15_000_000, 5.0)),
    })  # fmt: skip
    def test_a_reader_stays_before(self, waiting: int, pace: Pace) -> None:
        """A phone that reads is better off than strangers who fill the budget and do not, whether
        their queues are old or new, and whether they are 4 or 500."""
        honest = drain_time(waiting, pace, OLD)
        for queues in (4, 20, 64, 500):
            share = 256 * MIB // queues
            for pace_of_strangers, age in ((DEAD, OLD), (DEAD, 0.1), (Pace(5_000, 5.0), OLD)):
                self.assertLess(honest, drain_time(share, pace_of_strangers, age), queues)

    def test_two_bursts(self) -> None:
        """Of two new queues that of the phone that reads is better off, though it is larger and
        the other one smaller, from the first moments on."""
        for age in (0.1, 0.5, 1.0, 1.9):
            honest = drain_time(BURST, Pace(int(1_000_000 * age), age), age)
            for waiting in (4 * MIB, 12 * MIB):
                for rate in (0, 1024):
                    pace = Pace(int(rate * age), age)
                    self.assertLess(honest, drain_time(waiting, pace, age), (age, waiting, rate))

    def test_a_new_burst_stays_before_slow_readers(self) -> None:
        """A burst of which nothing is acknowledged yet is better off than old queues of peers that
        read little, or nothing."""
        burst = drain_time(BURST, Pace(0, 0.1), 0.1)
        for pace in (DEAD, Pace(5_000, 5.0), Pace(500_000, 5.0)):
            self.assertLess(burst, drain_time(12 * MIB, pace, OLD))

    @examples(100)
    @given(
        st.integers(65, 1 << 28),
        st.integers(0, 1 << 28),
        st.floats(0, 10),
        st.floats(0, 100),
    )
    def test_more_is_never_better(
        self, waiting: int, taken: int, seconds: float, age: float
    ) -> None:
        """A longer queue drains no sooner, a faster peer's no later."""
        time = drain_time(waiting, Pace(taken, seconds), age)
        self.assertGreater(time, 0)
        self.assertGreaterEqual(drain_time(2 * waiting, Pace(taken, seconds), age), time)
        self.assertLessEqual(drain_time(waiting, Pace(2 * taken, seconds), age), time)
