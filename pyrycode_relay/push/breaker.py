"""A circuit breaker: pauses a provider after repeated failures."""

from __future__ import annotations

import enum
from collections.abc import Callable


class BreakerState(enum.Enum):
    """What a breaker lets through; the value is the word on the status page."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing."""
    HALF_OPEN = "half_open"
    """One try, whose end decides."""


class Breaker:
    """Opens after ``threshold`` failures in a row; after ``pause`` seconds it lets one try through.

    That try closes it again, or opens it for another pause. ``seconds`` is the clock.
    """

    def __init__(self, seconds: Callable[[], float], *, threshold: float, pause: float) -> None:
        self._seconds = seconds
        self._threshold = threshold
        self._pause = pause
        self._failures = 0
        self._retry_at: float | None = None
        """The time from which one try is let through; None if all are."""
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """The state now."""
        if self._retry_at is None:
            return BreakerState.CLOSED
        if self._trying or self._has_rested(self._retry_at):
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def allows(self) -> bool:
        """Whether a try may begin. One that does must end in one of the three other methods."""
        if self._retry_at is None:
            return True
        if self._trying or not self._has_rested(self._retry_at):
            return False
        self._trying = True
        return True

    def _has_rested(self, retry_at: float) -> bool:
        """Whether the pause is over. It also is if the clock was set back since its begin."""
        left = retry_at - self._seconds()
        return not 0 < left <= self._pause

    def succeeded(self) -> None:
        """Record that the provider works."""
        self._failures = 0
        self._retry_at = None
        self._trying = False

    def failed(self) -> None:
        """Record that the provider does not work."""
        self._failures += 1
        if self._trying or self._failures >= self._threshold:
            self._retry_at = self._seconds() + self._pause
        self._trying = False

    def undecided(self) -> None:
        """Record that a try ended and proves nothing about the provider."""
        self._trying = False
