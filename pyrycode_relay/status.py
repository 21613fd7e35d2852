"""The state of the relay as one object: what ``/status.json`` has, and the page shows.

No address, no id, nothing that a peer has sent. Times are in seconds since 1970, durations in
seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay import __version__
from pyrycode_relay.events import Event
from pyrycode_relay.exchange import Exchange
from pyrycode_relay.history import BEAT, BEATS, SAMPLES, SERIES, History
from pyrycode_relay.metrics import Metrics, descriptor_limit, resident_bytes
from pyrycode_relay.notable import Notable


class Status:
    """What watches the relay, put together: metrics, an hour's history, notable events.

    An observer, which passes on what it hears. ``state`` says in one word what the relay does,
    ``wall`` gives the time since 1970.
    """

    def __init__(
        self,
        clock: IReactorTime,
        exchange: Exchange,
        state: Callable[[], str],
        wall: Callable[[], float],
    ) -> None:
        self.metrics = Metrics(exchange, lambda: state() == "draining", wall)
        self.history = History(clock, self.metrics.reading, self.metrics.lag)
        self.notable = Notable(wall)
        self._exchange = exchange
        self._state = state
        self._wall = wall
        self._started = wall()

    def saw(self, event: Event, **fields: object) -> None:
        """Hear of an event."""
        self.metrics.saw(event, **fields)
        self.notable.saw(event, **fields)

    def document(self) -> dict[str, Any]:
        """Return the state."""
        now = self._wall()
        registry, ledger = self._exchange.registry, self._exchange.ledger
        return {
            "version": __version__,
            "state": self._state(),
            "now": now,
            "started": self._started,
            "uptime_seconds": int(now - self._started),
            "connections": {
                "binaries": registry.binaries,
                "binaries_in_grace": registry.in_grace,
                "phones": registry.phones,
            },
            "latest": dict(zip(SERIES, self.history.latest(), strict=True)),
            "totals": self.metrics.reading()._asdict(),
            "refusals": self.metrics.refusals(),
            "queues": {
                "bytes": ledger.total,
                "highest": ledger.highest,
                "budget": ledger.budget,
                "held_frames": registry.held_frames,
            },
            "process": {
                "descriptors": self.metrics.descriptors.count(),
                "descriptor_limit": descriptor_limit(),
                "resident_bytes": resident_bytes(),
            },
            "certificate": None,
            "events": [asdict(entry) for entry in self.notable.entries()],
            "history": {
                "interval": BEAT * BEATS,
                "length": SAMPLES,
                **self.history.columns(now),
            },
        }
