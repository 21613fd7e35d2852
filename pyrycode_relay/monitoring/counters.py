"""What happens, counted: an observer of events, and its counters with all their cells.

Every cell of a label is there from the start, and no label comes from input. The names and words
that the relay written in Go has are the same here, so that its dashboards go on working.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric

from pyrycode_relay.events import Event
from pyrycode_relay.http.admission import Enforcement, Leg
from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import EndCause, FrameFault, Initiator
from pyrycode_relay.protocol.envelope import EnvelopeFault
from pyrycode_relay.protocol.header_gate import UpgradeRefusal

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
)
"""What becomes of an upgrade. The first six are the Go relay's, where 409, 404 and 429 stand for
the close codes 4409, 4404 and 4429."""

FAILURES: Final = ("no_server", "server_in_use", "phones_at_cap", "ratelimit")
"""Why the registry or the rate limit had no place for a connection; the Go relay's words."""

LEGS: Final = tuple(leg.value for leg in Leg)
OTHER: Final = "other"
CODES: Final = (*map(str, sorted(close_codes.KNOWN)), OTHER)
UNKNOWN_CONN_ID: Final = "unknown_conn_id"

_STALLS: Final = {EndCause.PHONE_WRITE_STALLED, EndCause.BINARY_WRITE_STALLED}


