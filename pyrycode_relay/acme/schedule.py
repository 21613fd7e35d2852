"""When to renew a certificate, and when to try again after a failure.

Pure functions of POSIX seconds and a random source. Sources: RFC 8555 for good manners, RFC 9773
for renewal information (ARI), and the limits that public CAs publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR

LOOK_EVERY: Final = 6 * HOUR
"""Seconds between looks at whether a renewal is due. RFC 9773 suggests this interval for renewal
information. Each look also notices a clock that was set, or a machine that slept."""

ADVICE_AGE: Final = DAY
"""Age in seconds before which the relay does not ask for a certificate's renewal information. So a
CA that always answers "renew now" gets one order a day, not one after another."""

UNREACHABLE: Final = 5.0
"""Seconds before the first retry if the CA could not be reached. The network may just be coming up,
and an attempt that the CA has not seen counts against no limit."""

REFUSED: Final = 120.0
"""Seconds before the first retry if the CA refused. Doubling from here makes five attempts in the
first hour: Let's Encrypt allows five failed validations of a name an hour."""

LONGEST_WAIT: Final = HOUR
"""The longest wait in seconds, unless the CA's Retry-After is longer. A six-day certificate has two
days left when its renewal begins, so it gets some 40 attempts."""

LONGEST_RETRY_AFTER: Final = DAY
"""The longest Retry-After in seconds that counts. One attempt a day harms no CA, and a CA must not
be able to switch renewal off by mistake."""

_RENEW_AT: Final = 2 / 3
"""Share of the lifetime after which a certificate is renewed, as Let's Encrypt recommends."""
_SPREAD: Final = 1 / 30
"""Share of the lifetime, before that point, over which renewals are spread: 3 days of 90. So relays
that were started together do not come to the CA together."""
_AT_LATEST: Final = 5 / 6
"""Share of the lifetime after which a certificate is renewed regardless of the CA's advice."""
_JITTER: Final = 0.25
"""Largest random extension of a wait, as a share of it. So relays that failed together do not retry
together."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The time in which a certificate is valid, in POSIX seconds."""

    start: float
    end: float

    def share(self, part: float) -> float:
        """Return the moment when ``part`` of the lifetime, from 0 to 1, is over."""
        return self.start + (self.end - self.start) * part


def due(lifetime: Lifetime, random: Random) -> float:
    """Return the moment of renewal if the CA suggests none."""
    return lifetime.share(random.uniform(_RENEW_AT - _SPREAD, _RENEW_AT))


def suggested(lifetime: Lifetime, moment: float) -> float:
    """Return the moment of renewal if the CA suggests ``moment``."""
    return min(moment, lifetime.share(_AT_LATEST))


def advice_due(lifetime: Lifetime) -> float:
    """Return the moment from which the relay may ask for renewal information."""
    return lifetime.start + ADVICE_AGE


def retry_in(failures: int, first_wait: float, retry_after: float, random: Random) -> float:
    """Return the seconds until the next attempt.

    Args:
        failures: Number of failures in a row, at least one.
        first_wait: Seconds to wait after the first failure. The wait doubles with each failure.
        retry_after: Seconds that the CA asked for, or 0. The wait is never shorter, up to
            `LONGEST_RETRY_AFTER`.
        random: Extends the wait.

    """
    # The exponent is bounded because floats end at 2**1024. The wait is the longest by then.
    doubled = first_wait * 2.0 ** min(failures - 1, 20)
    wait = min(doubled, LONGEST_WAIT) * random.uniform(1, 1 + _JITTER)
    asked = min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
    return max(wait, asked * random.uniform(1, 1 + _JITTER))
