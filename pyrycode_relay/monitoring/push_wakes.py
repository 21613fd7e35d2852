"""Push wakes, as the metrics and the status page show them, if push is configured.

They contain no token, no fingerprint and no text of a provider: only the relay's own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from pyrycode_relay.events import Event
from pyrycode_relay.monitoring.counters import PREFIX, Cells, Counters
from pyrycode_relay.monitoring.monitored import Push
from pyrycode_relay.protocol.push_wake import WakeOutcome

_WORKING = "closed"
"""The state of a breaker that lets everything through."""


@dataclass(slots=True)
class Failure:
    """The last failure of a send. Times are in seconds since 1970."""

    fault: str
    """Its class, a label."""
    text: str
    time: float
    since: float
    """Time of the first failure after the last wake that was sent."""


class PushWakes:
    """What became of push wakes; an observer of events.

    A dead token is not a failure, because neither the relay nor its provider is at fault.

    Args:
        push: The source of the numbers.
        counters: Receive the events too, before this.
        wall: Returns the time in seconds since 1970.

    """

    def __init__(self, push: Push, counters: Counters, wall: Callable[[], float]) -> None:
        self._push = push
        self._counters = counters
        self._wall = wall
        self._faults = Cells(
            "push_failures", "Push wakes that could not be sent, by class.", fault=push.faults
        )
        self._last_sent: float | None = None
        self._last_failure: Failure | None = None
        self._failing_since: float | None = None

    def saw(self, event: Event, **fields: Any) -> None:
        """Take note of the outcome of a send."""
        if event is Event.PUSH_WAKE_SENT:
            self._last_sent = self._wall()
            self._failing_since = None
        elif event is Event.PUSH_WAKE_FAILED:
            error = fields["err"]
            self._faults.add(error.label)
            if error.outcome is not WakeOutcome.UNREGISTERED:
                self._failed(error.label, str(error.fault))

    def _failed(self, fault: str, text: str) -> None:
        now = self._wall()
        if self._failing_since is None:
            self._failing_since = now
        self._last_failure = Failure(fault, text, now, self._failing_since)

    def families(self) -> Iterator[Metric]:
        """Yield the metrics that exist with push only."""
        yield self._faults.family()
        yield GaugeMetricFamily(
            f"{PREFIX}push_wakes_under_way",
            "Push wakes without an outcome yet.",
            self._push.under_way(),
        )
        breakers = GaugeMetricFamily(
            f"{PREFIX}push_breaker_open",
            "1 while a provider is paused or being retried after repeated failures, otherwise 0.",
            labels=("platform",),
        )
        for platform, state in self._push.breakers().items():
            breakers.add_metric((platform,), state != _WORKING)
        yield breakers

    def breakers(self) -> Mapping[str, str]:
        """Return the state of each platform's breaker, as a word."""
        return self._push.breakers()

    @property
    def failing(self) -> Failure | None:
        """The last failure, unless a wake has been sent since."""
        return None if self._failing_since is None else self._last_failure

    def document(self) -> dict[str, Any]:
        """Return the state as an object for JSON."""
        return {
            "outcomes": _counts(self._counters.push_wakes),
            "refusals": _counts(self._counters.push_refusals),
            "faults": _counts(self._faults),
            "under_way": self._push.under_way(),
            "breakers": self._push.breakers(),
            "last_sent": self._last_sent,
            "last_failure": None if self._last_failure is None else asdict(self._last_failure),
            "failing": self._failing_since is not None,
        }


def _counts(cells: Cells) -> dict[str, int]:
    return {value: count for (value,), count in cells.counts.items()}
