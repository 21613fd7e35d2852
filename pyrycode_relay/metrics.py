"""What Prometheus sees: names, labels, and where each number comes from.

`Metrics` hears of events and counts them; everything else it pulls from where it is counted when
somebody scrapes. Nothing here is on a frame's way. Every cell of a label is there from the start
and no label comes from input. The names that the relay written in Go has are the same here, so
that its dashboards go on working.
"""

from __future__ import annotations

import os
import platform
import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from pyrycode_relay import __version__, codes
from pyrycode_relay.admission import Admission, Leg
from pyrycode_relay.events import NO_HANDSHAKE, NOT_READY, Event
from pyrycode_relay.exchange import Exchange
from pyrycode_relay.history import LAGS, Reading
from pyrycode_relay.tally import Histogram
from pyrycode_relay.tls import Certificates
from pyrycode_relay.wire import BY_PEER, DIRECTED, LOST, PROTOCOL_ERROR

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of what `Metrics.text` returns."""

ENFORCED: Final = "enforced"
"""The mode of a limit that refuses; of one that does not, it is ``dry run``."""

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
CODES: Final = (*map(str, sorted(codes.KNOWN)), OTHER)
INITIATORS: Final = ("relay", "peer", "network", "binary")
"""Who ended a connection; ``binary`` is one that had its phone closed."""

_INITIATOR_BY_REASON: Final = {BY_PEER: "peer", LOST: "network", DIRECTED: "binary"}

ENVELOPE_REASONS: Final = {
    "nested too deeply": "too_deep",
    "not a JSON object": "not_an_object",
    "conn_id is missing or empty": "no_conn_id",
    "conn_id is not a string": "wrong_type",
    "conn_id or close_code is of the wrong type": "wrong_type",
    "close_code is not an integer from 1 to 65535": "close_code",
    "neither frame nor close_code": "nothing_asked",
}
"""The label for each thing that `pyrycode_relay.envelope` finds wrong."""
UNKNOWN_CONN_ID: Final = "unknown_conn_id"

FRAME_REASONS: Final = ("not_json", "not_utf8", "too_big", "too_slow", "protocol")
"""Why something that a phone sent went no further."""

_STALLS: Final = {codes.PHONE_WRITE_STALLED.reason, codes.BINARY_WRITE_STALLED.reason}
_DESCRIPTORS: Final = "/proc/self/fd"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Cells:
    """A counter with labels: each of its cells is there from the start."""

    def __init__(self, name: str, text: str, **labels: Iterable[str]) -> None:
        self.counts = dict.fromkeys(product(*labels.values()), 0)
        self._name = PREFIX + name
        self._text = text
        self._labels = tuple(labels)

    def add(self, *cell: str, times: int = 1) -> None:
        """Count. Raises `KeyError` for a cell that there is not."""
        self.counts[cell] += times

    def family(self) -> Metric:
        """Return the counter as Prometheus wants it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for cell, count in self.counts.items():
            family.add_metric(cell, count)
        return family


class Descriptors:
    """How many files the process has open.

    Linux tells since 6.2 by the folder's size. Before, counting them takes two microseconds
    each, which a thread does, and the number is that of the time before.
    """

    def __init__(self) -> None:
        self._listed = 0
        self._thread: threading.Thread | None = None

    def count(self) -> int:
        """Return the number; 0 where it cannot be known, or not yet."""
        try:
            size = Path(_DESCRIPTORS).stat().st_size
        except OSError:
            return 0
        return size or self._count_aside()

    def _count_aside(self) -> int:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._list, daemon=True)
            self._thread.start()
        return self._listed

    def _list(self) -> None:
        self._listed = len(os.listdir(_DESCRIPTORS))


def resident_bytes() -> int:
    """Return how much memory of the process is resident; 0 where it cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except OSError:
        return 0


def descriptor_limit() -> int:
    """Return how many files the process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@dataclass(frozen=True, slots=True)
class Watched:
    """What there is to be watched of a relay."""

    exchange: Exchange
    admission: Admission
    certificates: Certificates | None
    """None where nothing is served over TLS."""
    state: Callable[[], str]
    """Says in one word what the relay does: ``starting``, ``ready`` or ``draining``."""
    crowded_out: Callable[[], int]
    """Gives how many connections without a request were dropped for newer ones."""
    wall: Callable[[], float]
    """Gives the time in seconds since 1970."""


