"""What the registry and the endpoints need of a connection; it may be local or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.registry.drain_time import Pace
from pyrycode_relay.registry.queues import Payload


class Leg(Protocol):
    """A connection of either kind."""

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        """Close the connection for ``cause``, after what is queued or, without ``flush``, at once.

        Only the first close counts.
        """


class BinaryLeg(Leg, Protocol):
    """A binary's connection."""

    remote: str
    """The binary's address, for the log."""

    @property
    def writable(self) -> bool:
        """Whether a message can be written now, without a queue."""

    def send(self, *parts: Payload) -> None:
        """Write one message, given in parts."""

    def pace(self) -> Pace:
        """Return what the binary has taken lately of what was written to it."""

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Ask for a sign of life; call ``answered`` once with whether there was one in time."""


class PhoneLeg(Leg, Protocol):
    """A phone's connection."""

    traffic: int
    """Frames and bytes in both directions, packed into one number; see `tally.FRAME`."""

    def pause_reading(self) -> None:
        """Stop reading the socket; what the phone sends waits in its kernel."""

    def resume_reading(self) -> None:
        """Read the socket again."""

    def backlog_full(self) -> None:
        """Close the connection, because memory ran out and its queue was the slowest."""

    def deliver(self, frame: Payload) -> bool:
        """Send a frame, now or after what is queued. Returns False if that closed the phone."""

    def close_after_queue(self, close: Close) -> None:
        """Close the connection after everything that is queued."""
