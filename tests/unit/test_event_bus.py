"""The event bus: every observer gets every event, and a bug in one costs nobody else."""

from __future__ import annotations

from pyrycode_relay.event_bus import EventBus
from pyrycode_relay.events import Event
from tests.unit.bench import Cases


class Note:
    """An observer that notes what it saw, in a list that several may share."""

    def __init__(self, name: str, notes: list[tuple[str, Event, dict[str, object]]]) -> None:
        self.name = name
        self.notes = notes

    def saw(self, event: Event, **fields: object) -> None:
        self.notes.append((self.name, event, fields))


class Broken:
    """An observer with a bug."""

    def saw(self, event: Event, **fields: object) -> None:
        raise ZeroDivisionError


class EventBusTests(Cases):
    def setUp(self) -> None:
        self.notes: list[tuple[str, Event, dict[str, object]]] = []

    def note(self, name: str) -> Note:
        """Return an observer that notes events under ``name``."""
        return Note(name, self.notes)

    def test_everyone(self) -> None:
        """Observers get an event with its fields, in order, also one that was added later."""
        bus = EventBus([self.note("a"), self.note("b")])
        bus.add(self.note("c"))
        bus.saw(Event.DRAINED, version="1")
        self.assertEqual(
            self.notes, [(name, Event.DRAINED, {"version": "1"}) for name in ("a", "b", "c")]
        )

    def test_nobody(self) -> None:
        """Events without an observer go nowhere."""
        EventBus().saw(Event.DRAINED)

    def test_bug(self) -> None:
        """An observer that raises loses that event, with a traceback; the others get it."""
        bus = EventBus([Broken(), self.note("a")])
        bus.saw(Event.STARTING)
        bus.saw(Event.DRAINING)
        self.assertEqual([event for _, event, _ in self.notes], [Event.STARTING, Event.DRAINING])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_bus_of_buses(self) -> None:
        """A bus is an observer itself."""
        EventBus([EventBus([self.note("a")])]).saw(Event.DRAINED)
        self.assertEqual(self.notes, [("a", Event.DRAINED, {})])
