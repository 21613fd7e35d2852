"""Token buckets: a rate for each key, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice


class TokenBuckets:
    """A token bucket for each key.

    When there are more than ``max_keys``, the key that was used least recently is forgotten. It
    has a full bucket when it comes back, so ``max_keys`` must be far above the number of keys in
    use at a time. A bucket that has filled up again holds no information and is removed while
    others are used.

    Args:
        rate: Tokens per second; 0 never adds one.
        burst: Tokens in a full bucket.
        seconds: The clock. While it is behind the time of a bucket, that bucket does not fill.
        max_keys: The largest number of buckets.

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
        """The tokens of each key and the time they were counted, least recently used first."""

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable) -> bool:
        """Take a token of ``key``. Returns False if the bucket is empty."""
        now = self._seconds()
        tokens, then = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        self._sweep(now)
        return allowed

    def wait(self, key: Hashable) -> float:
        """Return the seconds until ``key`` has a token."""
        now = self._seconds()
        tokens, then = self._buckets.get(key, (self._burst, now))
        missing = 1 - tokens - max(0.0, now - then) * self._rate
        return max(0.0, missing / self._rate) if self._rate else math.inf

    def _sweep(self, now: float) -> None:
        # Two at a time: faster than keys are added, and no pause however many there are.
        for _, then in list(islice(self._buckets.values(), 2)):
            if now - then < self._filled_after:
                return
            self._buckets.popitem(last=False)