class Cells:
    """A counter with labels: each of its cells is there from the start."""

    def __init__(self, name: str, text: str, **labels: Iterable[str]) -> None:
        self.counts = dict.fromkeys(product(*labels.values()), 0)
        self._name = PREFIX + name
        self._text = text
        self._labels = tuple(labels)

    def add(self, *cell: str) -> None:
        """Count. Raises `KeyError` for a cell that there is not."""
        self.counts[cell] += 1

    def family(self) -> Metric:
        """Return the counter as Prometheus wants it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for cell, count in self.counts.items():
            family.add_metric(cell, count)
        return family


class Counters:
    """The observer that counts events; a close code that it does not know is ``other``."""

    def __init__(self) -> None:
        self.upgrades = Cells(
            "ws_upgrade_attempts",
            "WebSocket upgrades by endpoint and what became of them; each counts once.",
            endpoint=ENDPOINTS,
            outcome=OUTCOMES,
        )
        self.failures = Cells(
            "register_failures", "Connections that got no place, by kind.", kind=FAILURES
        )
        self.expiries = Cells(
            "grace_expiries", "Server-ids whose binary did not come back within its grace."
        )
        self.takeovers = Cells("takeovers", "Binaries that took the place of one that was dead.")
        self.reclaims = Cells("reclaims", "Binaries that came back within their grace.")
        self.evictions = Cells("evictions", "Phones closed because their binary came back.")
        self.closes = Cells(
            "closes",
            "Connections that ended, by leg, close code and who ended them.",
            leg=LEGS,
            code=CODES,
            initiator=[each.value for each in Initiator],
        )
        self.frames_refused = Cells(
            "frames_refused",
            "What phones sent that went no further.",
            reason=[each.value for each in FrameFault],
        )
        self.envelopes_refused = Cells(
            "envelopes_refused",
            "What binaries sent that was dropped.",
            reason=[*(each.label for each in EnvelopeFault), UNKNOWN_CONN_ID, OTHER],
        )
        self.push_wakes = Cells("push_wakes_dropped", "Wake-ups asked for while push is off.")
        self.heartbeats = Cells(
            "heartbeat_timeouts", "Peers closed for showing no sign of life.", leg=LEGS
        )
        self.stalls = Cells(
            "write_stalls", "Peers closed for taking nothing of what waits for them.", leg=LEGS
        )
        self.backlogs = Cells("backlog_closes", "Phones closed for a full backlog.")
        self.handshakes = Cells("tls_handshakes_failed", "TLS handshakes that came to nothing.")
        self.proxied = Cells("proxy_headers_refused", "Connections dropped for their PROXY header.")
        self.accepts = Cells(
            "accept_failures",
            "Times that a listener could take no connection, mostly for want of files.",
        )
        self.orders = Cells(
            "certificate_orders", "Orders to the CA, by outcome.", outcome=("issued", "failed")
        )
        self._cells = [each for each in vars(self).values() if isinstance(each, Cells)]
        self._plain: Mapping[Event, Sequence[tuple[Cells, tuple[str, ...]]]] = {
            Event.SERVER_CLAIMED: [(self.upgrades, ("server", "accept"))],
            Event.SERVER_ID_CONFLICT: [
                (self.upgrades, ("server", "reject_409")),
                (self.failures, ("server_in_use",)),
            ],
            Event.PHONE_REGISTERED: [(self.upgrades, ("client", "accept"))],
            Event.PHONE_REGISTER_NO_SERVER: [
                (self.upgrades, ("client", "reject_404")),
                (self.failures, ("no_server",)),
            ],
            Event.PHONE_REGISTER_AT_CAP: [
                (self.upgrades, ("client", "reject_429")),
                (self.failures, ("phones_at_cap",)),
            ],
            Event.SERVER_ID_TAKEOVER: [(self.takeovers, ())],
            Event.SERVER_RECLAIMED: [(self.reclaims, ())],
            Event.SERVER_EXPIRED: [(self.expiries, ())],
            Event.BINARY_UNKNOWN_CONN_ID: [(self.envelopes_refused, (UNKNOWN_CONN_ID,))],
            Event.PUSH_WAKE_DROPPED: [(self.push_wakes, ())],
            Event.TLS_HANDSHAKE_FAILED: [(self.handshakes, ())],
            Event.PROXY_REFUSED: [(self.proxied, ())],
            Event.ACCEPT_FAILED: [(self.accepts, ())],
            Event.ACME_ISSUED: [(self.orders, ("issued",))],
            Event.ACME_FAILED: [(self.orders, ("failed",))],
        }
        self._told: Mapping[Event, Callable[[Mapping[str, Any]], None]] = {
            Event.REQUEST_REFUSED: self._refused,
            Event.RATE_LIMITED: self._rate_limited,
            Event.CONNECTION_CAP_REACHED: self._cap_reached,
            Event.BINARY_ENVELOPE_REFUSED: self._envelope_refused,
            Event.PHONE_CLOSED: self._phone_closed,
            Event.BINARY_CLOSED: lambda fields: self._closed("binary", fields),
        }

    def saw(self, event: Event, **fields: object) -> None:
        """Count an event."""
        for cells, cell in self._plain.get(event, ()):
            cells.add(*cell)
        told = self._told.get(event)
        if told is not None:
            told(fields)

    def _refused(self, fields: Mapping[str, Any]) -> None:
        refusal: UpgradeRefusal = fields["err"]
        self.upgrades.add(_endpoint(fields), refusal.label)

    def _rate_limited(self, fields: Mapping[str, Any]) -> None:
        # In a dry run the upgrade goes on, and something else becomes of it.
        if fields["enforcement"] is Enforcement.ENFORCED:
            self.upgrades.add(_endpoint(fields), "reject_rate_limit")
            self.failures.add("ratelimit")

    def _cap_reached(self, fields: Mapping[str, Any]) -> None:
        # Without a path it is no upgrade yet.
        if "path" in fields and fields["enforcement"] is Enforcement.ENFORCED:
            self.upgrades.add(_endpoint(fields), "reject_cap")

    def _envelope_refused(self, fields: Mapping[str, Any]) -> None:
        fault: EnvelopeFault = fields["reason"]
        self.envelopes_refused.add(fault.label)

    def _phone_closed(self, fields: Mapping[str, Any]) -> None:
        self._closed("phone", fields)
        cause: EndCause = fields["reason"]
        if cause.frame_fault is not None:
            self.frames_refused.add(cause.frame_fault.value)
        elif cause is EndCause.RECLAIMED:
            self.evictions.add()
        elif cause is EndCause.PHONE_BACKLOG_FULL:
            self.backlogs.add()

    def _closed(self, leg: str, fields: Mapping[str, Any]) -> None:
        code, cause = str(fields["close_code"]), fields["reason"]
        self.closes.add(leg, code if code in CODES else OTHER, cause.initiator.value)
        if cause is EndCause.HEARTBEAT_TIMEOUT:
            self.heartbeats.add(leg)
        elif cause in _STALLS:
            self.stalls.add(leg)

    def refusals(self) -> dict[str, int]:
        """Return how much was refused since the start, by what became of it."""
        refused = {outcome: 0 for outcome in OUTCOMES if outcome != "accept"}
        for (_, outcome), count in self.upgrades.counts.items():
            if outcome in refused:
                refused[outcome] += count
        refused["frames"] = sum(self.frames_refused.counts.values())
        refused["envelopes"] = sum(self.envelopes_refused.counts.values())
        return refused

    def families(self) -> Iterator[Metric]:
        """Yield the counters as Prometheus wants them."""
        for cells in self._cells:
            yield cells.family()


def _endpoint(fields: Mapping[str, Any]) -> str:
    return "server" if fields["path"].endswith("/server") else "client"
