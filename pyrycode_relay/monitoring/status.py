"""The state of the relay, as ``/status.json`` and the status page show it.

It contains no address, no id and nothing that a peer sent. Times are in seconds since 1970,
durations in seconds, sizes in bytes.
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
    """Metrics, the last hour's history and recent events; an observer of events."""

    def __init__(self, clock: IReactorTime, monitored: Monitored) -> None:
        self.metrics = Metrics(monitored)
        self.history = History(clock, self.metrics.reading, self.metrics.lag)
        self.recent = RecentEvents(monitored.wall)
        self._monitored = monitored
        self._started = monitored.wall()

    def saw(self, event: Event, **fields: object) -> None:
        """Count an event, and keep it unless it is routine."""
        self.metrics.observer.saw(event, **fields)
        if self.metrics.push is not None:
            self.metrics.push.saw(event, **fields)
        self.recent.saw(event, **fields)

    def document(self) -> dict[str, Any]:
        """Return the state as an object for JSON."""
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
            "push": None if self.metrics.push is None else self.metrics.push.document(),
            "events": [asdict(entry) for entry in self.recent.entries()],
            "history": {
                "interval": BEAT * BEATS,
                "length": SAMPLES,
                **self.history.columns(now),
            },
        }

    def _certificate(self) -> dict[str, Any] | None:
        """Return the state of the certificates, or None if nothing is served over TLS."""
        certificates = self._monitored.certificates
        if certificates is None:
            return None
        expiries = certificates.not_after()
        reloaded_at, ok = certificates.last_reload or (None, None)
        return {
            "not_after": min(expiries.values(), default=None),
            "names": expiries,
            "last_reload": reloaded_at,
            "last_reload_ok": ok,
        }
