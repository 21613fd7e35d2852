"""Counters of events, and the observer that advances them.

Every label value exists from the start, and none comes from a peer's input. Metrics that the Go
relay also has keep its names and label values, so that its dashboards keep working.
"""

# ruff: noqa: RUF009 - `_counter` returns a dataclass field
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric

from pyrycode_relay.events import Event
from pyrycode_relay.http.admission import Enforcement, Leg
from pyrycode_relay.http.paths import PathFault
from pyrycode_relay.monitoring.probes import by_probe
from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import EndCause, FrameFault, Initiator
from pyrycode_relay.protocol.envelope import EnvelopeFault
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal

PREFIX: Final = "pyrycode_relay_"

ENDPOINTS: Final = ("server", "client")
OUTCOMES: Final = (
    "accept",
    "reject_headers",
    "reject_409",
    "reject_404",
    "reject_429",
    "reject_rate_limit",
    "reject_handshake",
    "reject_not_ready",
    "reject_cap",
    "probe",
)
"""Outcomes of an attempt to upgrade. The first six are the Go relay's; its 409, 404 and 429 stand
for the close codes 4409, 4404 and 4429. ``probe`` stands for 4409 and 4404 for a probe's server-id,
which a probe provokes."""

REFUSALS: Final = tuple(each for each in OUTCOMES if each not in {"accept", "probe"})

FAILURES: Final = ("no_server", "server_in_use", "phones_at_cap", "ratelimit")
"""Why the registry or the rate limit refused a connection, in the Go relay's words."""

LEGS: Final = tuple(leg.value for leg in Leg)
OTHER: Final = "other"
CODES: Final = (*map(str, sorted(close_codes.KNOWN)), OTHER)
UNKNOWN_CONN_ID: Final = "unknown_conn_id"

_NO_FAULTS: Final = {UpgradeRefusal.NOT_READY}
"""Refusals that are not the request's fault."""
_STALLS: Final = {EndCause.PHONE_WRITE_STALLED, EndCause.BINARY_WRITE_STALLED}


