"""Plain numbers that connections count, and the metrics read.

Counting is a single addition, cheap enough for every frame. The metrics choose the names under
which the numbers are exported.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

ROUND_TRIPS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a ping's round trip, in seconds: from the same machine up to the time-out."""

UPGRADES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of an upgrade's duration, in seconds: from loopback up to the header time-out."""


class Histogram:
    """Counts of values by bucket.

    Each bucket is for values up to one of ``bounds``, inclusive; the last is for all above.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value`` in its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def above(self, bound: float) -> int:
        """Return how many values were above ``bound``, which is one of the bounds."""
        return sum(self.counts[self.bounds.index(bound) + 1 :])


class Pauses:
    """Pauses in reading sockets: how many began, how many are under way, and their total time."""

    __slots__ = ("_balance", "_shown", "begun", "under_way")

    def __init__(self) -> None:
        self.begun = 0
        self.under_way = 0
        self._balance = 0.0
        self._shown = 0.0

    def begin(self, now: float) -> None:
        """Count a socket that is no longer read."""
        self.begun += 1
        self.under_way += 1
        self._balance -= now

    def end(self, now: float) -> None:
        """Count a socket that is read again."""
        self.under_way -= 1
        self._balance += now

    def seconds(self, now: float) -> float:
        """Return the total time of all pauses, in seconds, counting those under way until ``now``.

        The result never decreases, because Prometheus takes a counter that decreases for one that
        was reset. Without the maximum, rounding could make it slightly smaller.
        """
        self._shown = max(self._shown, self._balance + self.under_way * now)
        return self._shown


class LegTally:
    """Counts for one leg: the binaries, or the phones."""

    __slots__ = ("pauses", "round_trips", "upgrades")

    def __init__(self) -> None:
        self.pauses = Pauses()
        self.round_trips = Histogram(ROUND_TRIPS)
        """Seconds from a ping to its pong."""
        self.upgrades = Histogram(UPGRADES)
        """Seconds from a connection's start to the end of its WebSocket handshake."""


FRAME: Final = 1 << 64
"""One frame, in a number that holds a count of frames from this bit up and their bytes below.

One number for both means one addition per frame, and one cache line.
"""


class Traffic(NamedTuple):
    """Frames and bytes from phones (in) and to phones (out)."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0


class PhoneTally(LegTally):
    """Counts for phones, which also include their frames and bytes."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        """Frames and bytes from phones, packed into one number; see `FRAME`."""
        self.sent = 0
        """Frames and bytes to phones, packed likewise."""

    def traffic(self) -> Traffic:
        """Return the traffic of all phones since the start."""
        return Traffic(*divmod(self.received, FRAME), *divmod(self.sent, FRAME))


class Tally:
    """All counts that no event reports."""

    __slots__ = ("binaries", "phones")

    def __init__(self) -> None:
        self.binaries = LegTally()
        self.phones = PhoneTally()
