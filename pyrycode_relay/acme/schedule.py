"""When a certificate is renewed, and when to try again after a failure.

Pure functions of POSIX seconds, handed a source of chance. Sources: RFC 8555 for the protocol's
manners, RFC 9773 for renewal information (ARI), and the limits that public CAs publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR

LOOK_EVERY: Final = 6 * HOUR
"""Seconds between looks at whether a renewal is due: RFC 9773 asks about so often for renewal
information, and a clock that was set, or a machine that slept, is noticed as soon."""

ADVICE_AGE: Final = DAY
"""Age in seconds below which a certificate's renewal information is not asked for: a CA that
always answers "renew now" gets one order a day, not one after another."""

UNREACHABLE: Final = 5.0
"""Seconds before a CA that did not answer is tried again: the network may just be coming up, and
an attempt that no CA has seen counts against no limit."""

REFUSED: Final = 120.0
"""Seconds before the next attempt when the CA has said no. Doubling from here makes five attempts
in the first hour: Let's Encrypt allows five failed validations of a name an hour."""

LONGEST_WAIT: Final = HOUR
"""Where the doubling ends, but for a CA's own Retry-After: a certificate of six days has two days
left when its renewal begins, and gets some 40 attempts."""

LONGEST_RETRY_AFTER: Final = DAY
"""The most of a Retry-After that is honoured: one attempt a day harms no CA, and a CA must not be
able to switch renewal off by mistake."""

_RENEW_AT: Final = 2 / 3
"""Share of the lifetime after which a certificate is renewed: what Let's Encrypt recommends."""
_SPREAD: Final = 1 / 30
"""Share of the lifetime over which renewals are spread, before that point: three days of ninety,
so that relays started together do not come to the CA together."""
_AT_LATEST: Final = 5 / 6
"""Share of the lifetime after which a certificate is renewed whatever the CA suggests."""
_JITTER: Final = 0.25
"""Share of a wait by which it may be longer, so that relays that failed together do not come
back together."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From when to when a certificate is good, in POSIX seconds."""

    start: float
    end: float

    def share(self, part: float) -> float:
        """Return the moment at which ``part`` of the lifetime is over."""
        return self.start + (self.end - self.start) * part


def due(lifetime: Lifetime, random: Random) -> float:
    """Return the moment of renewal for a CA that suggests none."""
    return lifetime.share(random.uniform(_RENEW_AT - _SPREAD, _RENEW_AT))


def suggested(lifetime: Lifetime, moment: float) -> float:
    """Return the moment of renewal for a CA that suggests ``moment``."""
    return min(moment, lifetime.share(_AT_LATEST))


def advice_due(lifetime: Lifetime) -> float:
    """Return the moment from which renewal information may be asked for."""
    return lifetime.start + ADVICE_AGE


def retry_in(failures: int, first: float, retry_after: float, random: Random) -> float:
    """Return the seconds until the next attempt after ``failures`` in a row, at least one.

    ``first`` is the wait after the first failure; it doubles with each. ``retry_after`` is what
    the CA asked for, 0 for nothing; the wait is never shorter, up to `LONGEST_RETRY_AFTER`.
    """
    # The exponent is held where the wait has long been the longest: floats end at 2**1024.
    doubled = first * 2.0 ** min(failures - 1, 20)
    wait = min(doubled, LONGEST_WAIT) * random.uniform(1, 1 + _JITTER)
    asked = min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
    return max(wait, asked * random.uniform(1, 1 + _JITTER))
