"""One worker of a relay: a process that its parent, the supervisor, has started.

It is the whole relay, except that its sockets come from its parent, and that it passes each
connection whose server-id another worker owns to that worker.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Observer
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.relay_site import Owner
from pyrycode_relay.http.shared_limits import SharedLimits
from pyrycode_relay.http.shared_memory import SharedMemory, Total
from pyrycode_relay.placement.control import Lines, News, Order, Seat, report_line
from pyrycode_relay.placement.handover import Placement, Worker
from pyrycode_relay.placement.ownership import Ownership
from pyrycode_relay.placement.sockets import adopt_listener, remove_link
from pyrycode_relay.service import RelayService

_BEAT: Final = 1.0
"""Seconds between a worker's reports to its parent."""


class WorkerService(RelayService):
    """The relay of one worker.

    Args:
        reactor: Listens and keeps the time.
        settings: The settings of the whole relay.
        observers: Notified of every event.
        capacity: How many connections the process has room for.
        seat: The worker's place.
        control: The parent's socket.

    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observers: Sequence[Observer],
        capacity: Capacity,
        seat: Seat,
        control: socket.socket,
    ) -> None:
        self._leaving = False
        self._ended = False
        self._seat = seat
        self._memory = SharedMemory(seat.limits)
        self._sockets = [*seat.listeners]
        self.orders_certificates = seat.index == 0
        share = _share(settings, seat)
        self._usage = SharedLimits(self._memory, seat.column, share.limits, reactor.seconds)
        super().__init__(reactor, share, observers, capacity=capacity)
        self._started = seat.started
        self.placement = Placement(
            Worker(
                reactor=reactor,
                poller=self._poller,
                limits=self.settings.limits,
                admission=self.admission,
                usage=self._usage,
                index=seat.index,
                ownership=Ownership(seat.workers, bytes.fromhex(seat.key)),
                paths=seat.paths,
                listening=socket.socket(fileno=seat.link),
                endpoints=self.site.backend.endpoints,
                readiness=lambda: self.readiness,
            )
        )
        self._drain.carry(self.placement.carriers)
        self._beat = LoopingCall(self._report)
        self._beat.clock = reactor
        self._control = Lines(self._ordered, self._orphaned)
        factory = Factory.forProtocol(lambda: self._control)
        factory.noisy = False
        reactor.adoptStreamConnection(control.fileno(), socket.AF_UNIX, factory)
        control.close()

    # What differs from a relay of one process

    is_whole = False

    def make_usage(self) -> SharedLimits:
        """Count connections together with the other workers."""
        return self._usage

    def listen(self, address: str, factory: IProtocolFactory) -> IListeningPort:
        """Listen on the parent's socket. Raises `OSError` if the parent has none."""
        for number, (own, descriptor) in enumerate(self._sockets):
            if own == address:
                del self._sockets[number]
                return adopt_listener(self._reactor, descriptor, factory)
        raise OSError(None, "the parent has not opened it")

    def elsewhere(self, server_id: str) -> Owner | None:
        """Return the worker that owns a server-id; None if it is this one."""
        return self.placement.elsewhere(server_id)

    def health(self) -> dict[str, object]:
        """Return what ``/healthz`` shows: the sums over all workers."""
        self._publish()
        return {
            **super().health(),
            "connected_binaries": self._memory.sum(Total.BINARIES),
            "connected_phones": self._memory.sum(Total.PHONES),
        }

    def _publish(self) -> None:
        registry = self.context.registry
        self._usage.publish(binaries=registry.binaries, phones=registry.phones)

    # The parent

    def prepare(self) -> None:
        """Get ready to serve, and report it. Raises `StartupError`."""
        if self.certificates is not None:
            self.certificates.load()
        self._tell(News.READY)
        self._beat.start(_BEAT)

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()
        for _, descriptor in self._sockets:
            os.close(descriptor)
        self._sockets.clear()
        self.placement.start()

    def _report(self) -> None:
        self._publish()
        self._control.report(report_line({}))

    def _tell(self, news: News) -> None:
        self._control.tell(report_line({"news": news.value}))

    def _ordered(self, line: bytes) -> None:
        order = Order(line.decode())
        if order is Order.SERVE:
            self.startService()
        elif order is Order.RELOAD:
            self.reload()
        elif order is Order.MOVE:
            self.moved = True
            self.placement.move()
            self._tell(News.MOVED)
            self.leave()
        else:
            self.leave()

    def _orphaned(self) -> None:
        """End, because the parent is gone; at once if this worker drains already."""
        if self._ended:
            return
        if self._leaving:
            os._exit(1)
        remove_link(self._seat.paths[self._seat.index])
        self.leave()

    def leave(self) -> None:
        """End this process, after a drain."""
        if not self._leaving:
            self._leaving = True
            self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Deferred[None]:
        """Drain, if this worker has served at all."""
        self._leaving = True
        return super().stopService()

    async def _stop(self) -> None:
        await super()._stop()
        self._ended = True
        self.placement.stop()
        if self._beat.running:
            self._beat.stop()


def _share(settings: Settings, seat: Seat) -> Settings:
    """Return a worker's settings.

    They have its share of the memory and the files that the parent has read. Nobody shows a single
    worker's status, so it collects none.
    """

    def readable(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(
            Path(f"/proc/self/fd/{seat.files[str(path)]}") if str(path) in seat.files else path
            for path in paths
        )

    limits = settings.limits
    budget = limits.memory_budget // seat.workers
    return dataclasses.replace(
        settings,
        limits=dataclasses.replace(
            limits, memory_budget=budget, outbox_bytes=min(limits.outbox_bytes, budget)
        ),
        admin_listen="",
        tls_cert=readable(settings.tls_cert),
        tls_key=readable(settings.tls_key),
    )
