"""Limits that hold over all workers: each counts its own connections, and reads the others'.

Without locks, workers that act within the same microseconds do not see each other:

- N workers may together let N - 1 connections in beyond a number, as each asks first and enters
  then; `Capacity` leaves files for them.
- Workers that take tokens of one address may count one too few, or one too many.

Nothing of that accumulates: every number here is a copy of what one process knows exactly.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from pyrycode_relay.addresses import limit_key
from pyrycode_relay.http.admission import Leg, Usage
from pyrycode_relay.http.shared_memory import SharedMemory, Total
from pyrycode_relay.limits import Limits

LOST_AFTER: Final = 60.0
"""Seconds after which a connection on its way no longer counts."""

UNCOUNTED: Final = 0
"""The ticket of a connection that counts only once it has arrived."""

_TOTALS: Final = {Leg.BINARY: Total.BINARY_CONNECTIONS, Leg.PHONE: Total.PHONE_CONNECTIONS}
_CACHED: Final = 4096
"""Addresses whose hash is remembered, some 300 bytes each."""
_ROUNDING: Final = 1e-6
"""Seconds that a token may come early: more than sums of floats are off."""
_MARK_BITS: Final = 16
"""Bits of a ticket for the mark; the others differ for every connection."""


class SharedLimits(Usage):
    """How much of the limits all workers use, as the worker ``index`` sees it.

    A bucket is the time at which it is full again, the latest of all workers' rows. A token moves
    it by the time in which the rate adds one.

    If an address finds no row, because connections of 16 others fill the worker's rows of its set,
    this worker counts it alone, and the others do not see its connections here. Nobody is refused
    for that. Addresses without connections make room for others.

    **Hand-over.** A worker that passes a connection to another calls `send` first, and sends the
    ticket along. The receiver enters the connection, and then calls `settle`. So does the sender
    if it cannot pass the connection on. In between, the connection counts.

    Args:
        memory: What the parent has made.
        index: This worker's; no other process with this index may run.
        limits: The same in all workers.
        seconds: The clock, which must be the same in all workers: CLOCK_MONOTONIC is.

    """

    def __init__(
        self, memory: SharedMemory, index: int, limits: Limits, seconds: Callable[[], float]
    ) -> None:
        super().__init__(limits, seconds)
        self._memory = memory
        self._index = index
        self._seconds = seconds
        self._interval = 60 / limits.upgrade_rate if limits.upgrade_rate else 0.0
        self._burst = limits.upgrade_burst * self._interval
        self._key = lru_cache(_CACHED)(memory.key)
        self._rows: dict[str, int] = {}
        """This worker's row of each key with connections here."""
        self._tickets = secrets.randbits(40)
        """The last ticket's number. Chance, so that a successor's differ."""
        self._swept = 0

    def take(self, key: str) -> float:
        """Take a token of a key. Returns 0, or the seconds until there is one."""
        if not self._interval:
            return 0
        memory, hashed, now = self._memory, self._key(key), self._seconds()
        seen = max((memory.due[row] for row in memory.rows(hashed)), default=0.0)
        # At most an empty bucket, whatever the memory holds.
        due = min(max(seen, now), now + self._burst)
        wait = due - now - (self._burst - self._interval)
        if wait > _ROUNDING:
            return wait
        row = memory.claim(self._index, hashed)
        if row is None:
            return super().take(key)
        mine = due + self._interval
        memory.due[row] = mine
        # If another worker has taken a token since, unaware of this one, both must count.
        late = max((memory.due[each] for each in memory.rows(hashed) if each != row), default=0.0)
        if late > seen and late != mine + self._interval:
            memory.due[row] = min(max(mine, late) + self._interval, now + self._burst)
        return 0

    def connections(self, key: str) -> int:
        """Return the number of connections of a key in all workers."""
        memory, hashed = self._memory, self._key(key)
        own = memory.own_rows(self._index, hashed)
        number = self.of_address.get(key, 0) + memory.on_their_way_of(hashed)
        for row in memory.rows(hashed):
            if row not in own:
                number += memory.counts[row]
        return number

    def totals(self) -> tuple[int, int]:
        """Return the number of binaries' and of phones' connections in all workers."""
        memory = self._memory
        binaries, phones = memory.on_their_way()
        return (
            binaries + memory.sum(Total.BINARY_CONNECTIONS),
            phones + memory.sum(Total.PHONE_CONNECTIONS),
        )

    def enter(self, leg: Leg, key: str) -> None:
        """Count a connection in this worker."""
        super().enter(leg, key)
        self._publish(leg, key)

    def leave(self, leg: Leg, key: str) -> None:
        """Stop counting a connection."""
        super().leave(leg, key)
        self._publish(leg, key)

    def _publish(self, leg: Leg, key: str) -> None:
        self._memory.publish(self._index, _TOTALS[leg], self.open[leg])
        number = self.of_address.get(key, 0)
        row = self._rows.get(key)
        if row is None:
            # For the first connection, and for every change while there is no row.
            row = self._memory.claim(self._index, self._key(key)) if number else None
            if row is None:
                return
            self._rows[key] = row
        self._memory.counts[row] = number
        if not number:
            del self._rows[key]

    def publish(self, *, binaries: int, phones: int) -> None:
        """Set the numbers of this worker that the parent adds up."""
        self._memory.publish(self._index, Total.BINARIES, binaries)
        self._memory.publish(self._index, Total.PHONES, phones)

    def send(self, leg: Leg, address: str, worker: int) -> int:
        """Count a connection on its way to another worker; return the ticket to send along.

        If too many are on their way to that worker, the ticket is `UNCOUNTED`: a receiver that
        stalls makes the numbers too small by what waits for it, and nobody is refused for it.
        """
        memory, now = self._memory, self._seconds()
        self._sweep(now)
        mark = memory.free_mark(self._index, worker)
        if mark is None:
            return UNCOUNTED
        self._tickets += 1
        ticket = self._tickets << _MARK_BITS | mark
        memory.tickets[mark] = ticket
        memory.since[mark] = now
        memory.travellers[mark] = self._key(limit_key(address)).word
        memory.legs[mark] = _TOTALS[leg] + 1
        return ticket

    def settle(self, ticket: int) -> None:
        """Stop counting a connection as on its way; a ticket that is settled changes nothing."""
        memory, mark = self._memory, ticket & (1 << _MARK_BITS) - 1
        if mark < len(memory.legs) and memory.tickets[mark] == ticket:
            memory.legs[mark] = 0

    def _sweep(self, now: float) -> None:
        """Free one of this worker's marks, in turn, if its connection has been lost."""
        memory = self._memory
        number = memory.workers * memory.depth
        self._swept = (self._swept + 1) % number
        level, receiver = divmod(self._swept, memory.workers)
        mark = (level * memory.workers + self._index) * memory.workers + receiver
        if memory.legs[mark] and now - memory.since[mark] > LOST_AFTER:
            memory.legs[mark] = 0
