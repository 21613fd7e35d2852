"""The state of the relay, as ``/status.json`` and the status page show it.

Without ``--status-ids`` it contains no id, no peer's address and nothing else that a peer sent.
Times are in seconds since 1970, durations in seconds, sizes in bytes. ``docs/status.schema.json``
describes every name.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay import __version__
from pyrycode_relay.events import Event
from pyrycode_relay.http.admission import Bound, Leg
from pyrycode_relay.listeners import address_of
from pyrycode_relay.monitoring import thresholds
from pyrycode_relay.monitoring.attention import Attention, Orders, verdict
from pyrycode_relay.monitoring.busiest import Busiest
from pyrycode_relay.monitoring.exposition import Metrics
from pyrycode_relay.monitoring.findings import CertificateFacts, Counted, Facts, Failing
from pyrycode_relay.monitoring.history import BEAT, BEATS, SAMPLES, SERIES, History
from pyrycode_relay.monitoring.monitored import Monitored
from pyrycode_relay.monitoring.process_stats import (
    descriptor_limit,
    memory_limit,
    resident_bytes,
)
from pyrycode_relay.monitoring.recent_events import RecentEvents
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal

_FAILED_WAKES = (WakeOutcome.SEND_FAILED, WakeOutcome.TOKEN_FETCH_FAILED)
_LIMITED_WAKES = (WakeRefusal.RATE, WakeRefusal.BUSY)


class Status:
    """Metrics, the last hour's history, recent events and the verdict; an observer of events."""

    def __init__(self, clock: IReactorTime, monitored: Monitored) -> None:
        self.metrics = Metrics(monitored)
        self.id_hash = monitored.id_hash.of
        self.attention = Attention(self.facts, clock.seconds)
        self.history = History(
            clock, self.metrics.reading, self.metrics.lag, sampled=self.attention.sample
        )
        shown = str if monitored.ids_in_clear else self.id_hash
        self.recent = RecentEvents(monitored.wall, shown)
        self.busiest = Busiest(clock, monitored.talkers, shown)
        self._orders = Orders(monitored.wall)
        self._monitored = monitored
        self._started = monitored.wall()

    def start(self) -> None:
        """Begin to take samples."""
        self.history.start()

    def stop(self) -> None:
        """End, and leave no timer behind."""
        self.history.stop()
        self.busiest.stop()

    def saw(self, event: Event, **fields: object) -> None:
        """Count an event, and keep it unless it is routine."""
        self.metrics.observer.saw(event, **fields)
        if self.metrics.push is not None:
            self.metrics.push.saw(event, **fields)
        self._orders.saw(event, **fields)
        self.recent.saw(event, **fields)

    def document(self) -> dict[str, Any]:
        """Return the state as an object for JSON."""
        monitored = self._monitored
        now = monitored.wall()
        items = self.attention.items()
        lag, lag_at = self.history.worst_lag(now)
        return {
            "version": __version__,
            "state": monitored.state(),
            "verdict": verdict(items),
            "attention": [item.document() for item in items],
            "now": now,
            "started": self._started,
            "uptime_seconds": int(now - self._started),
            "numbers": self._numbers(),
            "maxima": {
                "lag_seconds": lag,
                "lag_time": lag_at,
                "queue_bytes": monitored.memory_budget.highest,
            },
            "memory_limit": memory_limit(),
            "latest": dict(zip(SERIES, self.history.latest(), strict=True)),
            "refusals": self.metrics.refusals(),
            "round_trips": {
                "bounds": monitored.tally.phones.round_trips.bounds,
                "binaries": monitored.tally.binaries.round_trips.counts,
                "phones": monitored.tally.phones.round_trips.counts,
            },
            "listeners": [
                {
                    "address": address_of(host),
                    "purpose": purpose.name.lower(),
                    "serves": purpose.text,
                }
                for listeners in monitored.listeners
                for purpose, host in listeners.hosts
            ],
            "busiest": self.busiest.document(),
            "ids_in_clear": monitored.ids_in_clear,
            "certificate": self._certificate(),
            "push": None if self.metrics.push is None else self.metrics.push.document(),
            "events": [asdict(entry) for entry in self.recent.entries()],
            "history": {
                "interval": BEAT * BEATS,
                "length": SAMPLES,
                **self.history.columns(now),
            },
        }

    def _numbers(self) -> dict[str, float]:
        """Return the counters and gauges; those of several processes can be added up."""
        monitored = self._monitored
        registry, budget = monitored.registry, monitored.memory_budget
        admission = monitored.admission
        return {
            **self.metrics.reading()._asdict(),
            "binaries_in_grace": registry.in_grace,
            "held_frames": registry.held_frames,
            "websockets": admission.total,
            "websockets_of_binaries": admission.open[Leg.BINARY],
            "websockets_max": admission.capacity.connections,
            "websockets_reserved": admission.capacity.reserved,
            "queue_bytes_max": budget.budget,
            "open_files": self.metrics.descriptors.count(),
            "open_files_max": descriptor_limit(),
            **self._counted()._asdict(),
        }

    def facts(self) -> Facts:
        """Return the numbers that the verdict depends on."""
        monitored, push = self._monitored, self.metrics.push
        admission, budget = monitored.admission, monitored.memory_budget
        failure = push.failing if push is not None else None
        return Facts(
            now=monitored.wall(),
            counted=self._counted(),
            draining=monitored.state() == "draining",
            phones=monitored.registry.phones,
            binaries_connected=admission.open[Leg.BINARY],
            websockets=admission.total,
            websockets_max=admission.capacity.connections,
            websockets_reserved=admission.capacity.reserved,
            open_files=self.metrics.descriptors.count(),
            open_files_max=descriptor_limit(),
            resident_bytes=resident_bytes(),
            memory_limit=memory_limit(),
            queue_bytes=budget.total,
            queue_bytes_budget=budget.budget,
            certificates=self._certificate_facts(),
            breakers={} if push is None else push.breakers(),
            push=Failing(failure.text, failure.since) if failure is not None else None,
        )

    def _counted(self) -> Counted:
        counters, lag = self.metrics.counters, self.metrics.lag
        upgrades, wakes = counters.upgrades.counts, counters.push_wakes.counts
        refused = counters.refusals()
        return Counted(
            binaries=self._monitored.registry.binaries,
            timers=sum(lag.counts),
            timers_late=lag.above(thresholds.LAG),
            timers_stalled=lag.above(thresholds.STALL),
            phones_connected=upgrades["client", "accept"],
            rate_limited=self._monitored.admission.denied[Bound.RATE],
            refused_at_limit=refused["reject_cap"],
            bad_requests=refused["reject_headers"] + refused["reject_handshake"],
            probed=upgrades["server", "probe"] + upgrades["client", "probe"],
            conflicts=counters.failures.counts["server_in_use",],
            backlog_closes=sum(counters.backlogs.counts.values()),
            queues_shed=self._monitored.memory_budget.shed,
            heartbeat_timeouts=sum(counters.heartbeats.counts.values()),
            accept_failures=sum(counters.accepts.counts.values()),
            push_failed=sum(wakes[each.label,] for each in _FAILED_WAKES),
            push_tried=sum(wakes.values()) - wakes[WakeOutcome.DROPPED.label,],
            push_over_limit=sum(
                counters.push_refusals.counts[each.label,] for each in _LIMITED_WAKES
            ),
        )

    def _certificate_facts(self) -> CertificateFacts | None:
        certificates = self._monitored.certificates
        if certificates is None:
            return None
        return CertificateFacts(
            not_after=certificates.not_after(),
            ready=certificates.ready,
            problems=certificates.problems,
            order=self._orders.failing,
        )

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
