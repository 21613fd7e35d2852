"""The state of the relay as one object: what ``/status.json`` has, and the page shows.

No address, no id, nothing that a peer has sent. Times are in seconds since 1970, durations in
seconds, sizes in bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay import __version__
from pyrycode_relay.events import Event
from pyrycode_relay.monitoring.exposition import Metrics
from pyrycode_relay.monitoring.history import BEAT, BEATS, SAMPLES, SERIES, History
from pyrycode_relay.monitoring.monitored import Monitored
from pyrycode_relay.monitoring.process_stats import descriptor_limit, resident_bytes
from pyrycode_relay.monitoring.recent_events import RecentEvents


class Status:
    """Metrics, the last hour's history and recent events in one place; an observer of events."""

    def __init__(self, clock: IReactorTime, monitored: Monitored) -> None:
        self.metrics = Metrics(monitored)
        self.history = History(clock, self.metrics.reading, self.metrics.lag)
        self.recent = RecentEvents(monitored.wall)
        self._monitored = monitored
        self._started = monitored.wall()

    def saw(self, event: Event, **fields: object) -> None:
        """Hear of an event."""
        self.metrics.observer.saw(event, **fields)
        self.recent.saw(event, **fields)

    def document(self) -> dict[str, Any]:
        """Return the state."""
        monitored = self._monitored
        now = monitored.wall()
        registry, budget = monitored.registry, monitored.memory_budget
        return {
            "version": __version__,
            "state": monitored.state(),
            "now": now,
            "started": self._started,
            "uptime_seconds": int(now - self._started),
            "connections": {
                "binaries": registry.binaries,
                "binaries_in_grace": registry.in_grace,
                "phones": registry.phones,
                "websockets": monitored.admission.total,
                "websockets_max": monitored.admission.capacity.connections,
            },
            "latest": dict(zip(SERIES, self.history.latest(), strict=True)),
            "totals": self.metrics.reading()._asdict(),
            "refusals": self.metrics.refusals(),
            "queues": {
                "bytes": budget.total,
                "highest": budget.highest,
                "budget": budget.budget,
                "held_frames": registry.held_frames,
            },
            "process": {
                "descriptors": self.metrics.descriptors.count(),
                "descriptor_limit": descriptor_limit(),
                "resident_bytes": resident_bytes(),
            },
            "certificate": self._certificate(),
            "events": [asdict(entry) for entry in self.recent.entries()],
            "history": {
                "interval": BEAT * BEATS,
                "length": SAMPLES,
                **self.history.columns(now),
            },
        }

    def _certificate(self) -> dict[str, Any] | None:
        """Return the state of the certificates, None if nothing is served over TLS."""
        certificates = self._monitored.certificates
        if certificates is None:
            return None
        ends = certificates.not_after()
        read_at, well = certificates.last_reload or (None, None)
        return {
            "not_after": min(ends.values(), default=None),
            "names": ends,
            "last_reload": read_at,
            "last_reload_ok": well,
        }