class Cells:
    """A counter: one cell for each combination of its labels' values, all present from the start.

    Args:
        name: The metric's name without `PREFIX` and without ``_total``.
        text: The metric's help text.
        labels: The values of each label, by the label's name.

    """

    def __init__(self, name: str, text: str, **labels: Iterable[str]) -> None:
        self.counts = dict.fromkeys(product(*labels.values()), 0)
        self._name = PREFIX + name
        self._text = text
        self._labels = tuple(labels)

    def add(self, *cell: str) -> None:
        """Add one to a cell. Raises `KeyError` if there is no such cell."""
        self.counts[cell] += 1

    def family(self) -> Metric:
        """Return the counter as a metric for Prometheus."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for cell, count in self.counts.items():
            family.add_metric(cell, count)
        return family


def _counter(name: str, text: str, **labels: Iterable[str]) -> Cells:
    """Declare a field of `Counters`."""
    return dataclasses.field(default_factory=partial(Cells, name, text, **labels))


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """The counters that events advance, in the order in which they are exported."""

    upgrades: Cells = _counter(
        "ws_upgrade_attempts",
        "Attempts to upgrade, each counted once, by outcome.",
        endpoint=ENDPOINTS,
        outcome=OUTCOMES,
    )
    requests_refused: Cells = _counter(
        "requests_refused",
        "Requests refused for their path, their headers or their handshake, by reason.",
        reason=(
            *(each.label for each in PathFault),
            *(each.name.lower() for each in UpgradeRefusal if each not in _NO_FAULTS),
        ),
    )
    failures: Cells = _counter(
        "register_failures",
        "Connections refused by the registry or by the rate limit, by kind.",
        kind=FAILURES,
    )
    probes: Cells = _counter("probes", "Claims of a probe's server-id that succeeded.")
    expiries: Cells = _counter(
        "grace_expiries", "Server-ids whose binary did not come back within its grace."
    )
    takeovers: Cells = _counter("takeovers", "Binaries that replaced a dead one.")
    reclaims: Cells = _counter("reclaims", "Binaries that came back within their grace.")
    evictions: Cells = _counter("evictions", "Phones closed because their binary came back.")
    closes: Cells = _counter(
        "closes",
        "Connections that ended, by leg, close code and initiator.",
        leg=LEGS,
        code=CODES,
        initiator=tuple(each.value for each in Initiator),
    )
    frames_refused: Cells = _counter(
        "frames_refused",
        "Phones' messages that were refused, by reason.",
        reason=tuple(each.value for each in FrameFault),
    )
    envelopes_refused: Cells = _counter(
        "envelopes_refused",
        "Binaries' envelopes that were dropped, by reason.",
        reason=(*(each.label for each in EnvelopeFault), UNKNOWN_CONN_ID, OTHER),
    )
    late_envelopes: Cells = _counter(
        "late_envelopes",
        "Binaries' envelopes for a phone that was closing or had left within the last minute.",
    )
    push_wakes: Cells = _counter(
        "push_wakes",
        "Push wakes, by outcome; dropped means over a limit.",
        outcome=tuple(each.label for each in WakeOutcome),
    )
    push_refusals: Cells = _counter(
        "push_wakes_refused",
        "Push wakes refused before sending, by reason.",
        reason=tuple(each.label for each in WakeRefusal),
    )
    heartbeats: Cells = _counter(
        "heartbeat_timeouts", "Peers closed because they gave no sign of life, by leg.", leg=LEGS
    )
    stalls: Cells = _counter(
        "write_stalls",
        "Peers closed because they accepted none of the data queued for them, by leg.",
        leg=LEGS,
    )
    backlogs: Cells = _counter("backlog_closes", "Phones closed because their backlog was full.")
    handshakes: Cells = _counter("tls_handshakes_failed", "TLS handshakes that failed.")
    proxied: Cells = _counter(
        "proxy_headers_refused", "Connections dropped because of their PROXY header."
    )
    accepts: Cells = _counter(
        "accept_failures",
        "Failures to accept a connection, mostly because open files ran out.",
    )
    orders: Cells = _counter(
        "certificate_orders", "Orders to the CA, by outcome.", outcome=("issued", "failed")
    )

    def families(self) -> Iterator[Metric]:
        """Yield the counters as metrics for Prometheus."""
        for each in dataclasses.fields(self):
            cells: Cells = getattr(self, each.name)
            yield cells.family()

    def refusals(self) -> dict[str, int]:
        """Return the numbers of refusals since the start, by outcome of the upgrade.

        Two more keys count messages: ``frames`` for those of phones, ``envelopes`` for those of
        binaries.
        """
        refused = dict.fromkeys(REFUSALS, 0)
        for (_, outcome), count in self.upgrades.counts.items():
            if outcome in refused:
                refused[outcome] += count
        refused["frames"] = sum(self.frames_refused.counts.values())
        refused["envelopes"] = sum(self.envelopes_refused.counts.values())
        return refused


class EventCounter:
    """The observer that advances ``counters``. An unknown close code counts as ``other``."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._fixed = _fixed_cells(counters)
        self._probed = {**self._fixed, **_probed_cells(counters)}
        self._by_fields: Mapping[Event, Callable[[Mapping[str, Any]], None]] = {
            Event.PATH_UNKNOWN: self._path_unknown,
            Event.REQUEST_REFUSED: self._request_refused,
            Event.RATE_LIMITED: self._rate_limited,
            Event.CONNECTION_CAP_REACHED: self._cap_reached,
            Event.BINARY_ENVELOPE_REFUSED: self._envelope_refused,
            Event.PUSH_WAKE_FAILED: self._wake_failed,
            Event.PUSH_WAKE_DROPPED: self._wake_dropped,
            Event.PHONE_CLOSED: self._phone_closed,
            Event.BINARY_CLOSED: self._binary_closed,
        }

    def saw(self, event: Event, **fields: object) -> None:
        """Count an event."""
        fixed = self._probed if by_probe(event, fields) else self._fixed
        for cells, cell in fixed.get(event, ()):
            cells.add(*cell)
        count = self._by_fields.get(event)
        if count is not None:
            count(fields)

    def _path_unknown(self, fields: Mapping[str, Any]) -> None:
        fault: PathFault = fields["err"]
        self._counters.requests_refused.add(fault.label)

    def _request_refused(self, fields: Mapping[str, Any]) -> None:
        refusal: UpgradeRefusal = fields["err"]
        self._counters.upgrades.add(_endpoint(fields), refusal.label)
        if refusal not in _NO_FAULTS:
            self._counters.requests_refused.add(refusal.name.lower())

    def _rate_limited(self, fields: Mapping[str, Any]) -> None:
        # In a dry run the upgrade goes on and is counted when its outcome is known.
        if fields["enforcement"] is Enforcement.ENFORCED:
            self._counters.upgrades.add(_endpoint(fields), "reject_rate_limit")
            self._counters.failures.add("ratelimit")

    def _cap_reached(self, fields: Mapping[str, Any]) -> None:
        # An event without a path is not about an upgrade.
        if "path" in fields and fields["enforcement"] is Enforcement.ENFORCED:
            self._counters.upgrades.add(_endpoint(fields), "reject_cap")

    def _envelope_refused(self, fields: Mapping[str, Any]) -> None:
        fault: EnvelopeFault = fields["reason"]
        self._counters.envelopes_refused.add(fault.label)

    def _wake_failed(self, fields: Mapping[str, Any]) -> None:
        outcome: WakeOutcome = fields["err"].outcome
        self._counters.push_wakes.add(outcome.label)

    def _wake_dropped(self, fields: Mapping[str, Any]) -> None:
        refusal: WakeRefusal = fields["reason"]
        self._counters.push_refusals.add(refusal.label)
        if refusal.is_limit:
            self._counters.push_wakes.add(WakeOutcome.DROPPED.label)

    def _phone_closed(self, fields: Mapping[str, Any]) -> None:
        self._closed("phone", fields)
        cause: EndCause = fields["reason"]
        if cause.frame_fault is not None:
            self._counters.frames_refused.add(cause.frame_fault.value)
        elif cause is EndCause.RECLAIMED:
            self._counters.evictions.add()
        elif cause is EndCause.PHONE_BACKLOG_FULL:
            self._counters.backlogs.add()

    def _binary_closed(self, fields: Mapping[str, Any]) -> None:
        self._closed("binary", fields)

    def _closed(self, leg: str, fields: Mapping[str, Any]) -> None:
        code, cause = str(fields["close_code"]), fields["reason"]
        self._counters.closes.add(leg, code if code in CODES else OTHER, cause.initiator.value)
        if cause is EndCause.HEARTBEAT_TIMEOUT:
            self._counters.heartbeats.add(leg)
        elif cause in _STALLS:
            self._counters.stalls.add(leg)


