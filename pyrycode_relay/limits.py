"""Every number that bounds something, and the token buckets that bound a rate."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Final

ITEM_COST: Final = 64
"""Bytes added to the length of every queued item: roughly what CPython keeps for an object."""

ENVELOPE_ALLOWANCE: Final = 4096
"""Bytes by which a binary's message may pass ``max_message_bytes``: the envelope around a frame.

A ``conn_id`` with a 256-byte server-id, every byte escaped, stays below 2,000 bytes."""


class OnReclaim(enum.Enum):
    """What happens to the phones of a server-id when its binary comes back."""

    EVICT = "evict"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Limits:
    """The relay's numbers; the settings' help says what each is for. Times are in seconds."""

    grace: float = 30.0
    on_reclaim: OnReclaim = OnReclaim.EVICT
    max_phones: int = 16
    max_message_bytes: int = 262_144
    outbox_bytes: int = 4_194_304
    hold_bytes: int = 1_048_576
    memory_budget: int = 268_435_456
    write_stall: float = 30.0
    message_timeout: float = 30.0
    heartbeat_interval: float = 30.0
    heartbeat_timeout: float = 30.0
    probe_timeout: float = 10.0
    close_timeout: float = 5.0
    header_timeout: float = 5.0
    drain_timeout: float = 10.0
    send_buffer: int = 131_072
    upgrade_rate: float = 10.0
    """Each minute, of an address."""
    upgrade_burst: int = 20
    max_connections_per_address: int = 64
    max_connections: int = 0
    """0 is as many as the open files are enough for."""
    max_waiting: int = 0
    """0 is a share of the open files."""
    reserve_binaries: float = 0.1
    limits_dry_run: bool = False


class TokenBuckets:
    """One token bucket per key, bounded in number: the key longest unused is forgotten first.

    ``rate`` is in tokens per second, ``burst`` the size of a bucket, ``seconds`` the clock.
    Forgetting a key gives it a full bucket when it comes back, so ``max_keys`` must be large
    against the number of keys that matter at a time. Buckets that have had the time to fill up
    again are swept away as others are used, for nothing is lost with them.
    """

    def __init__(
        self, rate: float, burst: float, seconds: Callable[[], float], max_keys: int
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._max_keys = max_keys
        self._filled_after = burst / rate if rate else math.inf
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable) -> bool:
        """Take one token of ``key``; False when there is none."""
        now = self._seconds()
        tokens, then = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        self._sweep(now)
        return allowed

    def wait(self, key: Hashable) -> float:
        """Return in how many seconds there is a token of ``key``."""
        now = self._seconds()
        tokens, then = self._buckets.get(key, (self._burst, now))
        missing = 1 - tokens - (now - then) * self._rate
        return max(0.0, missing / self._rate) if self._rate else math.inf

    def _sweep(self, now: float) -> None:
        # The keys are in the order of their last use, so each is looked at once.
        for _, then in list(islice(self._buckets.values(), 2)):
            if now - then < self._filled_after:
                return
            self._buckets.popitem(last=False)
