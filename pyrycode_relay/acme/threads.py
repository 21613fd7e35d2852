"""Blocking calls beside the reactor, each in a daemon thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from pyrycode_relay.acme.client import DEADLINE, AcmeError
from pyrycode_relay.acme.schedule import UNREACHABLE

CALL_DEADLINE: Final = DEADLINE + 30.0
"""Seconds for one call. A conversation ends earlier, unless the operating system holds it up."""

_MOST: Final = 4
"""Threads at a time: calls that the operating system holds up, such as a look-up of a name, must
not pile up."""

_Result = TypeVar("_Result")


class DaemonThreads:
    """Runs blocking calls, each in a daemon thread and with a deadline in seconds.

    Twisted's thread pool waits for every call when it ends, so a CA that does not answer could
    hold up the end of the process. Daemon threads are left behind.
    """

    def __init__(self, reactor: Any, *, deadline: float = CALL_DEADLINE) -> None:
        self._reactor: IReactorFromThreads = reactor
        self._clock: IReactorTime = reactor
        self._deadline = deadline
        self._running = 0

    def run(self, work: Callable[[], _Result]) -> Deferred[_Result]:
        """Return the result of ``work``. It fails with `AcmeError` at the deadline."""
        done: Deferred[_Result] = Deferred()
        if self._running >= _MOST:
            done.errback(AcmeError("earlier requests to the CA still hang"))
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
            raise AcmeError("the CA did not answer in time", first_wait=UNREACHABLE)

        threading.Thread(target=call, name="acme", daemon=True).start()
        return done.addTimeout(self._deadline, cast(Any, self._clock), late)
