"""Plain integers, counted where things happen and read by whoever wants to know.

Counting is an addition and nothing else, so that it may stand on a frame's way; what the numbers
are called outside, and how they are shown, is the metrics' business.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

ROUND_TRIPS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a ping's round trip, in seconds: from the same machine to the time-out."""

UPGRADES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of an upgrade's duration, in seconds: from loopback to the header time-out."""


class Histogram:
    """How often a value was at most each of ``bounds``, and, last, how often above them all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value`` in the one bucket that it belongs to."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Pauses:
    """How often sockets were not read, how many are not, and for how long altogether."""

    __slots__ = ("_balance", "_shown", "begun", "under_way")

    def __init__(self) -> None:
        self.begun = 0
        self.under_way = 0
        self._balance = 0.0
        self._shown = 0.0

    def begin(self, now: float) -> None:
        """Note that the reading of a socket has stopped."""
        self.begun += 1
        self.under_way += 1
        self._balance -= now

    def end(self, now: float) -> None:
        """Note that one of those sockets is read again."""
        self.under_way -= 1
        self._balance += now

    def seconds(self, now: float) -> float:
        """Return the sum of all pauses, those under way up to ``now``.

        It never goes down, as a rounded sum of large times could by a hair, for a counter that
        goes down is one that has started anew.
        """
        self._shown = max(self._shown, self._balance + self.under_way * now)
        return self._shown


class LegTally:
    """What is counted of the connections of one kind: of binaries, or of phones."""

    __slots__ = ("pauses", "round_trips", "upgrades")

    def __init__(self) -> None:
        self.pauses = Pauses()
        self.round_trips = Histogram(ROUND_TRIPS)
        """Seconds from a ping to its pong."""
        self.upgrades = Histogram(UPGRADES)
        """Seconds from a connection's start to the end of its WebSocket handshake."""


FRAME: Final = 1 << 64
"""A frame, in a number that counts frames from this bit up and their bytes below it.

One number for both is one addition for a frame, and one place in memory to go to.
"""


class Traffic(NamedTuple):
    """Frames that came from phones and that went to them, and their bytes."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0


class PhoneTally(LegTally):
    """What is counted of phones: besides, what has come from them and gone to them."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        """In units of a `FRAME` and of a byte, as is `sent`."""
        self.sent = 0

    def traffic(self) -> Traffic:
        """Return the traffic of all phones there ever were."""
        return Traffic(*divmod(self.received, FRAME), *divmod(self.sent, FRAME))


class Tally:
    """Everything that is counted without an event to tell of it."""

    __slots__ = ("binaries", "phones")

    def __init__(self) -> None:
        self.binaries = LegTally()
        self.phones = PhoneTally()