def _fixed_cells(
    counters: Counters,
) -> Mapping[Event, Sequence[tuple[Cells, tuple[str, ...]]]]:
    """Return the cells of each event that always counts in the same ones."""
    return {
        Event.SERVER_CLAIMED: [(counters.upgrades, ("server", "accept"))],
        Event.SERVER_ID_CONFLICT: [
            (counters.upgrades, ("server", "reject_409")),
            (counters.failures, ("server_in_use",)),
        ],
        Event.PHONE_REGISTERED: [(counters.upgrades, ("client", "accept"))],
        Event.PHONE_REGISTER_NO_SERVER: [
            (counters.upgrades, ("client", "reject_404")),
            (counters.failures, ("no_server",)),
        ],
        Event.PHONE_REGISTER_AT_CAP: [
            (counters.upgrades, ("client", "reject_429")),
            (counters.failures, ("phones_at_cap",)),
        ],
        Event.SERVER_ID_TAKEOVER: [(counters.takeovers, ())],
        Event.SERVER_RECLAIMED: [(counters.reclaims, ())],
        Event.SERVER_EXPIRED: [(counters.expiries, ())],
        Event.BINARY_LATE_ENVELOPE: [(counters.late_envelopes, ())],
        Event.BINARY_UNKNOWN_CONN_ID: [(counters.envelopes_refused, (UNKNOWN_CONN_ID,))],
        Event.PUSH_WAKE_SENT: [(counters.push_wakes, (WakeOutcome.SENT.label,))],
        Event.TLS_HANDSHAKE_FAILED: [(counters.handshakes, ())],
        Event.PROXY_REFUSED: [(counters.proxied, ())],
        Event.ACCEPT_FAILED: [(counters.accepts, ())],
        Event.ACME_ISSUED: [(counters.orders, ("issued",))],
        Event.ACME_FAILED: [(counters.orders, ("failed",))],
    }


def _probed_cells(
    counters: Counters,
) -> Mapping[Event, Sequence[tuple[Cells, tuple[str, ...]]]]:
    """Return the cells of events that count in other ones if a probe caused them."""
    return {
        Event.SERVER_CLAIMED: [(counters.upgrades, ("server", "accept")), (counters.probes, ())],
        Event.SERVER_ID_CONFLICT: [(counters.upgrades, ("server", "probe"))],
        Event.PHONE_REGISTER_NO_SERVER: [(counters.upgrades, ("client", "probe"))],
        Event.SERVER_EXPIRED: [],
    }


def _endpoint(fields: Mapping[str, Any]) -> str:
    return "server" if fields["path"].endswith("/server") else "client"
