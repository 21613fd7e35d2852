"""Which events are a probe's, and that nothing else is logged at debug for its server-id."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from pyrycode_relay.events import Event, Level, LineLimit
from pyrycode_relay.monitoring.event_log import EventLog, LineFormat, Writer
from pyrycode_relay.monitoring.probes import CAUSED, by_probe, level
from pyrycode_relay.protocol.probe_ids import PREFIX
from tests.unit.bench import Cases, cases
from tests.unit.monitoring.test_event_log import Text


class ProbesTests(Cases):
    @cases({event.label: (event,) for event in Event})
    def test_level(self, event: Event) -> None:
        """A probe's own events are at debug; a warning never is, whatever the server-id."""
        fields = {"server_id": f"{PREFIX}1"}
        expected = Level.DEBUG if event in CAUSED else event.level
        self.assertIs(level(event, fields), expected)
        self.assertIs(level(event, {"server_id": f"x{PREFIX}"}), event.level)
        self.assertIs(level(event, {}), event.level)
        if event.level >= Level.WARN or event.line_limit is not LineLimit.NONE:
            self.assertFalse(by_probe(event, fields))

    def test_log(self) -> None:
        """The log has a probe's events at debug only, and says so in the line."""
        for threshold, lines in ((Level.INFO, 0), (Level.DEBUG, 1)):
            output = Text()
            writer = Writer(output, threshold, LineFormat(as_json=False))
            globalLogPublisher.addObserver(writer)
            self.addCleanup(globalLogPublisher.removeObserver, writer)
            log = EventLog(threshold, Clock().seconds)
            log.saw(Event.SERVER_CLAIMED, server_id=f"{PREFIX}1")
            globalLogPublisher.removeObserver(writer)
            self.assertEqual(
                output.written.count(f" debug server_claimed server_id={PREFIX}1\n"), lines
            )
            self.assertEqual(output.written.count("\n"), lines)
