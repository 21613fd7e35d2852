"""Blocking calls in threads: their results, their deadline, and how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.daemon_threads import Bounds, DaemonThreads


class BusyError(Exception):
    """No thread is free."""


class LateError(Exception):
    """The deadline has passed."""


class Reactor(Clock):
    """A clock that takes calls from threads, and runs them when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.called = threading.Semaphore(0)

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        self.arrived.append((function, arguments))
        self.called.release()

    def turn(self) -> None:
        """Wait for one call from a thread, and run it."""
        if not self.called.acquire(timeout=30):
            raise AssertionError("no thread has called")
        function, arguments = self.arrived.pop(0)
        function(*arguments)


class DaemonThreadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = DaemonThreads(
            self.reactor, "blocking", Bounds(most=4, deadline=60, busy=BusyError, late=LateError)
        )

    def test_result(self) -> None:
        """What a call returns comes back in the reactor's thread."""
        done = self.threads.run(threading.current_thread)
        self.assertNoResult(done)
        self.reactor.turn()
        thread = self.successResultOf(done)
        self.assertIsNot(thread, threading.current_thread())
        self.assertEqual(thread.name, "blocking")
        self.assertTrue(thread.daemon, "the process must be able to end without it")

    def test_failure(self) -> None:
        """So does what it raises."""
        done = self.threads.run(lambda: 1 / 0)
        self.reactor.turn()
        self.failureResultOf(done, ZeroDivisionError)

    def test_deadline(self) -> None:
        """A late call has failed; its result after all is ignored."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        done = self.threads.run(gate.wait)
        self.reactor.advance(61)
        self.failureResultOf(done, LateError)
        gate.set()
        self.reactor.turn()

    def test_few_at_a_time(self) -> None:
        """Calls that hang do not pile up; when they end there is room again."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        for _ in range(4):
            self.threads.run(gate.wait).addErrback(lambda _: None)
        self.failureResultOf(self.threads.run(gate.wait), BusyError)
        gate.set()
        for _ in range(4):
            self.reactor.turn()
        done = self.threads.run(lambda: 1)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(done), 1)

    def test_no_thread(self) -> None:
        """If the system gives no thread, a call fails as if none were free, and the next is run."""

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch = self.patch(threading.Thread, "start", start)
        for _ in range(5):
            self.failureResultOf(self.threads.run(lambda: 1), BusyError)
        patch.restore()
        done = self.threads.run(lambda: 1)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(done), 1)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 0)
