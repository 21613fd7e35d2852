"""The workers of a relay: which processes run, and what to do when one is ready, silent or gone.

State only: it knows no process and no clock. Each call returns what to do.

======= =========================== ===================================================
phase   begins when                 ends when
======= =========================== ===================================================
START   the process is started      it is ready, and nobody else serves its server-ids
SERVE   it is told to serve         its successor is ready, or the relay stops
LEAVE   it is asked to leave        it has ended
======= =========================== ===================================================

A process that takes too long to be ready or to end, or that gives no sign of life, is killed.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

START_TIMEOUT: Final = 30.0
"""Seconds in which a worker must be ready. It takes one on an idle machine."""

_FIRST_DELAY: Final = 0.5
"""Seconds before the second restart in a row; the first comes at once. Each further one waits
twice as long as the one before."""


class Phase(enum.Enum):
    """How far a worker has come."""

    START = "starting"
    SERVE = "serving"
    LEAVE = "leaving"


class Act(enum.Enum):
    """What to do with a process."""

    START = "start it"
    SERVE = "let it serve"
    MOVE = "ask it to leave its server-ids to its successor, and to end"
    DRAIN = "ask it to drain, and to end"
    KILL = "kill it"


class Trouble(enum.Enum):
    """Why a worker is killed; the value is the text in the log."""

    LATE = "not ready in time"
    HUNG = "gives no sign of life"
    NOT_GONE = "did not end in time"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do now."""

    act: Act
    process: int
    """The number of the process, which no other one ever has."""
    index: int
    """The index of its worker."""
    trouble: Trouble | None = None


@dataclass(slots=True)
class Process:
    """A process of the roster."""

    number: int
    index: int
    phase: Phase
    since: float
    """When its phase began."""
    heard: float
    """When it last gave a sign of life."""
    ready: bool = False
    """Whether it can serve."""


@dataclass(slots=True)
class _Seat:
    """One worker: the process that serves its server-ids, and the one that shall replace it."""

    holder: Process | None = None
    successor: Process | None = None
    due: float | None = None
    """When to start a process, if there is no holder."""
    failures: int = 0
    """Ends in a row, none of which came after a long time of service."""


