"""The parent of a relay with several workers: opens the sockets, and keeps the workers running.

It serves no peer. Each worker is a process that gets the listening sockets. A worker that is free
accepts a connection.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pyrycode_relay import __version__, start_report
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.event_bus import EventBus
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http import shared_memory
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.shared_memory import SharedMemory
from pyrycode_relay.listeners import Listeners
from pyrycode_relay.placement.child import WorkerProcess, memory_file
from pyrycode_relay.placement.control import (
    CONTROL_FD,
    Lines,
    News,
    Order,
    Seat,
    order_line,
    report_of,
)
from pyrycode_relay.placement.roster import Act, Phase, Roster, Step
from pyrycode_relay.placement.sockets import LinkSockets, Opened, wanted
from pyrycode_relay.process import exit_now
from pyrycode_relay.served_certificates import make_certificates
from pyrycode_relay.startup_error import StartupError

_bugs = Logger()

_COLUMNS: Final = 2
"""Columns of each worker in the shared limits: one for its process, one for the one before."""
_TICK: Final = 0.25
"""Seconds between looks at the workers."""
_LATE: Final = 1.0
"""Seconds by which a look may be late. Beyond that the parent itself was stopped."""
_EXTRA: Final = 5.0
"""Seconds that a worker may take to end, in addition to its drain."""


@dataclass(slots=True)
class _Child:
    """A running process of a worker."""

    transport: Any
    control: Lines
    column: int
    """Its column in the shared limits."""


@dataclass(frozen=True, slots=True)
class Command:
    """The command line of the relay."""

    arguments: Sequence[str]
    """The arguments, for the workers."""
    read: Callable[[], tuple[Settings, Capacity]]
    """Reads the settings again. Raises `StartupError`."""


_ORDERS: Final = {Act.SERVE: Order.SERVE, Act.MOVE: Order.MOVE, Act.DRAIN: Order.DRAIN}


class Supervisor(Service):
    """Runs the workers of one relay.

    Args:
        reactor: Starts processes and keeps the time.
        settings: The settings of the relay.
        command: The command line.
        observers: Notified of events.
        write: Writes a line of a worker to the log.
        capacity: How many connections the relay has room for.

    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        command: Command,
        observers: Sequence[Observer],
        write: Callable[[str], None],
        capacity: Capacity,
    ) -> None:
        limits = settings.limits
        self._capacity = capacity
        self.settings = settings
        self.events = EventBus(observers)
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._command = command
        self._count = settings.worker_count
        self._opened: list[Opened] = []
        self._replacing = False
        self._write = write
        self._roster = Roster(
            self._count,
            timeout=limits.worker_timeout,
            longest_delay=limits.worker_backoff,
            leave_timeout=limits.drain_timeout + limits.close_timeout + _EXTRA,
        )
        self._children: dict[int, _Child] = {}
        self._key = secrets.token_hex(32)
        self._started = self._clock.seconds()
        self._links: LinkSockets | None = None
        self._limits_fd = -1
        self._certificates = make_certificates(settings, self.events, self._clock)
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        self._ticked = self._clock.seconds()
        self._ready: list[Callable[[], None]] = []
        self._settled = False
        """Whether the first start is over: all workers serve, or the relay ends."""
        self._stopped: Deferred[None] | None = None
        self._kept: dict[str, bytes] = {}
        self._files: dict[str, int] = {}

    @property
    def listeners(self) -> Listeners:
        """The listeners of the start; a replacement may have opened more."""
        return self._opened[0].listeners

    # Starting

    def privilegedStartService(self) -> None:
        """Open the listeners, while ports below 1024 can still be bound.

        Raises `StartupError`, with no listener left open.
        """
        if self._certificates is not None:
            # The workers read them again. Here a mistake ends the start, and with it everything.
            self._certificates.load()
        self._keep_files()
        self._opened = [Opened.open(self._reactor, wanted(self.settings))]
        super().privilegedStartService()  # type: ignore[no-untyped-call]

    def _keep_files(self) -> None:
        """Read the certificates' files that only root may be able to read."""
        if os.geteuid():
            return
        for path in (*self.settings.tls_cert, *self.settings.tls_key):
            with contextlib.suppress(OSError):
                self._kept[str(path)] = path.read_bytes()

    def close_listeners(self) -> None:
        """Close the listeners of a relay that does not start."""
        for opened in self._opened:
            opened.listeners.close()

    def startService(self) -> None:
        """Start the workers. Raises `StartupError`."""
        super().startService()  # type: ignore[no-untyped-call]
        if not self._opened:
            self.privilegedStartService()
        self._links = LinkSockets(self._count)
        columns = _COLUMNS * self._count
        self._limits_fd = shared_memory.create(columns, self._capacity.connections)
        self._memory = SharedMemory(self._limits_fd)
        for path, content in self._kept.items():
            if not os.access(path, os.R_OK):
                self._files[path] = memory_file(content)
        self._kept.clear()
        self.events.saw(
            Event.STARTING,
            version=__version__,
            mode=self.settings.limits.on_reclaim.value,
            workers=self._count,
            capacity=str(self._capacity),
            listen=", ".join(self.listeners.addresses),
        )
        start_report.report(
            self.events,
            self.listeners,
            self._certificates,
            self.settings.domain,
            self.settings.acme_directory,
        )
        self._do(self._roster.start(self._clock.seconds()))
        self._ticked = self._clock.seconds()
        self._ticker.start(_TICK, now=False)

    def on_ready(self, call: Callable[[], None]) -> None:
        """Call ``call`` once all workers serve."""
        self._ready.append(call)

    # The processes

    def _do(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.act is Act.START:
                self._start(step)
                continue
            child = self._children.get(step.process)
            if child is None:
                continue
            order = _ORDERS.get(step.act)
            if order is not None:
                child.control.tell(order_line(order))
            else:
                self.events.saw(Event.WORKER_KILLED, worker=step.index, reason=str(step.trouble))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.transport.pid, 9)

    def _start(self, step: Step) -> None:
        ours, theirs = socket.socketpair()
        try:
            files, seat = self._seat(step.index, theirs)
            protocol = WorkerProcess(self._write, partial(self._ended, step.process, step.index))
            transport = self._reactor.spawnProcess(
                protocol,
                sys.executable,
                [sys.executable, "-P", "-m", "pyrycode_relay.worker_process", str(step.index)],
                env=None,
                childFDs=files,
            )
            control = self._control(step, ours)
        except Exception:
            _bugs.failure("a worker cannot be started")
            self._do(self._roster.ended(step.process, self._clock.seconds()))
            return
        finally:
            ours.close()
            theirs.close()
        self._children[step.process] = _Child(transport, control, seat.column)
        control.transport.write(seat.line())  # type: ignore[union-attr]

    def _seat(self, index: int, control: socket.socket) -> tuple[dict[int, Any], Seat]:
        """Return the descriptors of a worker, by their numbers there, and its seat."""
        files: dict[int, Any] = {0: "r", 1: "r", 2: "r", CONTROL_FD: control.fileno()}

        def given(number: int) -> int:
            theirs = max(files) + 1
            files[theirs] = number
            return theirs

        links = self._links
        assert links is not None  # noqa: S101 - made before the first worker starts
        sockets = [each for opened in self._opened for each in opened.sockets()]
        seat = Seat(
            index=index,
            column=self._free_column(index),
            workers=self._count,
            options=self._command.arguments,
            listeners=[(address, given(number)) for address, number in sockets],
            link=given(links.fileno(index)),
            limits=given(self._limits_fd),
            paths=links.paths,
            files={path: given(number) for path, number in self._files.items()},
            key=self._key,
            started=self._started,
        )
        files[0] = "w"
        return files, seat

    def _free_column(self, index: int) -> int:
        """Return a column of a worker that none of its processes has."""
        taken = {child.column for child in self._children.values()}
        count = self._count
        columns = [index + count * each for each in range(_COLUMNS)]
        return next((each for each in columns if each not in taken), columns[-1])

    def _control(self, step: Step, sock: socket.socket) -> Lines:
        lines = Lines(partial(self._reported, step.process), lambda: None)
        factory = Factory.forProtocol(lambda: lines)
        factory.noisy = False
        self._reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, factory)
        return lines

    def _reported(self, number: int, line: bytes) -> None:
        now = self._clock.seconds()
        self._roster.heard(number, now)
        child, process = self._children.get(number), self._roster.processes.get(number)
        if child is None or process is None:
            return
        # A report without news is a sign of life.
        news = report_of(line).get("news")
        if news == News.READY.value:
            self.events.saw(
                Event.WORKER_READY,
                worker=process.index,
                pid=child.transport.pid,
                duration=round(now - process.since, 3),
            )
            self._do(self._roster.ready(number, now))
            self._note_progress()
        elif news == News.MOVED.value:
            self._do(self._roster.moved(number, now))

    def _note_progress(self) -> None:
        """Report when all workers serve for the first time, and the end of a replacement."""
        if self._roster.complete and not self._settled:
            self._settled = True
            self.events.saw(Event.READY)
            for call in self._ready:
                call()
        if self._replacing and not self._roster.replacing:
            self._replacing = False
            if self._roster.gave_up:
                reason = "a new process could not serve; its own lines say why"
                self.events.saw(Event.WORKERS_NOT_REPLACED, reason=reason)
            else:
                self.events.saw(Event.WORKERS_REPLACED, workers=self._count)

    def _ended(self, number: int, index: int, reason: str) -> None:
        child = self._children.pop(number, None)
        process = self._roster.processes.get(number)
        if process is None:
            return
        if child is not None and child.control.transport is not None:
            child.control.transport.loseConnection()
        if process.phase is Phase.LEAVE:
            self.events.saw(Event.WORKER_LEFT, worker=index, reason=reason)
        else:
            self.events.saw(Event.WORKER_ENDED, worker=index, reason=reason)
        if child is not None:
            self._memory.clear(child.column)
        self._do(self._roster.ended(number, self._clock.seconds()))
        self._note_progress()
        if self._stopped is not None and not self._roster.processes:
            self._finish()
        elif not self._settled and self._stopped is None:
            # A worker that cannot even start once will not do better the next time.
            self._failed()

    def _failed(self) -> None:
        """End the whole relay: it never came up."""
        self.events.saw(Event.WORKERS_FAILED, reason="a worker has ended before it was ready")
        self._reactor.addSystemEventTrigger("after", "shutdown", exit_now, 1)
        self._reactor.stop()
        self._settled = True

    def _tick(self) -> None:
        now = self._clock.seconds()
        late = now - self._ticked - _TICK
        self._ticked = now
        if late > _LATE:
            self._roster.forgive(late)
        self._do(self._roster.tick(now))

    # Orders

    def reload(self) -> None:
        """Have all workers read the certificates again."""
        for child in self._children.values():
            child.control.tell(order_line(Order.RELOAD))

    def replace(self) -> None:
        """Replace all workers, one after the other, by new processes with new settings.

        If the settings cannot be used, the old workers go on.
        """
        if self._roster.replacing or self._roster.stopping:
            return
        try:
            settings, _ = self._command.read()
            self._open_more(settings)
        except StartupError as error:
            for problem in error.problems:
                self.events.saw(Event.WORKERS_NOT_REPLACED, reason=problem)
            return
        self._replacing = True
        self.events.saw(Event.WORKERS_REPLACING, workers=self._count)
        self._do(self._roster.replace(self._clock.seconds()))

    def _open_more(self, settings: Settings) -> None:
        """Open the addresses that are new in the settings. Raises `StartupError`.

        Those that are gone stay open until the relay ends, but no new worker listens on them.
        """
        known = [each for opened in self._opened for each in opened.wanted]
        more = [each for each in wanted(settings) if each not in known]
        if more:
            self._opened.append(Opened.open(self._reactor, more))
        self.settings = settings

    def stopService(self) -> Deferred[None]:
        """Have all workers drain, and wait for their end."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopped = Deferred()
        self.events.saw(Event.DRAINING, version=__version__, workers=len(self._children))
        for opened in self._opened:
            opened.listeners.stop()
        self._do(self._roster.stop(self._clock.seconds()))
        if not self._roster.processes:
            self._finish()
        return self._stopped

    def _finish(self) -> None:
        if self._ticker.running:
            self._ticker.stop()
        if self._links is not None:
            self._links.remove()
        for number in (self._limits_fd, *self._files.values()):
            with contextlib.suppress(OSError):
                os.close(number)
        self.events.saw(Event.DRAINED, version=__version__)
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)