class Metrics:
    """An observer of events and a collector of numbers. Who has the reactor fills ``lag``."""

    def __init__(self, watched: Watched) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.descriptors = Descriptors()
        self.lag = Histogram(LAGS)
        self._watched = watched
        self._exchange = watched.exchange
        self._started = watched.wall()
        self._build = {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": version("Twisted"),
            "autobahn": version("autobahn"),
        }
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
            initiator=INITIATORS,
        )
        self.frames_refused = Cells(
            "frames_refused", "What phones sent that went no further.", reason=FRAME_REASONS
        )
        self.envelopes_refused = Cells(
            "envelopes_refused",
            "What binaries sent that was dropped.",
            reason=(*dict.fromkeys(ENVELOPE_REASONS.values()), UNKNOWN_CONN_ID, OTHER),
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
            Event.PHONE_FRAME_REFUSED: [(self.frames_refused, ("not_json",))],
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
        self.registry.register(self)

    # Events

    def saw(self, event: Event, **fields: object) -> None:
        """Count an event."""
        for cells, cell in self._plain.get(event, ()):
            cells.add(*cell)
        told = self._told.get(event)
        if told is not None:
            told(fields)

    def _refused(self, fields: Mapping[str, Any]) -> None:
        outcome = {NOT_READY: "reject_not_ready", NO_HANDSHAKE: "reject_handshake"}
        self.upgrades.add(_endpoint(fields), outcome.get(fields["err"], "reject_headers"))

    def _rate_limited(self, fields: Mapping[str, Any]) -> None:
        # In a dry run the upgrade goes on, and something else becomes of it.
        if fields["mode"] == ENFORCED:
            self.upgrades.add(_endpoint(fields), "reject_rate_limit")
            self.failures.add("ratelimit")

    def _cap_reached(self, fields: Mapping[str, Any]) -> None:
        # Without a path it is no upgrade yet.
        if "path" in fields and fields["mode"] == ENFORCED:
            self.upgrades.add(_endpoint(fields), "reject_cap")

    def _envelope_refused(self, fields: Mapping[str, Any]) -> None:
        self.envelopes_refused.add(ENVELOPE_REASONS.get(fields["reason"], OTHER))

    def _phone_closed(self, fields: Mapping[str, Any]) -> None:
        self._closed("phone", fields)
        code, reason = fields["close_code"], fields["reason"]
        if reason == codes.RECLAIMED.reason:
            self.evictions.add()
        elif reason == codes.PHONE_BACKLOG_FULL.reason:
            self.backlogs.add()
        elif reason == codes.MESSAGE_TIMEOUT.reason:
            self.frames_refused.add("too_slow")
        elif reason == codes.NOT_UTF8.reason:
            self.frames_refused.add("not_utf8")
        elif reason == PROTOCOL_ERROR:
            kinds = {1007: "not_utf8", 1009: "too_big"}
            self.frames_refused.add(kinds.get(code, "protocol"))

    def _closed(self, leg: str, fields: Mapping[str, Any]) -> None:
        code, reason = str(fields["close_code"]), fields["reason"]
        initiator = _INITIATOR_BY_REASON.get(reason, "relay")
        self.closes.add(leg, code if code in CODES else OTHER, initiator)
        if reason == codes.HEARTBEAT_TIMEOUT.reason:
            self.heartbeats.add(leg)
        elif reason in _STALLS:
            self.stalls.add(leg)

    # Numbers

    def reading(self) -> Reading:
        """Return what the status page's charts are made of."""
        registry, traffic = self._exchange.registry, self._exchange.tally.phones.traffic()
        return Reading(
            binaries=registry.binaries,
            phones=registry.phones,
            queue_bytes=self._exchange.ledger.total,
            frames_to_binaries=traffic.frames_in,
            frames_to_phones=traffic.frames_out,
            bytes_to_binaries=traffic.bytes_in,
            bytes_to_phones=traffic.bytes_out,
            refusals=sum(self.refusals().values()),
        )

    def refusals(self) -> dict[str, int]:
        """Return how much was refused since the start, by what became of it."""
        refused = {outcome: 0 for outcome in OUTCOMES if outcome != "accept"}
        for (_, outcome), count in self.upgrades.counts.items():
            if outcome in refused:
                refused[outcome] += count
        refused["waiting"] = self._watched.crowded_out()
        refused["frames"] = sum(self.frames_refused.counts.values())
        refused["envelopes"] = sum(self.envelopes_refused.counts.values())
        return refused

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield everything there is; called by the registry for each scrape."""
        for cells in self._cells:
            yield cells.family()
        yield from self._connections()
        yield from self._traffic()
        yield from self._queues()
        yield from self._times()
        yield from self._certificates()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        registry = self._exchange.registry
        yield _gauge("connected_binaries", "Binaries connected now.", registry.binaries)
        yield _gauge("connected_phones", "Phones that have a place now.", registry.phones)
        yield _gauge(
            "binaries_in_grace", "Server-ids held for a binary to come back.", registry.in_grace
        )
        yield _gauge(
            "draining", "1 while the relay takes no more.", self._watched.state() == "draining"
        )
        admission = self._watched.admission
        family = _labelled("websockets", "WebSockets that take up a place now, by leg.", "leg")
        for leg, count in admission.open.items():
            family.add_metric((leg.value,), count)
        yield family
        yield _gauge("websockets_max", "Places there are.", admission.capacity.connections)
        yield _counters(
            "limit_refusals",
            "Connections over a limit, by kind; in a dry run those that would have been.",
            "kind",
            **{bound.value: count for bound, count in admission.denied.items()},
            waiting=self._watched.crowded_out(),
        )

    def _traffic(self) -> Iterator[Metric]:
        traffic = self._exchange.tally.phones.traffic()
        yield _counters(
            "frames_forwarded",
            "Frames taken to be forwarded, by direction.",
            "direction",
            phone_to_binary=traffic.frames_in,
            binary_to_phone=traffic.frames_out,
        )
        yield _counters(
            "bytes_forwarded",
            "Bytes of those frames, without envelopes.",
            "direction",
            phone_to_binary=traffic.bytes_in,
            binary_to_phone=traffic.bytes_out,
        )

    def _queues(self) -> Iterator[Metric]:
        ledger = self._exchange.ledger
        yield _gauge("queue_bytes", "Bytes in all queues now.", ledger.total)
        yield _gauge("queue_bytes_highest", "The most there ever were.", ledger.highest)
        yield _gauge("queue_bytes_budget", "The most there may be.", ledger.budget)
        yield _counter("queues_shed", "Queues dropped for the budget's sake.", ledger.shed)
        yield _gauge(
            "held_frames",
            "Frames held now for a binary that is slow or absent.",
            self._exchange.registry.held_frames,
        )
        yield _counter("frames_held", "Frames that were ever held.", ledger.held)
        tally, now = self._exchange.tally, self._exchange.clock.seconds()
        binaries, phones = tally.binaries.pauses, tally.phones.pauses
        yield _counters(
            "read_pauses",
            "How often a peer was not read any more, by leg.",
            "leg",
            binary=binaries.begun,
            phone=phones.begun,
        )
        yield _counters(
            "read_pause_seconds",
            "Seconds for which peers were not read, all together, by leg.",
            "leg",
            binary=binaries.seconds(now),
            phone=phones.seconds(now),
        )
        family = _labelled("paused_peers", "Peers that are not read now, by leg.", "leg")
        family.add_metric(("binary",), binaries.under_way)
        family.add_metric(("phone",), phones.under_way)
        yield family

    def _times(self) -> Iterator[Metric]:
        tally = self._exchange.tally
        yield _histogram(
            "upgrade_duration_seconds",
            "From a connection's start to the end of its WebSocket handshake, by leg.",
            binary=tally.binaries.upgrades,
            phone=tally.phones.upgrades,
        )
        yield _histogram(
            "ping_round_trip_seconds",
            "From a heartbeat's ping to its pong, by leg.",
            binary=tally.binaries.round_trips,
            phone=tally.phones.round_trips,
        )
        lag = HistogramMetricFamily(
            f"{PREFIX}reactor_lag_seconds", "How late the reactor is for its timers."
        )
        lag.add_metric((), *_buckets(self.lag))
        yield lag

    def _certificates(self) -> Iterator[Metric]:
        certificates = self._watched.certificates
        if certificates is None:
            return
        family = _labelled(
            "certificate_not_after_seconds",
            "When a name's certificate ends, since 1970; names are the certificates' own.",
            "name",
        )
        for name, end in certificates.not_after().items():
            family.add_metric((name,), end)
        yield family
        read_at, well = certificates.last_reload or (0.0, False)
        yield _gauge(
            "certificate_reload_seconds", "When certificates were last read, since 1970.", read_at
        )
        yield _gauge("certificate_reload_ok", "Whether all was well with them then.", well)

    def _process(self) -> Iterator[Metric]:
        build = _labelled("build_info", "What runs, and on what.", *self._build)
        build.add_metric(tuple(self._build.values()), 1)
        yield build
        for name, text, value in (
            ("start_time_seconds", "When the relay was started, since 1970.", self._started),
            ("open_fds", "Files that are open.", self.descriptors.count()),
            ("max_fds", "Files that may be open.", descriptor_limit()),
            ("resident_memory_bytes", "Memory that is resident.", resident_bytes()),
        ):
            yield GaugeMetricFamily(f"process_{name}", text, value)
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU time used.", cpu.ru_utime + cpu.ru_stime
        )


def _endpoint(fields: Mapping[str, Any]) -> str:
    return "server" if fields["path"].endswith("/server") else "client"


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value)


def _counters(name: str, text: str, label: str, **values: float) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=(label,))
    for cell, value in values.items():
        family.add_metric((cell,), value)
    return family


def _histogram(name: str, text: str, **legs: Histogram) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=("leg",))
    for leg, histogram in legs.items():
        family.add_metric((leg,), *_buckets(histogram))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the counts as Prometheus has them, each with all below it, and the sum."""
    bounds = (*map(str, histogram.bounds), "+Inf")
    return [*zip(bounds, accumulate(histogram.counts), strict=True)], histogram.sum
