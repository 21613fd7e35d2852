"""Queues with a byte budget: what each costs, and what comes out."""

from __future__ import annotations

from pyrycode_relay.limits import ITEM_COST
from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.registry.queues import _NOTHING, NoOutbox, Outbox, PendingFrames
from tests.unit.bench import Cases, bounded, cases, endless

BYE = Close(4401, "")


def nothing() -> None:
    """Do nothing when shed."""


class OutboxTests(Cases):
    def setUp(self) -> None:
        self.memory_budget = endless()
        self.outbox = Outbox(1000, self.memory_budget.phones, nothing)

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
        self.assertEqual(self.memory_budget.total, 0)

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
        self.assertEqual((self.outbox.cost, self.memory_budget.total), (cost, cost))

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
        self.assertEqual((self.outbox.cost, self.memory_budget.total), (0, 0))

    def test_written_leaves_the_rest(self) -> None:
        """When an item has gone out, those behind it still count."""
        self.outbox.writing(100)
        self.outbox.push(b"1")
        self.outbox.written()
        self.outbox.written()
        self.assertEqual((self.outbox.cost, self.memory_budget.total), (65, 65))

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
            self.assertEqual((self.outbox.cost, self.memory_budget.total), (0, 0))
        self.outbox.written()
        self.assertEqual(self.memory_budget.total, 0)
        self.outbox.writing(1)
        self.outbox.push(b"1")
        self.assertEqual(self.memory_budget.total, 130)

    def test_burst(self) -> None:
        """A budget of 4 MiB has room for hundreds of small frames."""
        outbox = Outbox(4 * 2**20, self.memory_budget.phones, nothing)
        for _ in range(5000):
            self.assertFalse(outbox.would_pass_budget(b"1" * 700))
            outbox.push(b"1" * 700)


class EmptyTests(Cases):
    """An empty queue keeps nothing: one empty deque stands for those of thousands."""

    @cases({"outbox": (Outbox,), "hold": (PendingFrames,)})
    def test_what_is_shared(self, kind: type[Outbox | PendingFrames]) -> None:
        """A queue has a deque of its own only while something is queued, however it ends."""
        memory_budget = endless()
        one, other = (
            kind(1000, memory_budget.phones, nothing),
            kind(1000, memory_budget.phones, nothing),
        )
        for empty in (one.pop, one.clear, one.retire):
            self.assertIs(one._items, _NOTHING)
            one.push(b"1")
            one.push(b"2")
            self.assertIsNot(one._items, _NOTHING)
            self.assertFalse(other)
            one.pop()
            empty()
        self.assertIs(one._items, _NOTHING)
        self.assertEqual((len(_NOTHING), memory_budget.total), (0, 0))

    def test_dropped(self) -> None:
        """A hold whose frames are dropped, and one that is shed as it is filled, keep none."""
        memory_budget = bounded(1000)
        hold = PendingFrames(10_000, memory_budget.phones, None)
        hold.on_shed = hold.drop_frames
        for _ in range(2):
            hold.push(b"1" * 500)
            hold.add_close_notice(b"1" * 500, 0)
            self.assertIs(hold._items, _NOTHING)
            hold.clear()
        self.assertEqual((len(_NOTHING), memory_budget.total), (0, 0))

    def test_nothing_can_be_put_into_it(self) -> None:
        """Even who would by mistake cannot put anything into what is shared."""
        _NOTHING.append(b"1")
        self.assertEqual(len(_NOTHING), 0)

    def test_of_nobody(self) -> None:
        """The outbox that stands for many is an empty one whatever is done, and takes nothing."""
        memory_budget = bounded(1000)
        box = NoOutbox(100, memory_budget.phones, None)
        self.assertRaises(TypeError, box.push, b"1")
        self.assertRaises(TypeError, box.push, Close(4000, ""))
        self.assertRaises(TypeError, box.writing, 1)
        box.written()
        box.clear()
        box.retire()
        self.assertEqual((bool(box), box.cost, box.close, memory_budget.total), (False, 0, None, 0))
        self.assertTrue(box.would_pass_budget(bytes(100)))
        self.assertFalse(box.would_pass_budget(b"1"))
        self.assertRaises(IndexError, box.pop)


class PendingFramesTests(Cases):
    def setUp(self) -> None:
        self.memory_budget = endless()
        self.pending = PendingFrames(400, self.memory_budget.phones, nothing)

    def test_order(self) -> None:
        """Frames come out in the order in which they went in, and then nothing."""
        for frame in (b"1", b"2", b"3"):
            self.pending.push(frame)
        self.assertEqual([self.pending.pop() for _ in range(4)], [b"1", b"2", b"3", None])
        self.assertFalse(self.pending)
        self.assertEqual(self.memory_budget.total, 0)

    def test_full(self) -> None:
        """It is full when its budget is used up to the last byte, not one byte before."""
        self.pending.push(b"1" * (400 - 64 - 1))
        self.assertFalse(self.pending.full)
        self.pending.clear()
        self.pending.push(b"1" * (400 - 64))
        self.assertTrue(self.pending.full)

    def test_low(self) -> None:
        """It is low when at most half of its budget is used."""
        self.pending.push(b"1" * (200 - 64))
        self.assertTrue(self.pending.low)
        self.pending.push(b"")
        self.assertFalse(self.pending.low)

    def test_over_the_budget(self) -> None:
        """What was sent already is held even over the budget: nothing is lost."""
        for _ in range(10):
            self.pending.push(b"1" * 400)
        self.assertTrue(self.pending.full)
        self.assertEqual([self.pending.pop() for _ in range(10)], [b"1" * 400] * 10)

    def test_farewell(self) -> None:
        """The close notice comes after the frames, counts with its phone, and is no frame."""
        self.pending.push(b"1")
        self.pending.add_close_notice(b"bye", 500)
        self.assertGreater(self.pending.overhead, 500)
        self.assertEqual(self.memory_budget.total, 65 + 67 + self.pending.overhead)
        self.assertEqual(self.pending.pop(), b"1")
        self.assertTrue(self.pending)
        self.assertIsNone(self.pending.pop())
        self.assertEqual(self.pending.close_notice, b"bye")
        self.assertEqual(self.memory_budget.total, 67 + self.pending.overhead)

    def test_farewell_alone(self) -> None:
        """A close notice without its frames still counts with its phone."""
        self.pending.push(b"1")
        self.pending.add_close_notice(b"bye", 500)
        self.pending.drop_frames()
        self.assertIsNone(self.pending.pop())
        self.assertEqual((self.memory_budget.total, self.pending.overhead), (67 + 500, 500))

    def test_clear(self) -> None:
        """Clearing drops the close notice too."""
        self.pending.push(b"1")
        self.pending.add_close_notice(b"bye", 0)
        for _ in range(2):
            self.pending.clear()
            self.assertFalse(self.pending)
            self.assertIsNone(self.pending.close_notice)
            self.assertEqual((self.pending.cost, self.memory_budget.total), (0, 0))

    def test_retired(self) -> None:
        """A queue that is retired is empty and lets its owner go."""
        self.pending.push(b"1")
        self.pending.add_close_notice(b"bye", 0)
        self.pending.retire()
        self.assertFalse(self.pending)
        self.assertEqual(self.memory_budget.total, 0)
        self.assertIsNot(self.pending.on_shed, nothing)
