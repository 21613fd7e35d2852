"""Samples of the last hour, and the reactor's lag.

One timer does both: each beat measures how late the reactor calls it, and every 20th beat takes a
sample. No frame passes through this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pyrycode_relay.tally import Histogram

BEAT: Final = 0.5
"""Seconds between two beats. Two timers a second cost next to nothing, and they always notice a
reactor that is blocked for more than a second."""

BEATS: Final = 20
"""Beats between two samples: 10 seconds, finer than a chart of an hour can show."""

SAMPLES: Final = 360
"""Samples kept: one hour, some 200 KiB."""

LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the reactor's lag, in seconds. People notice a lag of 0.1 or more."""


class Reading(NamedTuple):
    """The relay's gauges at one moment, and its totals since the start."""

    binaries: int = 0
    phones: int = 0
    queue_bytes: int = 0
    resident_bytes: int = 0
    frames_to_binaries: int = 0
    frames_to_phones: int = 0
    bytes_to_binaries: int = 0
    bytes_to_phones: int = 0
    refusals: int = 0
    cpu_seconds: float = 0
    pings_binaries: int = 0
    """Pings that binaries have answered."""
    ping_seconds_binaries: float = 0
    """The sum of their round trips."""
    pings_phones: int = 0
    ping_seconds_phones: float = 0


TOTALS: Final = Reading._fields[4:]
"""Fields of a reading that only grow. A sample has their rates per second instead."""

SERIES: Final = (*Reading._fields, "lag")
"""The values of a sample, in order. ``lag`` is the worst since the previous sample, in seconds."""


class History:
    """Samples of the last hour.

    Args:
        clock: Runs the timer.
        read: Returns the current reading.
        lag: Receives the delay of each beat, in seconds.
        sampled: Called after each sample.

    """

    def __init__(
        self,
        clock: IReactorTime,
        read: Callable[[], Reading],
        lag: Histogram,
        sampled: Callable[[], object] = lambda: None,
    ) -> None:
        self.lag = lag
        self._sampled = sampled
        self._clock = clock
        self._read = read
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=SAMPLES)
        self._marks = deque([(clock.seconds(), read())], maxlen=2)
        self._worst = 0.0
        self._beats = 0
        self._due = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Take the first sample now, then one every `BEATS` beats."""
        self._take()
        self._plan()

    def stop(self) -> None:
        """Stop taking samples."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _plan(self) -> None:
        self._due = self._clock.seconds() + BEAT
        self._timer = self._clock.callLater(BEAT, self._beat)

    def _beat(self) -> None:
        # If the wall clock was set back, the difference is negative.
        late = max(0.0, self._clock.seconds() - self._due)
        self.lag.observe(late)
        self._worst = max(self._worst, late)
        self._beats += 1
        self._plan()
        if self._beats % BEATS == 0:
            self._take()

    def _take(self) -> None:
        now = self._clock.seconds()
        sample = self._since(self._marks[-1])
        self._samples.append((now, tuple(_rounded(value) for value in sample)))
        self._marks.append((now, self._read()))
        self._worst = 0.0
        self._sampled()

    def latest(self) -> tuple[float, ...]:
        """Return the current values, in the order of `SERIES`.

        Rates are measured from the sample before the last one, over 10 to 20 seconds, because the
        last sample may have been taken just now.
        """
        return self._since(self._marks[0])

    def _since(self, mark: tuple[float, Reading]) -> tuple[float, ...]:
        then, before = mark
        now = self._read()
        span = max(self._clock.seconds() - then, BEAT)
        rates = (max(0, getattr(now, name) - getattr(before, name)) / span for name in TOTALS)
        return (*now[: -len(TOTALS)], *rates, self._worst)

    def worst_lag(self, wall: float) -> tuple[float, float]:
        """Return the worst lag of the last hour, and the end of its sample in seconds since 1970.

        ``wall`` is the current time.
        """
        offset = wall - self._clock.seconds()
        past = ((values[-1], time + offset) for time, values in self._samples)
        return max((self._worst, wall), *past)

    def columns(self, wall: float) -> Mapping[str, list[float]]:
        """Return the samples by series, oldest first, and their times as ``time``.

        ``wall`` is the current time, and all times are in seconds since 1970. The clock itself may
        have any origin.
        """
        offset = wall - self._clock.seconds()
        columns = {"time": [round(time + offset, 1) for time, _ in self._samples]}
        for index, name in enumerate(SERIES):
            columns[name] = [values[index] for _, values in self._samples]
        return columns


def _rounded(value: float) -> float:
    """Round to six digits, wherever the point is: a round trip's rate may be tiny."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
