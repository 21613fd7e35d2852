"""Who may open a WebSocket: a rate and a number for each address, and a number for all.

Asked before every upgrade, on every listener and path alike. Source: sections 1 and 5 of
``docs/protocol.md``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.limits import Limits, TokenBuckets

RETRY_AFTER: Final = 30
"""Seconds a client is asked to wait for a place: by then a heartbeat may have freed one."""

RATED_ADDRESSES: Final = 65_536
"""Addresses whose rate is kept in mind at a time, some 300 bytes each: 20 MB at most. Past it the
one longest unused is forgotten, which an attacker with more addresses than that may use."""

SPARE_FILES: Final = 192
"""Open files that are for no connection of a peer: listeners, the log, certificates, whoever looks
at the metrics, and what one burst of accepted sockets takes before the oldest are dropped."""
LEAST_FILES: Final = 384
"""Open files below which a relay is no use."""
MOST_CONNECTIONS: Final = 100_000
"""Connections that the relay allows itself where nobody says how many: at 4 KiB each they take
400 MiB, over TLS 2.7 GiB, and more than that one process should not take unasked."""
_MOST_WAITING: Final = 2048
_WAITING_SHARE: Final = 8
"""One open file of so many is for connections whose request has not come yet, up to that number:
at up to 16 KiB of headers each they may take 32 MiB, and 100 MiB with TLS handshakes begun."""


_SHARES: Final = 8
"""One address's share of the waiting places, once there are no more of them, is one in so many."""

T = TypeVar("T")


class Leg(enum.Enum):
    """Which side a connection is on."""

    BINARY = "binary"
    PHONE = "phone"


class Bound(enum.Enum):
    """What an upgrade may fail at; the value is the metrics' name for it."""

    RATE = "rate"
    ADDRESS = "address"
    TOTAL = "total"
    RESERVE = "reserve"
    """The total less what is kept for binaries, as far as there are not as many yet."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why an upgrade is one too many, and in how many seconds it may be tried again.

    Where it is not ``enforced`` it is for counting and for the log only.
    """

    bound: Bound
    retry_after: int
    enforced: bool


