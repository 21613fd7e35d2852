"""An observer of the relay's events that keeps them for the test."""

from __future__ import annotations

from typing import Any

from pyrycode_relay.events import Event, Level, LineLimit


class Recorder:
    """Keeps every event with its fields, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, dict[str, Any]]] = []

    def saw(self, event: Event, **fields: object) -> None:
        """Keep an event."""
        self.events.append((event, fields))

    def of(self, event: Event) -> list[dict[str, Any]]:
        """Return the fields of every event of one kind."""
        return [fields for each, fields in self.events if each is event]

    def loud(self) -> list[Event]:
        """Return the events above debug, without those that the log bounds for all peers together.

        A scanner can cause these, and cannot fill the log.
        """
        return [
            event
            for event, _ in self.events
            if event.level > Level.DEBUG and event.line_limit is not LineLimit.TOTAL
        ]

    def clear(self) -> None:
        """Forget everything."""
        self.events.clear()
