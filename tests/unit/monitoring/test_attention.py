"""The verdict: since when a finding holds, how windows move, and the order."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.task import Clock

from pyrycode_relay.events import Event
from pyrycode_relay.monitoring import thresholds
from pyrycode_relay.monitoring.attention import WELL, Attention, Orders, verdict
from pyrycode_relay.monitoring.findings import CertificateFacts, Counted, Facts
from tests.unit.bench import Cases

STEP = 10
START = 1_800_000_000.0


class AttentionTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.facts = Facts(now=START)
        self.attention = Attention(self.read, self.clock.seconds)
        self.attention.sample()

    def read(self) -> Facts:
        return replace(self.facts, now=START + self.clock.seconds())

    def let_pass(self, seconds: int) -> None:
        for _ in range(seconds // STEP):
            self.clock.advance(STEP)
            self.attention.sample()

    def count(self, **numbers: int) -> None:
        self.facts = replace(self.facts, counted=Counted(**numbers))

    def kinds(self) -> list[str]:
        return [item.finding.kind.label for item in self.attention.items()]

    def test_since(self) -> None:
        """A finding keeps its beginning while it holds; a second time begins anew."""
        self.let_pass(60)
        self.facts = replace(self.facts, draining=True)
        self.assertEqual([item.since for item in self.attention.items()], [START + 60])
        self.let_pass(60)
        self.assertEqual([item.since for item in self.attention.items()], [START + 60])
        self.facts = replace(self.facts, draining=False)
        self.let_pass(10)
        self.facts = replace(self.facts, draining=True)
        self.let_pass(10)
        self.assertEqual([item.since for item in self.attention.items()], [START + 140])

    def test_window(self) -> None:
        """What has happened needs attention as long as its window, and then no longer."""
        self.count(backlog_closes=1)
        self.assertEqual(self.kinds(), ["backlog_closes"])
        self.let_pass(thresholds.BACKLOG_WINDOW)
        self.assertEqual(self.kinds(), ["backlog_closes"])
        self.let_pass(2 * STEP)
        self.assertEqual(self.kinds(), [])
        self.count(backlog_closes=2)
        self.assertEqual(self.kinds(), ["backlog_closes"])

    def test_rate(self) -> None:
        """A number that grows all the time is compared with what it was at the window's begin."""
        for number in range(60):
            self.count(rate_limited=number * 9)
            self.let_pass(STEP)
        self.assertEqual(self.kinds(), [])
        for number in range(60, 120):
            self.count(rate_limited=number * 11)
            self.let_pass(STEP)
        self.assertEqual(self.kinds(), ["rate_limited"])

    def test_binaries(self) -> None:
        """The binaries of a quarter of an hour are remembered, and no longer."""
        self.count(binaries=10)
        self.let_pass(300)
        self.count(binaries=4)
        self.let_pass(300)
        self.assertEqual(self.kinds(), ["binaries_gone"])
        self.let_pass(thresholds.BINARIES_WINDOW)
        self.assertEqual(self.kinds(), [])
        self.count(binaries=10)
        self.let_pass(STEP)
        self.count(binaries=4)
        self.assertEqual(self.kinds(), [], "a probe that was there for a moment")

    def test_order(self) -> None:
        """The worst stands first, and it is the verdict."""
        self.assertEqual(verdict(self.attention.items()), WELL)
        self.count(conflicts=11)
        self.assertEqual(verdict(self.attention.items()), "warn")
        ends = CertificateFacts(not_after={"a.example": START})
        self.facts = replace(self.facts, draining=True, certificates=ends)
        self.assertEqual(self.kinds(), ["certificate_ends_now", "draining", "conflicts"])
        self.assertEqual(verdict(self.attention.items()), "page")

    def test_after_a_long_stop(self) -> None:
        """If no sample was taken for longer than a window, the last one counts."""
        self.count(backlog_closes=1)
        self.let_pass(STEP)
        self.clock.advance(3600)
        self.assertEqual(self.kinds(), [])


class OrderTests(Cases):
    def test_failures(self) -> None:
        """The first failure's time stays until an order succeeds."""
        clock = Clock()
        orders = Orders(clock.seconds)
        orders.saw(Event.ACME_FAILED, reason="the CA refused", err="", retry_in=60)
        clock.advance(60)
        orders.saw(Event.ACME_FAILED, reason="the CA refused", err="caa", retry_in=60)
        assert orders.failing is not None
        self.assertEqual((orders.failing.reason, orders.failing.since), ("the CA refused (caa)", 0))
        orders.saw(Event.ACME_ISSUED, duration=1)
        self.assertIsNone(orders.failing)
