"""Queues with a byte budget: what each costs, what comes out, and who goes when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.limits import ITEM_COST
from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.registry.queues import _NOTHING, Account, Hold, Ledger, NoOutbox, Outbox
from tests.unit.bench import Cases, cases, endless, examples

BYE = Close(4401, "")


def nothing() -> None:
    """Do nothing when shed."""


class OutboxTests(Cases):
    def setUp(self) -> None:
        self.ledger = endless()
        self.outbox = Outbox(1000, self.ledger.phones, nothing)

    def test_item_cost(self) -> None:
        """What the contract adds to the length of each item is 64 bytes."""
        self.assertEqual(ITEM_COST, 64)

    def test_order(self) -> None:
        """Frames and the close behind them come out in the order in which they went in."""
        items: list[bytes | memoryview | Close] = [b"1", memoryview(b"2"), b"3", BYE]
        for item in items:
            self.outbox.push(item)
        self.assertEqual([self.outbox.pop() for _ in items], items)
        self.assertFalse(self.outbox)
        self.assertEqual(self.ledger.total, 0)

    def test_empty(self) -> None:
        """Nothing comes out of an empty outbox."""
        self.assertFalse(self.outbox)
        self.assertRaises(IndexError, self.outbox.pop)

    @cases(
        {
            "bytes": (b"12345", 5 + 64),
            "view": (memoryview(b"12345"), 5 + 64),
            "empty": (b"", 64),
            "close": (BYE, 64),
        }
    )
    def test_cost(self, item: bytes | memoryview | Close, cost: int) -> None:
        """An item costs its length + 64; a close has no length."""
        self.outbox.push(item)
        self.assertTrue(self.outbox)
        self.assertEqual((self.outbox.cost, self.ledger.total), (cost, cost))

    def test_budget(self) -> None:
        """A frame that fills the budget to the last byte fits, one byte more does not."""
        self.outbox.push(b"1" * 336)
        self.assertFalse(self.outbox.would_pass_budget(b"2" * 536))
        self.assertTrue(self.outbox.would_pass_budget(b"2" * 537))
        self.assertTrue(self.outbox.would_pass_budget(memoryview(b"2" * 537)))

    def test_being_written_counts(self) -> None:
        """The item being written counts against the budget until it has gone out."""
        self.outbox.writing(836)
        self.assertEqual(self.outbox.cost, 900)
        self.assertFalse(self.outbox, "what is being written is queued no more")
        self.assertTrue(self.outbox.would_pass_budget(b"1" * 37))
        self.assertFalse(self.outbox.would_pass_budget(b"1" * 36))
        self.outbox.written()
        self.assertEqual((self.outbox.cost, self.ledger.total), (0, 0))

    def test_written_leaves_the_rest(self) -> None:
        """When an item has gone out, those behind it still count."""
        self.outbox.writing(100)
        self.outbox.push(b"1")
        self.outbox.written()
        self.outbox.written()
        self.assertEqual((self.outbox.cost, self.ledger.total), (65, 65))

    def test_one_after_another(self) -> None:
        """Of items written one after another, the one being written counts, not their sum."""
        self.outbox.writing(500)
        self.outbox.writing(100)
        self.assertEqual(self.outbox.cost, 164)
        self.outbox.written()
        self.assertEqual(self.outbox.cost, 0)

    def test_clear(self) -> None:
        """Cleared of everything, also of what is being written, it can be used again."""
        self.outbox.writing(10)
        self.outbox.push(b"1")
        self.outbox.push(BYE)
        for _ in range(2):
            self.outbox.clear()
            self.assertFalse(self.outbox)
            self.assertEqual((self.outbox.cost, self.ledger.total), (0, 0))
        self.outbox.written()
        self.assertEqual(self.ledger.total, 0)
        self.outbox.writing(1)
        self.outbox.push(b"1")
        self.assertEqual(self.ledger.total, 130)

    def test_burst(self) -> None:
        """A budget of 4 MiB has room for hundreds of small frames."""
        outbox = Outbox(4 * 2**20, self.ledger.phones, nothing)
        for _ in range(5000):
            self.assertFalse(outbox.would_pass_budget(b"1" * 700))
            outbox.push(b"1" * 700)


class EmptyTests(Cases):
    """An empty queue keeps nothing: one empty deque stands for those of thousands."""

    @cases({"outbox": (Outbox,), "hold": (Hold,)})
    def test_what_is_shared(self, kind: type[Outbox | Hold]) -> None:
        """A queue has a deque of its own only while something is queued, however it ends."""
        ledger = endless()
        one, other = kind(1000, ledger.phones, nothing), kind(1000, ledger.phones, nothing)
        for empty in (one.pop, one.clear, one.retire):
            self.assertIs(one._items, _NOTHING)
            one.push(b"1")
            one.push(b"2")
            self.assertIsNot(one._items, _NOTHING)
            self.assertFalse(other)
            one.pop()
            empty()
        self.assertIs(one._items, _NOTHING)
        self.assertEqual((len(_NOTHING), ledger.total), (0, 0))

    def test_dropped(self) -> None:
        """A hold whose frames are dropped, and one that is shed as it is filled, keep none."""
        ledger = Ledger(1000)
        hold = Hold(10_000, ledger.phones, None)
        hold.on_shed = hold.drop_frames
        for _ in range(2):
            hold.push(b"1" * 500)
            hold.say_farewell(b"1" * 500, 0)
            self.assertIs(hold._items, _NOTHING)
            hold.clear()
        self.assertEqual((len(_NOTHING), ledger.total), (0, 0))

    def test_nothing_can_be_put_into_it(self) -> None:
        """Even who would by mistake cannot put anything into what is shared."""
        _NOTHING.append(b"1")
        self.assertEqual(len(_NOTHING), 0)

    def test_of_nobody(self) -> None:
        """The outbox that stands for many is an empty one whatever is done, and takes nothing."""
        ledger = Ledger(1000)
        box = NoOutbox(100, ledger.phones, None)
        self.assertRaises(TypeError, box.push, b"1")
        self.assertRaises(TypeError, box.push, Close(4000, ""))
        self.assertRaises(TypeError, box.writing, 1)
        box.written()
        box.clear()
        box.retire()
        self.assertEqual((bool(box), box.cost, box.close, ledger.total), (False, 0, None, 0))
        self.assertTrue(box.would_pass_budget(bytes(100)))
        self.assertFalse(box.would_pass_budget(b"1"))
        self.assertRaises(IndexError, box.pop)


class HoldTests(Cases):
    def setUp(self) -> None:
        self.ledger = endless()
        self.hold = Hold(400, self.ledger.phones, nothing)

    def test_order(self) -> None:
        """Frames come out in the order in which they went in, and then nothing."""
        for frame in (b"1", b"2", b"3"):
            self.hold.push(frame)
        self.assertEqual([self.hold.pop() for _ in range(4)], [b"1", b"2", b"3", None])
        self.assertFalse(self.hold)
        self.assertEqual(self.ledger.total, 0)

    def test_full(self) -> None:
        """It is full when its budget is used up to the last byte, not one byte before."""
        self.hold.push(b"1" * (400 - 64 - 1))
        self.assertFalse(self.hold.full)
        self.hold.clear()
        self.hold.push(b"1" * (400 - 64))
        self.assertTrue(self.hold.full)

    def test_low(self) -> None:
        """It is low when at most half of its budget is used."""
        self.hold.push(b"1" * (200 - 64))
        self.assertTrue(self.hold.low)
        self.hold.push(b"")
        self.assertFalse(self.hold.low)

    def test_over_the_budget(self) -> None:
        """What was sent already is held even over the budget: nothing is lost."""
        for _ in range(10):
            self.hold.push(b"1" * 400)
        self.assertTrue(self.hold.full)
        self.assertEqual([self.hold.pop() for _ in range(10)], [b"1" * 400] * 10)

    def test_farewell(self) -> None:
        """The farewell stands behind the frames, counts with its phone, and is no frame."""
        self.hold.push(b"1")
        self.hold.say_farewell(b"bye", 500)
        self.assertGreater(self.hold.overhead, 500)
        self.assertEqual(self.ledger.total, 65 + 67 + self.hold.overhead)
        self.assertEqual(self.hold.pop(), b"1")
        self.assertTrue(self.hold)
        self.assertIsNone(self.hold.pop())
        self.assertEqual(self.hold.farewell, b"bye")
        self.assertEqual(self.ledger.total, 67 + self.hold.overhead)

    def test_farewell_alone(self) -> None:
        """A farewell without its frames still counts with its phone."""
        self.hold.push(b"1")
        self.hold.say_farewell(b"bye", 500)
        self.hold.drop_frames()
        self.assertIsNone(self.hold.pop())
        self.assertEqual((self.ledger.total, self.hold.overhead), (67 + 500, 500))

    def test_clear(self) -> None:
        """Clearing drops the farewell too."""
        self.hold.push(b"1")
        self.hold.say_farewell(b"bye", 0)
        for _ in range(2):
            self.hold.clear()
            self.assertFalse(self.hold)
            self.assertIsNone(self.hold.farewell)
            self.assertEqual((self.hold.cost, self.ledger.total), (0, 0))

    def test_retired(self) -> None:
        """A queue that is retired is empty and lets its owner go."""
        self.hold.push(b"1")
        self.hold.say_farewell(b"bye", 0)
        self.hold.retire()
        self.assertFalse(self.hold)
        self.assertEqual(self.ledger.total, 0)
        self.assertIsNot(self.hold.on_shed, nothing)


class LedgerTests(Cases):
    def outbox(self, account: Account, log: list[str], name: str) -> Outbox:
        """Return an outbox that is emptied, and noted in ``log``, when it is shed."""

        def shed() -> None:
            log.append(name)
            outbox.clear()

        outbox = Outbox(10_000, account, shed)
        return outbox

    def test_largest(self) -> None:
        """Over the budget the largest queue goes, whoever added the last item."""
        ledger = Ledger(1000)
        log: list[str] = []
        small, large = (
            self.outbox(ledger.phones, log, "small"),
            self.outbox(ledger.phones, log, "large"),
        )
        large.push(b"1" * 700)
        small.push(b"2" * 172)
        self.assertEqual((log, ledger.total), ([], 1000))
        small.push(b"")
        self.assertEqual((log, ledger.total), (["large"], 300))
        self.assertEqual(ledger.shed, 1)

    def test_being_written_can_be_too_much(self) -> None:
        """What is being written counts among all queues too."""
        ledger = Ledger(1000)
        log: list[str] = []
        self.outbox(ledger.phones, log, "only").writing(1000)
        self.assertEqual((log, ledger.total), (["only"], 0))

    def test_kinds_are_compared(self) -> None:
        """Outboxes and holds share one budget."""
        ledger = Ledger(1000)
        log: list[str] = []
        hold = Hold(10_000, ledger.phones, nothing)
        self.outbox(ledger.phones, log, "outbox").push(b"1" * 600)
        hold.push(b"2" * 500)
        self.assertEqual((log, ledger.total), (["outbox"], 564))

    def test_of_the_kind_that_takes_the_most(self) -> None:
        """Slow binaries are shed for slow binaries, and phones for phones."""
        ledger = Ledger(1000)
        log: list[str] = []
        binaries = [self.outbox(ledger.binaries, log, f"b{each}") for each in range(2)]
        phones = [self.outbox(ledger.phones, log, f"p{each}") for each in range(3)]
        binaries[0].writing(336)
        for queue, size in zip(phones, (236, 186, 86), strict=True):
            queue.writing(size)
        self.assertEqual((log, ledger.total), (["p0"], 800), "though b0 takes more")
        binaries[1].writing(186)
        self.assertEqual((log, ledger.total), (["p0", "b0"], 650))
        self.assertEqual((ledger.phones.total, ledger.binaries.total), (400, 250))

    def test_only_one_kind_can_be_shed(self) -> None:
        """Where nothing of the larger kind can go, what can goes."""
        ledger = Ledger(1000)
        log: list[str] = []
        Outbox(10_000, ledger.binaries, None).writing(836)
        self.outbox(ledger.phones, log, "phone").writing(100)
        self.assertEqual((log, ledger.total), (["phone"], 900))

    def test_until_it_fits(self) -> None:
        """As many go as have to, the largest first."""
        ledger = Ledger(3000)
        log: list[str] = []
        queues = [self.outbox(ledger.phones, log, str(size)) for size in range(5)]
        for size, queue in enumerate(queues):
            queue.push(b"1" * 100 * size)
        ledger.budget = 600
        queues[0].push(b"")
        self.assertEqual(log, ["4", "3"])
        self.assertEqual(ledger.total, 556)

    def test_nobody_listens(self) -> None:
        """The budget holds though whoever is shed does nothing about it."""
        ledger = Ledger(1000)
        outbox, hold = Outbox(10_000, ledger.phones, nothing), Hold(10_000, ledger.phones, nothing)
        outbox.push(b"1" * 600)
        hold.push(b"2" * 700)
        self.assertFalse(hold)
        self.assertEqual(ledger.total, 664)
        self.assertEqual(ledger.shed, 1)

    def test_shed_leaves_something(self) -> None:
        """Whoever is shed may queue something smaller in place of what was there."""
        ledger = Ledger(1000)
        hold: Hold

        def shed() -> None:
            hold.clear()
            hold.say_farewell(b"bye", 0)

        hold = Hold(10_000, ledger.phones, shed)
        hold.push(b"1" * 2000)
        self.assertEqual((hold.pop(), hold.farewell), (None, b"bye"))
        self.assertEqual(ledger.total, 67)

    def test_retired_queue_goes_no_more(self) -> None:
        """A queue that is retired is nobody's to close any more."""
        ledger = Ledger(1000)
        log: list[str] = []
        old, new = (self.outbox(ledger.phones, log, each) for each in ("old", "new"))
        old.push(b"1" * 800)
        old.retire()
        new.push(b"1" * 2000)
        self.assertEqual((log, ledger.total), (["new"], 0))

    def test_highest(self) -> None:
        """The ledger remembers how much there ever was."""
        ledger = Ledger(1000)
        outbox = Outbox(10_000, ledger.phones, nothing)
        outbox.push(b"1" * 236)
        outbox.clear()
        outbox.push(b"")
        self.assertEqual((ledger.highest, ledger.total), (300, 64))

    @examples(150)
    @given(
        st.integers(100, 3000),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 600)), max_size=60),
    )
    def test_any_use(self, budget: int, uses: list[tuple[int, int, int]]) -> None:
        """However queues are used, the total is their sum, within the budget, and 0 at the end.

        Each time it is the largest of its kind that is shed, and the kind takes no less than the
        other.
        """
        ledger = Ledger(budget)
        queues: list[Outbox | Hold] = []

        def costs(account: Account) -> list[int]:
            return [each.cost for each in queues if each.account is account]

        def shed(number: int) -> Callable[[], None]:
            def run() -> None:
                mine = costs(queues[number].account)
                self.assertEqual(queues[number].cost, max(mine))
                self.assertGreaterEqual(2 * sum(mine), ledger.total)
                queues[number].clear()

            return run

        for number in range(5):
            kind = Outbox if number < 3 else Hold
            account = ledger.binaries if number % 2 else ledger.phones
            queues.append(kind(10_000, account, shed(number)))
        for action, number, size in uses:
            queue = queues[number]
            if action <= 4:
                queue.push(b"1" * size)
            elif action == 5:
                queue.clear()
            elif (action <= 7 and queue and isinstance(queue, Hold)) or (action == 6 and queue):
                queue.pop()
            elif isinstance(queue, Hold):
                if queue.farewell is None:
                    queue.say_farewell(b"1" * size, 0)
            elif action == 8:
                queue.writing(size)
            else:
                queue.written()
            for account in (ledger.phones, ledger.binaries):
                self.assertEqual(account.total, sum(costs(account)))
            self.assertEqual(ledger.total, sum(each.cost for each in queues))
            self.assertLessEqual(ledger.total, budget)
        for queue in queues:
            queue.clear()
        self.assertEqual(ledger.total, 0)