class CapacityError(ValueError):
    """Limits for which not enough files may be open; the text is a sentence with the fix."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections there is room for, among the files that may be open."""

    files: int
    ceiling: int
    """Connections that the open files are enough for."""
    connections: int
    reserved: int
    """Of them, how many are kept for binaries."""
    waiting: int
    """Connections besides whose request has not come yet."""

    @classmethod
    def within(cls, files: int, limits: Limits) -> Capacity:
        """Return the room that ``limits`` ask for, or as much as ``files`` open ones give.

        Raises `CapacityError` when that is not enough.
        """
        if files < LEAST_FILES:
            raise CapacityError(
                f"Only {files} files may be open, and a relay needs {LEAST_FILES}; raise the "
                "limit (ulimit -n, or LimitNOFILE= in a systemd unit)."
            )
        waiting = limits.max_waiting or min(_MOST_WAITING, files // _WAITING_SHARE)
        ceiling = files - SPARE_FILES - waiting
        connections = limits.max_connections or min(MOST_CONNECTIONS, ceiling)
        needed = max(connections, 1) + waiting + SPARE_FILES
        if needed > files:
            raise CapacityError(
                f"--max-connections={limits.max_connections} and --max-waiting={waiting} need "
                f"{needed} open files, and {files} are allowed; lower them or raise the limit "
                "(ulimit -n, or LimitNOFILE= in a systemd unit)."
            )
        reserved = int(connections * limits.reserve_binaries)
        return cls(files, ceiling, connections, reserved, waiting)

    def __str__(self) -> str:
        """Return a sentence for the log."""
        return (
            f"room for {self.connections} connections, {self.reserved} of them kept for binaries; "
            f"{self.files} files may be open"
        )


class Place:
    """A connection's place among those that are counted; it has to be left once."""

    __slots__ = ("_admission", "_key", "_leg")

    def __init__(self, admission: Admission, leg: Leg, key: str) -> None:
        self._admission = admission
        self._leg = leg
        self._key = key

    def leave(self) -> None:
        """Make room for another."""
        self._admission._left(self._leg, self._key)


class WaitingRoom(Generic[T]):
    """Those who have come and not said yet what they want: at most ``places`` of them.

    Iterating gives them in the order of their coming. Of one too many somebody has to go, and
    it is never he who has just come, for whoever means it soon speaks. It is the oldest of the
    newcomer's own address where that has more than its share, so that one that floods pays
    itself; else it is the oldest of all.
    """

    def __init__(self, places: int) -> None:
        self.crowded_out = 0
        """How many had to go."""
        self._places = places
        self._share = max(1, places // _SHARES)
        self._keys: dict[T, str] = {}
        self._of_address: dict[str, dict[T, None]] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def enter(self, who: T, address: str) -> T | None:
        """Take somebody in; return who has to go for it, and is not here any more."""
        key = limit_key(address)
        self._keys[who] = key
        same = self._of_address.setdefault(key, {})
        same[who] = None
        if len(self._keys) <= self._places:
            return None
        oldest = next(iter(same if len(same) > self._share else self._keys))
        self.leave(oldest)
        self.crowded_out += 1
        return oldest

    def leave(self, who: T) -> None:
        """Let somebody go, who may have gone."""
        key = self._keys.pop(who, None)
        if key is None:
            return
        same = self._of_address[key]
        del same[who]
        if not same:
            del self._of_address[key]


class Admission:
    """Counts upgrades and connections, and says which are too many.

    ``seconds`` is the clock. Addresses are told apart as `limit_key` does. Peers on a UNIX
    socket have none, and only the total is for them: whoever may open that socket is let in by
    its permissions.
    """

    def __init__(self, limits: Limits, capacity: Capacity, seconds: Callable[[], float]) -> None:
        self.capacity = capacity
        self.denied = dict.fromkeys(Bound, 0)
        """How many upgrades failed at each bound, or would have in a dry run."""
        self.open = dict.fromkeys(Leg, 0)
        """How many connections there are of each kind."""
        self._limits = limits
        self._rate: TokenBuckets | None = None
        if limits.upgrade_rate:
            per_second = limits.upgrade_rate / 60
            self._rate = TokenBuckets(per_second, limits.upgrade_burst, seconds, RATED_ADDRESSES)
        self._of_address: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many connections there are."""
        return sum(self.open.values())

    @property
    def addresses(self) -> int:
        """How many addresses' rates are kept in mind."""
        return 0 if self._rate is None else len(self._rate)

    def ask(self, leg: Leg, address: str) -> Denial | None:
        """Count an attempt to upgrade; return why it is one too many, None when it is not."""
        found = self._bound(leg, address)
        if found is None:
            return None
        bound, retry_after = found
        self.denied[bound] += 1
        # A dry run is no reason to run out of descriptors.
        enforced = not self._limits.limits_dry_run or self.total >= self.capacity.ceiling
        return Denial(bound, retry_after, enforced)

    def _bound(self, leg: Leg, address: str) -> tuple[Bound, int] | None:
        if address != UNIX:
            key = limit_key(address)
            if self._rate is not None and not self._rate.take(key):
                return Bound.RATE, max(1, math.ceil(self._rate.wait(key)))
            most = self._limits.max_connections_per_address
            if most and self._of_address.get(key, 0) >= most:
                return Bound.ADDRESS, RETRY_AFTER
        free = self.capacity.connections - self.total
        if free <= 0:
            return Bound.TOTAL, RETRY_AFTER
        kept = max(0, self.capacity.reserved - self.open[Leg.BINARY])
        if leg is Leg.PHONE and free <= kept:
            return Bound.RESERVE, RETRY_AFTER
        return None

    def enter(self, leg: Leg, address: str) -> Place:
        """Count a connection, until its place is left."""
        key = limit_key(address)
        self.open[leg] += 1
        self._of_address[key] = self._of_address.get(key, 0) + 1
        return Place(self, leg, key)

    def _left(self, leg: Leg, key: str) -> None:
        self.open[leg] -= 1
        others = self._of_address.pop(key) - 1
        if others:
            self._of_address[key] = others
