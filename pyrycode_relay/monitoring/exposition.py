"""What Prometheus sees: names, labels, and where each number comes from.

Numbers are pulled from where they are counted when somebody scrapes; nothing here is on a
frame's way.
"""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from pyrycode_relay import __version__
from pyrycode_relay.endpoints.context import Exchange
from pyrycode_relay.http.admission import Admission
from pyrycode_relay.monitoring.counters import PREFIX, Counters
from pyrycode_relay.monitoring.history import LAGS, Reading
from pyrycode_relay.monitoring.process_stats import Descriptors, descriptor_limit, resident_bytes
from pyrycode_relay.tally import Histogram
from pyrycode_relay.tls.store import Certificates

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of what `Metrics.text` returns."""


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
    """The collector of all numbers. Who has the reactor fills ``lag``."""

    def __init__(self, watched: Watched) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.counters = Counters()
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
        self.registry.register(self)

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
        return {**self.counters.refusals(), "waiting": self._watched.crowded_out()}

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield everything there is; called by the registry for each scrape."""
        yield from self.counters.families()
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
