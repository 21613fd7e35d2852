"""How long a queue takes to drain, judged by what its peer has taken of it lately.

Source: "Flow control and liveness" in ``docs/protocol.md``.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

FAIR_START: Final = 2.0
"""Seconds in which a queue is new: several round trips."""

FAIR_DRAIN_TIME: Final = 60.0
"""Seconds in which a queue that begins is expected to drain."""

FAIR_RATE: Final = 8192
"""Bytes a second that the peer of a queue that begins is expected to take at least."""

FAIR_LEAD: Final = 0.5
"""Seconds for which the expectation counts, as if they had been measured. A rate is measured over
so many seconds at least: what a peer's kernel takes in the first moments says little."""


class Pace(NamedTuple):
    """What a peer has acknowledged lately."""

    taken: int = 0
    """Bytes."""
    seconds: float = 0.0
    """Time in which it acknowledged them."""


class Intake:
    """Counts what a peer acknowledges, and forgets what it did not acknowledge lately.

    Lately is the current period and the one before. The caller begins a new period every few
    seconds, and passes the time in.
    """

    __slots__ = ("_before", "_period", "_since", "_taken")

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float, ahead: int = 0) -> None:
        """Forget everything: a queue begins.

        ``ahead`` is the number of bytes that were acknowledged before, and not added yet.
        """
        self._since = self._period = now
        self._before = 0
        self._taken = -ahead

    def add(self, taken: int) -> None:
        """Count ``taken`` more bytes as acknowledged."""
        self._taken += taken

    def next_period(self, now: float) -> None:
        """Begin a period; forget the one before the last."""
        self._since, self._period = self._period, now
        self._before, self._taken = self._taken, 0

    def pace(self, now: float, more: int) -> Pace:
        """Return what was acknowledged lately; ``more`` bytes are not added yet."""
        return Pace(self._before + self._taken + more, now - self._since)


def drain_time(waiting: int, pace: Pace, age: float) -> float:
    """Return the seconds in which ``waiting`` bytes drain, at the peer's recent pace.

    If the peer took nothing lately, that is infinite.

    A queue that has just begun says nothing about its peer: the first acknowledgement takes a
    round trip. So a queue has a fair start. It begins as if its peer had drained it at a fair rate
    for `FAIR_LEAD` seconds: within `FAIR_DRAIN_TIME`, and at `FAIR_RATE` at least. What the peer
    takes from then on, or does not take, soon outweighs that. From an ``age`` of `FAIR_START`
    seconds on, only the peer counts.

    A queue that begins thus drains sooner than that of a peer known to be slow, and later than
    that of a peer known to be fast. A minute is more than a phone needs that reads 31 MB at 1 MB/s:
    strangers who fill new queues and read nothing do not displace it. Small queues drain sooner, so
    that strangers' large ones are dropped first. The least rate is low, so that strangers gain
    nothing if they spread their bytes over hundreds of new queues.
    """
    if age < FAIR_START:
        expected = max(waiting / FAIR_DRAIN_TIME, FAIR_RATE) * FAIR_LEAD
        seconds = max(pace.seconds, age) + FAIR_LEAD
        return waiting * seconds / (max(pace.taken, 0) + expected)
    if pace.taken <= 0:
        return math.inf
    return waiting * max(pace.seconds, FAIR_LEAD) / pace.taken
