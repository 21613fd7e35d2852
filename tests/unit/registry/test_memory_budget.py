"""The memory budget: what counts, and who goes when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.registry.drain_time import FAIR_START, Pace
from pyrycode_relay.registry.memory_budget import CANDIDATES, WORTHWHILE, MemoryBudget, QueueGroup
from pyrycode_relay.registry.queues import Outbox, PendingFrames
from tests.unit.bench import Cases, bounded, examples

BYE = Close(4401, "")


def nothing() -> None:
    """Do nothing when shed."""


class MemoryBudgetTests(Cases):
    def outbox(
        self, group: QueueGroup, log: list[str], name: str, pace: Callable[[], Pace] = Pace
    ) -> Outbox:
        """Return an outbox that is emptied, and noted in ``log``, when it is shed."""

        def shed() -> None:
            log.append(name)
            outbox.clear()

        outbox = Outbox(10_000, group, shed, pace)
        return outbox

    def test_largest(self) -> None:
        """Of queues of which nothing is taken the largest goes, whoever added the last item."""
        memory_budget = bounded(1000)
        log: list[str] = []
        small, large = (
            self.outbox(memory_budget.phones, log, "small"),
            self.outbox(memory_budget.phones, log, "large"),
        )
        large.push(b"1" * 700)
        small.push(b"2" * 172)
        self.assertEqual((log, memory_budget.total), ([], 1000))
        small.push(b"")
        self.assertEqual((log, memory_budget.total), (["large"], 300))
        self.assertEqual(memory_budget.shed, 1)

    def test_slowest_to_drain(self) -> None:
        """The queue that would take longest to drain goes, however small it is, and however much
        more a fast peer's queue takes."""
        clock = Clock()
        memory_budget = MemoryBudget(1000, clock.seconds)
        log: list[str] = []
        fast, slow, dead = (
            self.outbox(memory_budget.phones, log, name, lambda taken=taken: Pace(taken, 1.0))  # type: ignore[misc]
            for name, taken in (("fast", 600), ("slow", 10), ("dead", 0))
        )
        for queue, size in ((fast, 500), (slow, 100), (dead, 1)):
            queue.push(b"1" * size)
        clock.advance(FAIR_START)
        for expected in ("dead", "slow", "fast"):
            memory_budget.budget = memory_budget.total
            fast.push(b"")
            self.assertEqual(log[-1], expected)
        self.assertEqual(log, ["dead", "slow", "fast"])

    def test_many_of_a_stranger(self) -> None:
        """17 queues that fill the budget go, one after the other, and the largest queue of all,
        whose peer reads, stays; the same while the strangers begin anew each time."""
        clock = Clock()
        memory_budget = MemoryBudget(320_000, clock.seconds)
        log: list[str] = []
        honest = self.outbox(memory_budget.phones, log, "honest", lambda: Pace(5_000_000, 5.0))
        honest.push(b"1" * 90_000)
        clock.advance(FAIR_START)
        for pace in (Pace(), Pace(1, 5.0), Pace(5_000, 5.0)):
            strangers = [
                self.outbox(memory_budget.phones, log, "stranger", lambda pace=pace: pace)  # type: ignore[misc]
                for _ in range(17)
            ]
            for number in range(500):
                strangers[number % 17].push(b"2" * 20_000)
                clock.advance(0.01)
        self.assertGreater(len(log), 1000)
        self.assertNotIn("honest", log)

    def test_a_new_queue_is_not_dead(self) -> None:
        """A queue that has just begun stays before older ones of peers that take nothing."""
        clock = Clock()
        memory_budget = MemoryBudget(1000, clock.seconds)
        log: list[str] = []
        old, new = (self.outbox(memory_budget.phones, log, each) for each in ("old", "new"))
        old.push(b"1" * 100)
        clock.advance(FAIR_START)
        new.push(b"2" * 772)
        new.push(b"")
        self.assertEqual((log, memory_budget.total), (["old"], 900))
        self.assertEqual(new.cost, 900)

    def test_begins_anew(self) -> None:
        """A queue that was empty has a fair start again; one that never was has none."""
        clock = Clock()
        memory_budget = MemoryBudget(1000, clock.seconds)
        log: list[str] = []
        drained, stuck = (self.outbox(memory_budget.phones, log, each) for each in ("a", "b"))
        for queue in (drained, stuck):
            queue.push(b"1" * 86)
        clock.advance(FAIR_START)
        drained.pop()
        drained.push(b"1" * 736)
        stuck.push(b"")
        self.assertEqual(log, ["b"])

    def test_of_very_many(self) -> None:
        """Of very many queues only the largest are looked at, so that a choice takes bounded time;
        the slowest of these goes."""
        clock = Clock()
        asked: list[int] = []
        memory_budget = MemoryBudget(10**9, clock.seconds)
        log: list[str] = []

        def outbox(number: int) -> Outbox:
            def pace() -> Pace:
                asked.append(number)
                return Pace(number, 1.0)

            return self.outbox(memory_budget.phones, log, str(number), pace)

        queues = [outbox(number) for number in range(2 * CANDIDATES)]
        for number, queue in enumerate(queues):
            queue.push(b"1" * (1 + number))
        clock.advance(FAIR_START)
        memory_budget.budget = memory_budget.total
        queues[0].push(b"")
        self.assertCountEqual(asked, range(CANDIDATES, 2 * CANDIDATES))
        self.assertEqual(log, [str(CANDIDATES)])

    def test_being_written_can_be_too_much(self) -> None:
        """What is being written counts among all queues too."""
        memory_budget = bounded(1000)
        log: list[str] = []
        self.outbox(memory_budget.phones, log, "only").writing(1000)
        self.assertEqual((log, memory_budget.total), (["only"], 0))

    def test_kinds_are_compared(self) -> None:
        """Outboxes and holds share one budget."""
        memory_budget = bounded(1000)
        log: list[str] = []
        hold = PendingFrames(10_000, memory_budget.phones, nothing)
        self.outbox(memory_budget.phones, log, "outbox").push(b"1" * 600)
        hold.push(b"2" * 500)
        self.assertEqual((log, memory_budget.total), (["outbox"], 564))

    def test_of_the_kind_that_takes_the_most(self) -> None:
        """Slow binaries are shed for slow binaries, and phones for phones."""
        memory_budget = bounded(1000)
        log: list[str] = []
        binaries = [self.outbox(memory_budget.binaries, log, f"b{each}") for each in range(2)]
        phones = [self.outbox(memory_budget.phones, log, f"p{each}") for each in range(3)]
        binaries[0].writing(336)
        for queue, size in zip(phones, (236, 186, 86), strict=True):
            queue.writing(size)
        self.assertEqual((log, memory_budget.total), (["p0"], 800), "though b0 takes more")
        binaries[1].writing(186)
        self.assertEqual((log, memory_budget.total), (["p0", "b0"], 650))
        self.assertEqual((memory_budget.phones.total, memory_budget.binaries.total), (400, 250))

    def test_only_one_kind_can_be_shed(self) -> None:
        """Where nothing of the larger kind can go, what can goes."""
        memory_budget = bounded(1000)
        log: list[str] = []
        Outbox(10_000, memory_budget.binaries, None).writing(836)
        self.outbox(memory_budget.phones, log, "phone").writing(100)
        self.assertEqual((log, memory_budget.total), (["phone"], 900))

    def test_until_it_fits(self) -> None:
        """As many go as have to, the largest first."""
        memory_budget = bounded(3000)
        log: list[str] = []
        queues = [self.outbox(memory_budget.phones, log, str(size)) for size in range(5)]
        for size, queue in enumerate(queues):
            queue.push(b"1" * 100 * size)
        memory_budget.budget = 600
        queues[0].push(b"")
        self.assertEqual(log, ["4", "3"])
        self.assertEqual(memory_budget.total, 556)

    def test_nobody_listens(self) -> None:
        """The budget holds though whoever is shed does nothing about it."""
        memory_budget = bounded(1000)
        outbox, hold = (
            Outbox(10_000, memory_budget.phones, nothing),
            PendingFrames(10_000, memory_budget.phones, nothing),
        )
        outbox.push(b"1" * 600)
        hold.push(b"2" * 700)
        self.assertFalse(hold)
        self.assertEqual(memory_budget.total, 664)
        self.assertEqual(memory_budget.shed, 1)

    def test_shed_leaves_something(self) -> None:
        """Whoever is shed may queue something smaller in place of what was there."""
        memory_budget = bounded(1000)
        hold: PendingFrames

        def shed() -> None:
            hold.clear()
            hold.add_close_notice(b"bye", 0)

        hold = PendingFrames(10_000, memory_budget.phones, shed)
        hold.push(b"1" * 2000)
        self.assertEqual((hold.pop(), hold.close_notice), (None, b"bye"))
        self.assertEqual(memory_budget.total, 67)

    def test_retired_queue_goes_no_more(self) -> None:
        """A queue that is retired is nobody's to close any more."""
        memory_budget = bounded(1000)
        log: list[str] = []
        old, new = (self.outbox(memory_budget.phones, log, each) for each in ("old", "new"))
        old.push(b"1" * 800)
        old.retire()
        new.push(b"1" * 2000)
        self.assertEqual((log, memory_budget.total), (["new"], 0))

    def test_highest(self) -> None:
        """The budget remembers the largest sum."""
        memory_budget = bounded(1000)
        outbox = Outbox(10_000, memory_budget.phones, nothing)
        outbox.push(b"1" * 236)
        outbox.clear()
        outbox.push(b"")
        self.assertEqual((memory_budget.highest, memory_budget.total), (300, 64))

    def test_shrinking(self) -> None:
        """It is told when much has gone, even if that was there for a moment only; once for the
        same bytes, and again and again while the queues go on shrinking."""
        memory_budget = bounded(1 << 30)
        memory_budget.settle(WORTHWHILE)
        memory_budget.settle(-WORTHWHILE)
        shrunk: list[int] = []
        memory_budget.on_shrink = lambda: shrunk.append(memory_budget.total)
        memory_budget.settle(4 * WORTHWHILE)
        self.assertEqual(shrunk, [])
        for _ in range(64):
            memory_budget.settle(-WORTHWHILE // 16)
        self.assertEqual(shrunk, [each * WORTHWHILE for each in (3, 2, 1, 0)])
        for _ in range(10):
            memory_budget.settle(WORTHWHILE - 1)
            memory_budget.settle(1 - WORTHWHILE)
        self.assertEqual(len(shrunk), 4)
        self.assertEqual(memory_budget.highest, 4 * WORTHWHILE)

    @examples(150)
    @given(
        st.integers(100, 3000),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 600)), max_size=60),
    )
    def test_any_use(self, budget: int, uses: list[tuple[int, int, int]]) -> None:
        """However queues are used, the total is their sum, within the budget, and 0 at the end.

        No peer takes anything, so each time it is the largest of its kind that is shed, and the
        kind takes no less than the other.
        """
        memory_budget = bounded(budget)
        queues: list[Outbox | PendingFrames] = []

        def costs(group: QueueGroup) -> list[int]:
            return [each.cost for each in queues if each.group is group]

        def shed(number: int) -> Callable[[], None]:
            def run() -> None:
                mine = costs(queues[number].group)
                self.assertEqual(queues[number].cost, max(mine))
                self.assertGreaterEqual(2 * sum(mine), memory_budget.total)
                queues[number].clear()

            return run

        for number in range(5):
            kind = Outbox if number < 3 else PendingFrames
            group = memory_budget.binaries if number % 2 else memory_budget.phones
            queues.append(kind(10_000, group, shed(number)))
        for action, number, size in uses:
            queue = queues[number]
            if action <= 4:
                queue.push(b"1" * size)
            elif action == 5:
                queue.clear()
            elif (action <= 7 and queue and isinstance(queue, PendingFrames)) or (
                action == 6 and queue
            ):
                queue.pop()
            elif isinstance(queue, PendingFrames):
                if queue.close_notice is None:
                    queue.add_close_notice(b"1" * size, 0)
            elif action == 8:
                queue.writing(size)
            else:
                queue.written()
            for group in (memory_budget.phones, memory_budget.binaries):
                self.assertEqual(group.total, sum(costs(group)))
            self.assertEqual(memory_budget.total, sum(each.cost for each in queues))
            self.assertLessEqual(memory_budget.total, budget)
        for queue in queues:
            queue.clear()
        self.assertEqual(memory_budget.total, 0)
