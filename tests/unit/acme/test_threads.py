"""The bounds of the ACME library's threads."""

from __future__ import annotations

import threading

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.acme.client import AcmeError
from pyrycode_relay.acme.threads import BOUNDS, acme_threads


class AcmeThreadTests(SynchronousTestCase):
    def test_bounds(self) -> None:
        """A call that hangs, and one that finds no thread, fail as the CA's own errors do."""
        reactor, gate = Clock(), threading.Event()
        self.addCleanup(gate.set)
        reactor.callFromThread = lambda *_: None  # type: ignore[attr-defined]
        threads = acme_threads(reactor)
        hanging = [threads.run(gate.wait) for _ in range(BOUNDS.most)]
        busy = self.failureResultOf(threads.run(gate.wait), AcmeError)
        self.assertIn("earlier requests", str(busy.value))
        reactor.advance(BOUNDS.deadline)
        for each in hanging:
            late = self.failureResultOf(each, AcmeError)
            self.assertIn("in time", str(late.value))
