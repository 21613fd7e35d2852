"""How long a queue takes to drain, judged by what its peer has taken of it lately.

Source: "Flow control and liveness" in ``docs/protocol.md``.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

FAIR_START: Final = 2.0
"""Seconds in which a new queue is not judged by its peer alone: several round trips."""

FAIR_DRAIN_TIME: Final = 60.0
"""Seconds in which a new queue is expected to drain, whatever its peer has taken so far."""

FAIR_RATE: Final = 8192
"""Bytes a second that the peer of a new queue is expected to take, whatever it has taken so far."""

_LEAST_TIME: Final = 0.5
"""Seconds over which a rate is measured at least. What a peer's kernel takes in the first moments
says little about the peer."""


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
    round trip. So for the first `FAIR_START` seconds of its ``age``, a queue is expected to
    drain within `FAIR_DRAIN_TIME`, and at `FAIR_RATE` at least. The peer's measured pace can only
    improve on that. A new queue is thus better than that of a peer known to be slow, and worse
    than that of a peer known to be fast. A minute is more than a phone takes that reads 31 MB at
    1 MB/s: strangers who fill new queues and read nothing do not displace it. Small queues drain
    sooner, so that strangers' large ones are dropped first. The rate is low, so that strangers
    gain nothing if they spread their bytes over hundreds of new queues.
    """
    time = waiting * max(pace.seconds, _LEAST_TIME) / pace.taken if pace.taken > 0 else math.inf
    if age < FAIR_START:
        return min(time, FAIR_DRAIN_TIME, waiting / FAIR_RATE)
    return time
