"""Every number that bounds something, and the token buckets that bound a rate."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
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


class TokenBuckets:
    """One token bucket per key, bounded in number: the key longest unused is forgotten first.

    ``rate`` is in tokens per second, ``burst`` the size of a bucket, ``seconds`` the clock.
    Forgetting a key gives it a full bucket when it comes back, so ``max_keys`` must be large
    against the number of keys that matter at a time.
    """

    def __init__(
        self, rate: float, burst: float, seconds: Callable[[], float], max_keys: int
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._max_keys = max_keys
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
        return allowed
