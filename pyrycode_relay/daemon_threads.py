"""Blocking calls beside the reactor, each in a daemon thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of blocking calls, and the errors of those that exceed them.

    Args:
        most: Threads at a time. Calls that the operating system holds up, such as a look-up of a
            name, must not pile up.
        deadline: Seconds for one call.
        busy: Makes the error of a call that finds no free thread.
        late: Makes the error of a call that is not done at the deadline.

    """

    most: int
    deadline: float
    busy: Callable[[], Exception]
    late: Callable[[], Exception]


class DaemonThreads:
    """Runs blocking calls, each in a daemon thread called ``name``.

    Twisted's thread pool waits for every call when it ends, so a server that does not answer
    could hold up the end of the process. Daemon threads are left behind.
    """

    def __init__(self, reactor: Any, name: str, bounds: Bounds) -> None:
        self._reactor: IReactorFromThreads = reactor
        self._clock: IReactorTime = reactor
        self._name = name
        self._bounds = bounds
        self._running = 0

    def run(self, work: Callable[[], _Result]) -> Deferred[_Result]:
        """Return the result of ``work``."""
        done: Deferred[_Result] = Deferred()
        if self._running >= self._bounds.most:
            done.errback(self._bounds.busy())
            return done
        self._running += 1

        def settle(outcome: Any) -> None:
            self._running -= 1
            # After the deadline, the Deferred ignores this.
            done.callback(outcome)

        def call() -> None:
            try:
                outcome: Any = work()
            except BaseException:
                outcome = Failure()
            self._reactor.callFromThread(settle, outcome)

        def late(_: object, __: float) -> _Result:
            raise self._bounds.late()

        try:
            threading.Thread(target=call, name=self._name, daemon=True).start()
        except RuntimeError:
            # The system refuses the process another thread.
            self._running -= 1
            done.errback(self._bounds.busy())
            return done
        return done.addTimeout(self._bounds.deadline, cast(Any, self._clock), late)
