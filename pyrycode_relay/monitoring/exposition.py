"""The metrics for Prometheus: their names, their labels, and the source of each number.

A scrape reads each number where it is counted. No frame passes through this module.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
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
from pyrycode_relay.monitoring.counters import PREFIX, Counters, EventCounter
from pyrycode_relay.monitoring.history import LAGS, Reading
from pyrycode_relay.monitoring.monitored import Monitored
from pyrycode_relay.monitoring.process_stats import (
    Descriptors,
    cpu_seconds,
    descriptor_limit,
    resident_bytes,
)
from pyrycode_relay.monitoring.push_wakes import PushWakes
from pyrycode_relay.tally import Histogram

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of `Metrics.text`."""


class Metrics:
    """The collector of all metrics.

    ``observer`` receives the events that are counted, and so does ``push`` unless it is None.
    The history fills ``lag``.
    """

    def __init__(self, monitored: Monitored) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.counters = Counters()
        self.observer = EventCounter(self.counters)
        self.descriptors = Descriptors()
        self.lag = Histogram(LAGS)
        self.push = (
            PushWakes(monitored.push, self.counters, monitored.wall) if monitored.push else None
        )
        self._monitored = monitored
        self._started = monitored.wall()
        self._build = {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": version("Twisted"),
            "autobahn": version("autobahn"),
        }
        self.registry.register(self)

    def reading(self) -> Reading:
        """Return the numbers that the status page's charts show."""
        registry, tally = self._monitored.registry, self._monitored.tally
        traffic = tally.phones.traffic()
        return Reading(
            binaries=registry.binaries,
            phones=registry.phones,
            queue_bytes=self._monitored.memory_budget.total,
            resident_bytes=resident_bytes(),
            frames_to_binaries=traffic.frames_in,
            frames_to_phones=traffic.frames_out,
            bytes_to_binaries=traffic.bytes_in,
            bytes_to_phones=traffic.bytes_out,
            refusals=sum(self.refusals().values()),
            cpu_seconds=cpu_seconds(),
            pings_binaries=sum(tally.binaries.round_trips.counts),
            ping_seconds_binaries=tally.binaries.round_trips.sum,
            pings_phones=sum(tally.phones.round_trips.counts),
            ping_seconds_phones=tally.phones.round_trips.sum,
        )

    def refusals(self) -> dict[str, int]:
        """Return the numbers of refusals since the start, by kind; see `Counters.refusals`.

        ``waiting`` counts connections without a request that were dropped for newer ones.
        """
        return {**self.counters.refusals(), "waiting": self._monitored.crowded_out()}

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. The registry calls this at each scrape."""
        yield from self.counters.families()
        yield from self._connections()
        yield from self._traffic()
        yield from self._queues()
        yield from self._times()
        yield from self._certificates()
        if self.push is not None:
            yield from self.push.families()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        registry = self._monitored.registry
        yield _gauge("connected_binaries", "Binaries connected now.", registry.binaries)
        yield _gauge("connected_phones", "Phones registered now.", registry.phones)
        yield _gauge(
            "binaries_in_grace",
            "Server-ids held for a binary that may come back.",
            registry.in_grace,
        )
        yield _gauge(
            "draining",
            "1 while the relay drains, otherwise 0.",
            self._monitored.state() == "draining",
        )
        admission = self._monitored.admission
        family = _labelled(
            "websockets", "WebSockets that count against the maximum, by leg.", "leg"
        )
        for leg, count in admission.open.items():
            family.add_metric((leg.value,), count)
        yield family
        yield _gauge(
            "websockets_max", "Maximum number of WebSockets.", admission.capacity.connections
        )
        yield _counters(
            "limit_refusals",
            "Connections over a limit, by kind; in a dry run, those that would have been refused.",
            "kind",
            **{bound.label: count for bound, count in admission.denied.items()},
            waiting=self._monitored.crowded_out(),
        )

    def _traffic(self) -> Iterator[Metric]:
        traffic = self._monitored.tally.phones.traffic()
        yield _counters(
            "frames_forwarded",
            "Frames accepted for forwarding, by direction.",
            "direction",
            phone_to_binary=traffic.frames_in,
            binary_to_phone=traffic.frames_out,
        )
        yield _counters(
            "bytes_forwarded",
            "Bytes of forwarded frames, without envelopes, by direction.",
            "direction",
            phone_to_binary=traffic.bytes_in,
            binary_to_phone=traffic.bytes_out,
        )

    def _queues(self) -> Iterator[Metric]:
        budget = self._monitored.memory_budget
        yield _gauge("queue_bytes", "Bytes in all queues now.", budget.total)
        yield _gauge(
            "queue_bytes_highest",
            "Largest number of bytes in all queues since the start.",
            budget.highest,
        )
        yield _gauge(
            "queue_bytes_budget", "Bytes that all queues together may hold.", budget.budget
        )
        yield _counter("queues_shed", "Queues dropped to stay within the budget.", budget.shed)
        yield _gauge(
            "held_frames",
            "Frames held now for a binary that is slow or absent.",
            self._monitored.registry.held_frames,
        )
        yield _counter("frames_held", "Frames held since the start.", budget.held)
        tally, now = self._monitored.tally, self._monitored.seconds()
        binaries, phones = tally.binaries.pauses, tally.phones.pauses
        yield _counters(
            "read_pauses",
            "Pauses in reading a peer's socket, by leg.",
            "leg",
            binary=binaries.begun,
            phone=phones.begun,
        )
        yield _counters(
            "read_pause_seconds",
            "Seconds of all pauses in reading, added up over all peers, by leg.",
            "leg",
            binary=binaries.seconds(now),
            phone=phones.seconds(now),
        )
        family = _labelled("paused_peers", "Peers whose socket is not read now, by leg.", "leg")
        family.add_metric(("binary",), binaries.under_way)
        family.add_metric(("phone",), phones.under_way)
        yield family

    def _times(self) -> Iterator[Metric]:
        tally = self._monitored.tally
        yield _histogram(
            "upgrade_duration_seconds",
            "Time from a connection's start to the end of its WebSocket handshake, by leg.",
            binary=tally.binaries.upgrades,
            phone=tally.phones.upgrades,
        )
        yield _histogram(
            "ping_round_trip_seconds",
            "Time from a heartbeat's ping to its pong, by leg.",
            binary=tally.binaries.round_trips,
            phone=tally.phones.round_trips,
        )
        lag = HistogramMetricFamily(
            f"{PREFIX}reactor_lag_seconds", "Delay of the reactor's timers."
        )
        lag.add_metric((), *_buckets(self.lag))
        yield lag

    def _certificates(self) -> Iterator[Metric]:
        certificates = self._monitored.certificates
        if certificates is None:
            return
        family = _labelled(
            "certificate_not_after_seconds",
            "Expiry of each name's certificate, in seconds since 1970.",
            "name",
        )
        for name, end in certificates.not_after().items():
            family.add_metric((name,), end)
        yield family
        reloaded_at, ok = certificates.last_reload or (0.0, False)
        yield _gauge(
            "certificate_reload_seconds",
            "Time of the last reload, in seconds since 1970.",
            reloaded_at,
        )
        yield _gauge("certificate_reload_ok", "1 if the last reload succeeded, otherwise 0.", ok)

    def _process(self) -> Iterator[Metric]:
        build = _labelled(
            "build_info", "Versions of the relay, its libraries and Python.", *self._build
        )
        build.add_metric(tuple(self._build.values()), 1)
        yield build
        for name, text, value in (
            ("start_time_seconds", "Start of the relay, in seconds since 1970.", self._started),
            ("open_fds", "Open files.", self.descriptors.count()),
            ("max_fds", "Limit of open files.", descriptor_limit()),
            ("resident_memory_bytes", "Resident memory.", resident_bytes()),
        ):
            yield GaugeMetricFamily(f"process_{name}", text, value)
        yield _counter(
            "log_lines_dropped",
            "Lines of the log that could not be written.",
            self._monitored.log_lines_dropped(),
        )
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU time used, in seconds.", cpu_seconds()
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
    """Return the cumulative counts by upper bound, and the sum of all values."""
    bounds = (*map(str, histogram.bounds), "+Inf")
    return [*zip(bounds, accumulate(histogram.counts), strict=True)], histogram.sum
