"""Deadlines that fire late, on a clock that jumps as a stopped process sees it."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from pyrycode_relay.deadlines import Deadlines
from tests.unit.bench import Cases, cases


class DeadlineTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.calls: list[tuple[float, tuple[object, ...]]] = []

    def note(self, *args: object) -> None:
        """Note a call, its time and its arguments."""
        self.calls.append((self.clock.seconds(), args))

    def plan(self, delay: float) -> IDelayedCall:
        """Plan a call that is noted."""
        return self.deadlines.callLater(delay, self.note, "argument")

    def test_interfaces(self) -> None:
        """They are a clock and its calls, also for code that knows only the interfaces."""
        verifyObject(IReactorTime, self.deadlines)
        verifyObject(IDelayedCall, self.plan(1))
        self.assertEqual(len(self.deadlines.getDelayedCalls()), 1)

    @cases({"on_time": (5.0,), "a_little_late": (5.04,)})
    def test_prompt(self, when: float) -> None:
        """A deadline that fires when it is due counts."""
        planned = self.plan(5)
        self.assertEqual((planned.getTime(), self.deadlines.seconds()), (5, 0))
        self.clock.advance(4.9)
        self.assertEqual((planned.active(), self.calls), (True, []))
        self.clock.advance(when - 4.9)
        self.assertEqual(self.calls, [(when, ("argument",))])
        self.assertFalse(planned.active())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @cases({"by_as_long": (12.0, 19.0), "by_a_bound": (1000.0, 1030.0)})
    def test_late(self, when: float, end: float) -> None:
        """A late one is put off by as long as it is late, within a bound."""
        planned = self.plan(5)
        self.clock.advance(when)
        self.assertTrue(planned.active())
        self.assertEqual(planned.getTime(), end)
        self.clock.advance(end - when - 0.1)
        self.assertEqual(self.calls, [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.calls), 1)

    def test_always_late(self) -> None:
        """A clock that is always late still reaches the end."""
        self.plan(5)
        for _ in range(4):
            self.assertEqual(self.calls, [])
            self.clock.advance(1000)
        self.assertEqual(len(self.calls), 1)

    def test_cancelled_when_put_off(self) -> None:
        """A deadline can be cancelled, also after it was put off."""
        for passed in (1, 20):
            planned = self.plan(5)
            self.clock.advance(passed)
            planned.cancel()
            self.assertFalse(planned.active())
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_moved(self) -> None:
        """A deadline can be moved."""
        planned = self.plan(5)
        planned.delay(5)
        self.assertEqual(planned.getTime(), 10)
        planned.reset(3)
        self.clock.advance(3)
        self.assertEqual(len(self.calls), 1)

    def test_named_arguments(self) -> None:
        """A call may have named arguments."""
        self.deadlines.callLater(1, lambda **named: self.note(*named.items()), a=1)
        self.clock.advance(1)
        self.assertEqual(self.calls, [(1, (("a", 1),))])
