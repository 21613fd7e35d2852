"""Passes each event on to every observer."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import Logger

from pyrycode_relay.events import Event, Observer

_bugs = Logger()


class EventBus:
    """An `Observer` that passes each event on to its observers, in the order they were added.

    An observer that raises loses that event. The bug is logged with its traceback; the other
    observers, and the code that reported the event, do not notice.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def add(self, observer: Observer) -> None:
        """Pass events on to one more observer."""
        self._observers += (observer,)

    def saw(self, event: Event, **fields: object) -> None:
        """Pass on an event."""
        for observer in self._observers:
            try:
                observer.saw(event, **fields)
            except Exception:
                _bugs.failure("a bug costs one observer this event")
