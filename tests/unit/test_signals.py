"""The signals that end the relay, sent to this process."""

from __future__ import annotations

import signal
from collections.abc import Callable

from pyrycode_relay.signals import handle_signals
from tests.unit.bench import Cases, cases

BOTH = (signal.SIGTERM, signal.SIGINT)


class SignalTests(Cases):
    def setUp(self) -> None:
        for each in BOTH:
            self.addCleanup(signal.signal, each, signal.getsignal(each))
        self.stops = 0
        self.scheduled: list[Callable[[], None]] = []
        handle_signals(self.stop, self.scheduled.append)

    def stop(self) -> None:
        """Take the place of the reactor's stop."""
        self.stops += 1

    @cases({each.name: (each,) for each in BOTH})
    def test_first(self, number: signal.Signals) -> None:
        """The first signal stops the reactor, in the reactor's thread."""
        signal.raise_signal(number)
        self.assertEqual(self.stops, 0)
        [call] = self.scheduled
        call()
        self.assertEqual(self.stops, 1)

    @cases({each.name: (each,) for each in BOTH})
    def test_second(self, number: signal.Signals) -> None:
        """After the first, either signal does what the system does: it ends the process."""
        signal.raise_signal(number)
        self.assertEqual([*map(signal.getsignal, BOTH)], [signal.SIG_DFL] * 2)
