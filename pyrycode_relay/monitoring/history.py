"""The relay's last hour in numbers, and the reactor's pulse that they are taken by.

One timer does both: it measures how late the reactor calls it, and every so often it takes a
sample of what the relay has. Neither is anywhere near a frame's way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pyrycode_relay.tally import Histogram

BEAT: Final = 0.5
"""Seconds between looks at the reactor's punctuality: two timers a second cost nothing, and a
reactor that is held up for longer than a second is seen for sure."""

BEATS: Final = 20
"""Beats from sample to sample: every 10 seconds, finer than a chart of an hour can show."""

SAMPLES: Final = 360
"""Samples that are kept: an hour of them, some 100 KiB."""

LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the reactor's lag, in seconds; from 0.1 on people can tell."""


class Reading(NamedTuple):
    """What the relay has at a moment, and what it has done in all until then."""

    binaries: int = 0
    phones: int = 0
    queue_bytes: int = 0
    frames_to_binaries: int = 0
    frames_to_phones: int = 0
    bytes_to_binaries: int = 0
    bytes_to_phones: int = 0
    refusals: int = 0


TOTALS: Final = Reading._fields[3:]
"""Those of a reading that only ever grow; a sample has them as a rate a second."""

SERIES: Final = (*Reading._fields, "lag")
"""What a sample has, in its order; the lag, in seconds, is the worst since the one before."""


class History:
    """Samples of the last hour; ``read`` gives what the relay has now.

    ``lag`` is filled with how late, in seconds, the reactor came to each beat.
    """

    def __init__(self, clock: IReactorTime, read: Callable[[], Reading], lag: Histogram) -> None:
        self.lag = lag
        self._clock = clock
        self._read = read
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=SAMPLES)
        self._marks = deque([(clock.seconds(), read())], maxlen=2)
        self._worst = 0.0
        self._beats = 0
        self._due = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to take samples: one now, so that there is something to see from the start."""
        self._take()
        self._plan()

    def stop(self) -> None:
        """Take no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _plan(self) -> None:
        self._due = self._clock.seconds() + BEAT
        self._timer = self._clock.callLater(BEAT, self._beat)

    def _beat(self) -> None:
        # A wall clock that was set back makes no lag below nothing.
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
        self._samples.append((now, tuple(round(value, 4) for value in sample)))
        self._marks.append((now, self._read()))
        self._worst = 0.0

    def latest(self) -> tuple[float, ...]:
        """Return what is now, in the order of `SERIES`; rates are of the last 10 to 20 seconds.

        Since the last sample alone it may be next to no time.
        """
        return self._since(self._marks[0])

    def _since(self, mark: tuple[float, Reading]) -> tuple[float, ...]:
        then, before = mark
        now = self._read()
        span = max(self._clock.seconds() - then, BEAT)
        rates = (max(0, getattr(now, n) - getattr(before, n)) / span for n in TOTALS)
        return (*now[: -len(TOTALS)], *rates, self._worst)

    def columns(self, wall: float) -> Mapping[str, list[float]]:
        """Return the samples by series, oldest first, and as ``time`` when each was taken.

        ``wall`` is the time now in seconds since 1970; the clock's own may be any.
        """
        offset = wall - self._clock.seconds()
        columns = {"time": [round(time + offset, 1) for time, _ in self._samples]}
        for index, name in enumerate(SERIES):
            columns[name] = [values[index] for _, values in self._samples]
        return columns
