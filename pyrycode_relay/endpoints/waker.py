"""The interface between the binaries' endpoint and push, and its stand-in while push is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyrycode_relay.events import Event, Observer
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal, WakeRequest

Answer = Callable[[WakeOutcome], None]
"""Receives the outcome of a wake exactly once, at once or later. It must not raise."""


class Waker(Protocol):
    """Sends push messages that wake phones."""

    def wake(
        self, server_id: str, remote: str, request: WakeRequest | None, answer: Answer | None
    ) -> None:
        """Send a wake, or refuse it with an event. Never blocks and never raises.

        ``request`` is None if the binary's request is malformed, ``answer`` if the binary does not
        ask for the outcome.
        """


class PushOff:
    """The `Waker` of a relay without push: it refuses every wake."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def wake(
        self,
        server_id: str,
        remote: str,
        request: WakeRequest | None,  # noqa: ARG002
        answer: Answer | None,
    ) -> None:
        """Refuse a wake."""
        self._observer.saw(
            Event.PUSH_WAKE_DROPPED, server_id=server_id, remote=remote, reason=WakeRefusal.OFF
        )
        if answer is not None:
            answer(WakeOutcome.DROPPED)
