"""Phones that have left lately.

A daemon can address a phone until it has read the close notice, and some answer the notice with a
directive. Such an envelope is late, and no mistake. The list is needed only once a phone was not
found, so a frame on its way does not touch it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from pyrycode_relay.limits import DEPARTURE_SECONDS, DEPARTURES


class RecentDepartures:
    """Remembers the ids of phones that have left, in bounded memory.

    Beyond `DEPARTURES`, the phone that left first is forgotten. ``seconds`` is the clock.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._left: OrderedDict[str, tuple[float, str]] = OrderedDict()
        """When each phone left, and its server-id, by ``conn_id``; in the order of leaving."""

    def __len__(self) -> int:
        return len(self._left)

    def add(self, server_id: str, conn_id: str) -> None:
        """Remember a phone that leaves now, and forget those that left too long ago."""
        left = self._left
        left.pop(conn_id, None)
        left[conn_id] = (self._seconds(), server_id)
        while len(left) > DEPARTURES or not self._recent(next(iter(left.values()))[0]):
            left.popitem(last=False)

    def has(self, server_id: str, conn_id: str) -> bool:
        """Whether a phone of ``server_id`` had ``conn_id``, and has left lately."""
        then, owner = self._left.get(conn_id, (0.0, None))
        return owner == server_id and self._recent(then)

    def _recent(self, then: float) -> bool:
        return self._seconds() - then < DEPARTURE_SECONDS