class Roster:
    """The processes of ``workers`` workers.

    Args:
        workers: How many there are.
        timeout: Seconds without a sign of life after which a worker is killed.
        longest_delay: Upper bound of the seconds before a restart. A worker that has served for
            this long is restarted at once.
        leave_timeout: Seconds in which a worker that is asked to leave must end.

    """

    def __init__(
        self, workers: int, *, timeout: float, longest_delay: float, leave_timeout: float
    ) -> None:
        self.processes: dict[int, Process] = {}
        """All processes, by number."""
        self.stopping = False
        self.restarts = [0] * workers
        """How often each worker was started again after it had ended by itself."""
        self._seats = [_Seat() for _ in range(workers)]
        self._timeout = timeout
        self._longest_delay = longest_delay
        self._leave_timeout = leave_timeout
        self.gave_up = False
        """Whether the last replacement ended early, because a new process could not serve."""
        self._number = 0
        self._to_replace: deque[int] = deque()
        self._moving: int | None = None
        """The process that leaves during a replacement."""

    @property
    def complete(self) -> bool:
        """Whether every worker serves."""
        return all(seat.holder and seat.holder.phase is Phase.SERVE for seat in self._seats)

    @property
    def replacing(self) -> bool:
        """Whether a replacement of all workers is under way."""
        return bool(
            self._to_replace
            or self._moving is not None
            or any(seat.successor for seat in self._seats)
        )

    def serving(self, index: int) -> Process | None:
        """Return the process that serves the server-ids of a worker, if there is one."""
        holder = self._seats[index].holder
        return holder if holder and holder.phase is Phase.SERVE else None

    def start(self, now: float) -> list[Step]:
        """Start all workers."""
        return [self._start(index, now) for index in range(len(self._seats))]

    def ready(self, number: int, now: float) -> list[Step]:
        """Note that a process can serve; it must wait until its predecessor has moved."""
        process = self.processes.get(number)
        if process is None or process.phase is not Phase.START or process.ready:
            return []
        process.ready, process.heard = True, now
        seat = self._seats[process.index]
        if process is seat.holder:
            return [self._serve(process, now)]
        old = seat.holder
        if old is None:
            return self._succeed(process.index, now)
        self._moving = old.number
        return [self._leave(old, Act.MOVE, now)]

    def moved(self, number: int, now: float) -> list[Step]:
        """Note that a process has left its server-ids to its successor."""
        if number != self._moving:
            return []
        return self._succeed(self.processes[number].index, now)

    def _succeed(self, index: int, now: float) -> list[Step]:
        """Let a successor serve in place of the holder."""
        seat = self._seats[index]
        successor = seat.successor
        if successor is None or not successor.ready:
            return []
        seat.holder, seat.successor = successor, None
        seat.failures, seat.due = 0, None
        return [self._serve(successor, now)]

    def _serve(self, process: Process, now: float) -> Step:
        process.phase, process.since = Phase.SERVE, now
        return Step(Act.SERVE, process.number, process.index)

    def heard(self, number: int, now: float) -> None:
        """Note a sign of life."""
        process = self.processes.get(number)
        if process is not None:
            process.heard = now

    def ended(self, number: int, now: float) -> list[Step]:
        """Note that a process has ended; a worker that is needed is started again, perhaps later.

        The restart itself comes with `tick`.
        """
        process = self.processes.pop(number)
        if self.stopping:
            return []
        seat = self._seats[process.index]
        steps: list[Step] = []
        if process is seat.holder:
            seat.holder = None
            if seat.successor is not None:
                steps = self._promote(process.index, now)
            else:
                self._plan_restart(seat, process, now)
        elif process is seat.successor:
            seat.successor = None
            self._to_replace.clear()
            self.gave_up = True
        if self._moving == number:
            self._moving = None
            steps += self._replace_next(now)
        return steps

    def _promote(self, index: int, now: float) -> list[Step]:
        """Make a successor the holder, ready or not: there is no other one."""
        seat = self._seats[index]
        successor = seat.successor
        if successor is not None and successor.ready:
            return self._succeed(index, now)
        seat.holder, seat.successor = successor, None
        return self._replace_next(now)

    def _plan_restart(self, seat: _Seat, process: Process, now: float) -> None:
        served = now - process.since if process.phase is Phase.SERVE else 0.0
        if served >= self._longest_delay:
            seat.failures = 0
        seat.due = now + self._delay(seat.failures)
        seat.failures += 1

    def replace(self, now: float) -> list[Step]:
        """Replace all workers by new processes, one after the other."""
        if self.stopping or self.replacing:
            return []
        self.gave_up = False
        self._to_replace.extend(range(len(self._seats)))
        return self._replace_next(now)

    def stop(self, now: float) -> list[Step]:
        """End all workers."""
        self.stopping = True
        self._to_replace.clear()
        for seat in self._seats:
            seat.due = None
        return [self._leave(each, Act.DRAIN, now) for each in [*self.processes.values()]]

    def tick(self, now: float) -> list[Step]:
        """Start what is due, and kill what is late; call it often."""
        return [*self._late(now), *self._due(now)]

    def forgive(self, seconds: float) -> None:
        """Put off every deadline: the caller was stopped for so long, and heard nothing."""
        for process in self.processes.values():
            process.heard += seconds
            process.since += seconds

    def _late(self, now: float) -> Iterator[Step]:
        for process in self.processes.values():
            if process.phase is Phase.START:
                trouble = Trouble.LATE if now - process.since >= START_TIMEOUT else None
            elif process.phase is Phase.LEAVE:
                late = now - process.since >= self._leave_timeout
                trouble = Trouble.NOT_GONE if late else None
            else:
                trouble = Trouble.HUNG if now - process.heard >= self._timeout else None
            if trouble is not None:
                # If the kill does not work, it is repeated after the same time.
                process.since = process.heard = now
                yield Step(Act.KILL, process.number, process.index, trouble)

    def _due(self, now: float) -> Iterator[Step]:
        for index, seat in enumerate(self._seats):
            if seat.due is not None and now >= seat.due:
                self.restarts[index] += 1
                yield self._start(index, now)

    def _delay(self, failures: int) -> float:
        if not failures:
            return 0.0
        return min(self._longest_delay, _FIRST_DELAY * 2.0 ** min(failures - 1, 30))

    def _start(self, index: int, now: float, *, successor: bool = False) -> Step:
        self._number += 1
        process = Process(self._number, index, Phase.START, now, now)
        self.processes[process.number] = process
        seat = self._seats[index]
        if successor:
            seat.successor = process
        else:
            seat.holder, seat.due = process, None
        return Step(Act.START, process.number, index)

    def _replace_next(self, now: float) -> list[Step]:
        if self._moving is not None or any(seat.successor for seat in self._seats):
            return []
        while self._to_replace:
            index = self._to_replace.popleft()
            # A worker without a process is about to be started anyway.
            if self._seats[index].holder is not None:
                return [self._start(index, now, successor=True)]
        return []

    def _leave(self, process: Process, act: Act, now: float) -> Step:
        process.phase, process.since = Phase.LEAVE, now
        return Step(act, process.number, process.index)
