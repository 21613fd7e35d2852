"""Limits on WebSocket connections: a rate and a number per address, and a number in total.

They apply before every upgrade, on every listener and path alike. Source: sections 1 and 5 of
``docs/protocol.md``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.limits import Limits
from pyrycode_relay.token_buckets import TokenBuckets

RETRY_AFTER: Final = 30
"""Seconds after which a client may ask for a place again: one heartbeat, which may free one."""

RATED_ADDRESSES: Final = 65_536
"""Addresses whose rate is remembered, some 300 bytes each: 20 MB at most.

Beyond that the relay forgets the address that was unused for the longest time. An attacker with
more addresses than this evades the rate.
"""


class Leg(enum.Enum):
    """Which side a connection is on."""

    BINARY = "binary"
    PHONE = "phone"


class Bound(enum.Enum):
    """A limit that an upgrade can exceed: its label in the metrics, and the text in the log."""

    RATE = ("rate", "too many upgrades from this address")
    ADDRESS = ("address", "too many connections from this address")
    TOTAL = ("total", "too many connections")
    RESERVE = ("reserve", "the remaining places are reserved for binaries")

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.text = text

    def __str__(self) -> str:
        return self.text


class Enforcement(enum.Enum):
    """Whether the relay refuses an upgrade that exceeds a limit; the value is the log's text."""

    ENFORCED = "enforced"
    DRY_RUN = "dry run"
    """The relay only counts and logs the upgrade."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Denial:
    """An upgrade exceeds a limit."""

    bound: Bound
    retry_after: int
    """Seconds after which the client may try again."""
    enforcement: Enforcement


class Usage:
    """How much of the limits is in use, in a relay of one process.

    A key is a `limit_key`. ``seconds`` is the clock.
    """

    def __init__(self, limits: Limits, seconds: Callable[[], float]) -> None:
        self.open = dict.fromkeys(Leg, 0)
        """Connections of each kind in this process."""
        self.of_address: dict[str, int] = {}
        """Connections of each key in this process."""
        self._rate: TokenBuckets | None = None
        if limits.upgrade_rate:
            per_second = limits.upgrade_rate / 60
            self._rate = TokenBuckets(per_second, limits.upgrade_burst, seconds, RATED_ADDRESSES)

    def take(self, key: str) -> float:
        """Take a token of a key. Returns 0, or the seconds until there is one."""
        if self._rate is None or self._rate.take(key):
            return 0
        return self._rate.wait(key)

    def connections(self, key: str) -> int:
        """Return the number of connections of a key."""
        return self.of_address.get(key, 0)

    def totals(self) -> tuple[int, int]:
        """Return the number of binaries' and of phones' connections."""
        return self.open[Leg.BINARY], self.open[Leg.PHONE]

    def enter(self, leg: Leg, key: str) -> None:
        """Count a connection in this process."""
        self.open[leg] += 1
        self.of_address[key] = self.of_address.get(key, 0) + 1

    def leave(self, leg: Leg, key: str) -> None:
        """Stop counting a connection."""
        self.open[leg] -= 1
        others = self.of_address.pop(key) - 1
        if others:
            self.of_address[key] = others


class Place:
    """One connection, counted; `leave` must be called exactly once."""

    __slots__ = ("_key", "_leg", "_usage")

    def __init__(self, usage: Usage, leg: Leg, key: str) -> None:
        self._usage = usage
        self._leg = leg
        self._key = key

    def leave(self) -> None:
        """Free the place for another connection."""
        self._usage.leave(self._leg, self._key)


class Admission:
    """Counts upgrades and connections, and denies those that exceed a limit.

    Addresses with the same `limit_key` count as one. Only the total applies to peers on a UNIX
    socket: they have no address, and the socket's permissions decide who may connect.
    """

    def __init__(self, limits: Limits, capacity: Capacity, usage: Usage) -> None:
        self.capacity = capacity
        self.usage = usage
        self.denied = dict.fromkeys(Bound, 0)
        """Upgrades that exceeded each limit, dry runs included."""
        self._limits = limits

    @property
    def open(self) -> Mapping[Leg, int]:
        """Connections of each kind in this process."""
        return self.usage.open

    @property
    def total(self) -> int:
        """Connections of both kinds, in all workers."""
        return sum(self.usage.totals())

    def ask(self, leg: Leg, address: str) -> Denial | None:
        """Count an attempt to upgrade; return the limit that it exceeds, if any."""
        exceeded = self._exceeded(leg, address)
        if exceeded is None:
            return None
        bound, retry_after = exceeded
        self.denied[bound] += 1
        # Even in a dry run the process must not run out of open files.
        enforced = not self._limits.limits_dry_run or self.total >= self.capacity.ceiling
        return Denial(bound, retry_after, Enforcement.ENFORCED if enforced else Enforcement.DRY_RUN)

    def _exceeded(self, leg: Leg, address: str) -> tuple[Bound, int] | None:
        if address != UNIX:
            key = limit_key(address)
            wait = self.usage.take(key)
            if wait:
                return Bound.RATE, max(1, math.ceil(wait))
            most = self._limits.max_connections_per_address
            if most and self.usage.connections(key) >= most:
                return Bound.ADDRESS, RETRY_AFTER
        binaries, phones = self.usage.totals()
        free = self.capacity.connections - binaries - phones
        if free <= 0:
            return Bound.TOTAL, RETRY_AFTER
        if leg is Leg.PHONE and free <= max(0, self.capacity.reserved - binaries):
            return Bound.RESERVE, RETRY_AFTER
        return None

    def enter(self, leg: Leg, address: str) -> Place:
        """Count a connection in this process until its place is left."""
        key = limit_key(address)
        self.usage.enter(leg, key)
        return Place(self.usage, leg, key)
