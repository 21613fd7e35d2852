"""Contests: who gets a server-id that a binary holds already, in every order of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pyrycode_relay.endpoints.contest import Contests, Verdict
from pyrycode_relay.limits import Limits
from pyrycode_relay.registry.registry import Claimed, Registry
from tests.unit.bench import Binary, Cases, endless, examples


class Newcomer(Binary):
    """A binary's connection that can be probed, and that claims."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.serving = True
        self.holds = False
        self.answers: list[Callable[[bool], None]] = []

    def hold_messages(self) -> None:
        self.holds = True

    def probe(self, answered: Callable[[bool], None]) -> None:
        self.answers.append(answered)


class ContestTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = Registry(self.clock, Limits(), endless(), lambda _slot, _phones: None)
        self.contests = Contests(self.registry)

    def claim(self, newcomer: Newcomer) -> list[Any]:
        """Claim the one server-id; return a list that gets the outcome."""
        outcomes: list[Any] = []
        claiming = Deferred.fromCoroutine(self.contests.claim("home", newcomer))
        claiming.addCallback(outcomes.append)
        claiming.addErrback(outcomes.append)
        return outcomes

    def incumbent(self) -> Newcomer:
        """Return a binary that holds the server-id."""
        incumbent = Newcomer("incumbent")
        [claim] = self.claim(incumbent)
        self.assertIsInstance(claim, Claimed)
        self.assertFalse(incumbent.holds)
        return incumbent

    def test_free(self) -> None:
        """A claim of a free server-id is decided at once."""
        self.incumbent()

    def test_alive(self) -> None:
        """One that meets a live incumbent is rejected; it held messages meanwhile."""
        incumbent, newcomer = self.incumbent(), Newcomer("newcomer")
        outcome = self.claim(newcomer)
        self.assertEqual((outcome, newcomer.holds), ([], True))
        [answered] = incumbent.answers
        answered(True)
        self.assertEqual(outcome, [Verdict.REJECTED])

    def test_dead(self) -> None:
        """The first newcomer takes a dead incumbent's place; the others meet a live binary."""
        incumbent = self.incumbent()
        newcomers = [Newcomer(str(number)) for number in range(3)]
        outcomes = [self.claim(each) for each in newcomers]
        [answered] = incumbent.answers
        answered(False)
        self.assertIs(outcomes[0][0].displaced, incumbent)
        self.assertEqual(outcomes[1:], [[Verdict.REJECTED], [Verdict.REJECTED]])

    def test_gone(self) -> None:
        """One that left while it waited gets nothing, and the next takes the place."""
        incumbent, first, second = self.incumbent(), Newcomer("first"), Newcomer("second")
        outcomes = self.claim(first), self.claim(second)
        first.serving = False
        incumbent.answers[0](False)
        self.assertEqual(outcomes[0], [Verdict.GONE])
        self.assertIs(outcomes[1][0].displaced, incumbent)

    def test_one_probe(self) -> None:
        """Newcomers share a probe; the 17th that waits is rejected at once."""
        incumbent = self.incumbent()
        waiting = [self.claim(Newcomer(str(number))) for number in range(16)]
        self.assertEqual(self.claim(Newcomer("17th")), [Verdict.REJECTED])
        self.assertEqual((waiting, len(incumbent.answers)), ([[]] * 16, 1))

    def test_second_contest(self) -> None:
        """A probe that is over is no answer for a later newcomer."""
        incumbent = self.incumbent()
        self.claim(Newcomer("early"))
        incumbent.answers[0](True)
        late = self.claim(Newcomer("late"))
        self.assertEqual((late, len(incumbent.answers)), ([], 2))
        incumbent.answers[1](True)
        self.assertEqual(late, [Verdict.REJECTED])

    def test_incumbent_that_left(self) -> None:
        """The place of an incumbent that left during the probe is claimed, not taken over."""
        incumbent, newcomer = self.incumbent(), Newcomer("newcomer")
        outcome = self.claim(newcomer)
        slot = self.registry._slots["home"]
        self.assertTrue(self.registry.release(slot, incumbent))
        incumbent.answers[0](False)
        self.assertTrue(outcome[0].reclaimed)
        self.assertIsNone(outcome[0].displaced)

    def test_incumbent_that_was_replaced(self) -> None:
        """One that finds a third binary in the slot probes that one."""
        incumbent, newcomer, third = self.incumbent(), Newcomer("newcomer"), Newcomer("third")
        outcome = self.claim(newcomer)
        self.registry.release(self.registry._slots["home"], incumbent)
        self.assertIsInstance(self.claim(third)[0], Claimed)
        incumbent.answers[0](False)
        self.assertEqual((outcome, len(third.answers)), ([], 1))
        third.answers[0](True)
        self.assertEqual(outcome, [Verdict.REJECTED])

    @given(st.lists(st.booleans(), min_size=1, max_size=20), st.booleans())
    @examples(100)
    def test_any_crowd(self, staying: list[bool], alive: bool) -> None:
        """Everybody hears exactly one verdict, and at most one takes the place."""
        self.setUp()
        incumbent = self.incumbent()
        newcomers = [Newcomer(str(number)) for number in range(len(staying))]
        outcomes = [self.claim(each) for each in newcomers]
        for newcomer, stays in zip(newcomers, staying, strict=True):
            newcomer.serving = stays
        incumbent.answers[0](alive)
        self.assertEqual({len(each) for each in outcomes}, {1})
        winners = [each for [each] in outcomes if isinstance(each, Claimed)]
        self.assertEqual(len(winners), int(not alive and any(staying[:16])))
        for stays, [outcome] in zip(staying[:16], outcomes[:16], strict=True):
            self.assertEqual(outcome is Verdict.GONE, not stays)
