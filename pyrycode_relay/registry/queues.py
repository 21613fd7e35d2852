"""Byte-budgeted queues: a phone's outbox, what is held for a binary, and the sum of them all.

Source: "Flow control and liveness" in ``docs/protocol.md``. Budgets are in bytes, because a
daemon with a dozen sessions sends hundreds of small frames in one burst when a phone connects.
Every item costs its length plus `ITEM_COST` and takes no more than that: a queue copies what is
not exactly `bytes`. A view would keep its whole message in memory, and a bytearray has spare room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pyrycode_relay.limits import ITEM_COST
from pyrycode_relay.protocol.close_codes import Close

Frame: TypeAlias = bytes | memoryview
"""The bytes of one JSON value, on their way."""


class Account:
    """The sum of the queues of one kind, and those of them that can be shed."""

    __slots__ = ("ledger", "queues", "total")

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.total = 0
        self.queues: set[_Queue] = set()

    def settle(self, queue: _Queue, change: int) -> None:
        """Note that the cost of ``queue`` has changed by ``change`` bytes."""
        self.total += change
        if queue.cost and queue.on_shed is not None:
            self.queues.add(queue)
        else:
            self.queues.discard(queue)
        self.ledger.settle(change)


class Ledger:
    """The sum of all queues, and which of them is the largest.

    Over ``budget`` bytes the largest queue is shed, whoever added the last item: the
    ``on_shed`` it was made with is called, and has to lower its cost. A queue made without one
    counts and is spared.

    It is the largest of the kind that takes the most. So however much waits for slow phones, or
    comes from phones of slow binaries, no binary is closed for it; and no phone is for what
    binaries do not read, which is little for each and can be much for many.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.phones = Account(self)
        """What waits for phones, and what is held of theirs."""
        self.binaries = Account(self)
        """What is being written to binaries, and what is held of those that wait for a claim."""
        self.total = 0
        self.highest = 0
        self.shed = 0
        """How often a queue was shed."""
        self.held = 0
        """How many frames were ever held for a binary."""

    def settle(self, change: int) -> None:
        """Note that a queue has changed by ``change`` bytes, and shed what has to go."""
        self.total += change
        self.highest = max(self.highest, self.total)
        while change > 0 and self.total > self.budget:
            accounts = [each for each in (self.phones, self.binaries) if each.queues]
            if not accounts:
                break
            account = max(accounts, key=lambda each: each.total)
            largest = max(account.queues, key=lambda each: each.cost)
            before = largest.cost
            self.shed += 1
            if largest.on_shed is not None:
                largest.on_shed()
            if largest.cost >= before:
                # Whatever on_shed failed to do, the budget holds.
                largest.clear()


_DEQUE_COST: Final = 768
"""Bytes that a deque takes in addition to its items."""

_NOTHING: Final[deque[Any]] = deque(maxlen=0)
"""Stands for every deque that would be empty, which most are."""


class _Queue:
    """What an `Outbox` and a `Hold` have in common: items, a cost, a budget, and an account."""

    __slots__ = ("__weakref__", "_items", "account", "budget", "cost", "on_shed")

    _items: deque[Any]

    def __init__(self, budget: int, account: Account, on_shed: Callable[[], None] | None) -> None:
        self.budget = budget
        self.account = account
        self.on_shed = on_shed
        self.cost = 0
        self._items = _NOTHING

    def _append(self, item: bytes | Close) -> None:
        if self._items is _NOTHING:
            self._items = deque()
        self._items.append(item)
        self._charge(_cost(item))

    def _take(self) -> Any:
        item = self._items.popleft()
        if not self._items:
            self._items = _NOTHING
        self._charge(-_cost(item))
        return item

    def _charge(self, change: int) -> None:
        self.cost += change
        self.account.settle(self, change)

    def clear(self) -> None:
        """Drop everything."""
        raise NotImplementedError

    def retire(self) -> None:
        """Drop everything for good, and with it the way back to the owner.

        Connections that are gone are then freed at once, not when the garbage collector next
        looks for cycles.
        """
        self.clear()
        self.on_shed = None


class Outbox(_Queue):
    """What waits to be written to one peer, in order: frames, and at last perhaps a close.

    The item being written counts until the transport has passed all of it to the kernel.
    """

    __slots__ = ("_writing",)

    _items: deque[bytes | Close]

    def __init__(self, budget: int, account: Account, on_shed: Callable[[], None] | None) -> None:
        super().__init__(budget, account, on_shed)
        self._writing = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def would_pass_budget(self, frame: Frame) -> bool:
        """Whether queueing ``frame`` would bring the cost over the budget."""
        return self.cost + _cost(frame) > self.budget

    def push(self, item: Frame | Close) -> None:
        """Queue a frame, or the close that takes effect after everything queued before it.

        Whoever queues asks `would_pass_budget` first; a close is queued whatever the budget.
        """
        self._append(item if isinstance(item, Close) else bytes(item))

    @property
    def close(self) -> Close | None:
        """The close that stands at the end, if there is one."""
        last = self._items[-1] if self._items else None
        return last if isinstance(last, Close) else None

    def pop(self) -> bytes | Close:
        """Take the next item. Raises `IndexError` when there is none."""
        item: bytes | Close = self._take()
        return item

    def writing(self, size: int) -> None:
        """Note that an item of ``size`` bytes is being written and has not yet gone out."""
        change = size + ITEM_COST - self._writing
        self._writing += change
        self._charge(change)

    def written(self) -> None:
        """Note that nothing is being written any more."""
        if self._writing:
            change, self._writing = -self._writing, 0
            self._charge(change)

    def clear(self) -> None:
        """Drop everything, as the connection is closing."""
        self._items = _NOTHING
        if self.cost:
            self._writing = 0
            self._charge(-self.cost)


class NoOutbox(Outbox):
    """Stands for the outbox of every connection that has not queued anything yet: most never do.

    It is empty and stays so: one that is queued in by mistake would send to whoever comes first.
    """

    __slots__ = ()

    def push(self, item: Frame | Close) -> None:  # noqa: ARG002
        """Refuse. Raises `TypeError`."""
        raise TypeError("this outbox is nobody's")

    def writing(self, size: int) -> None:  # noqa: ARG002
        """Refuse. Raises `TypeError`."""
        raise TypeError("this outbox is nobody's")


class Hold(_Queue):
    """What one phone has sent and its binary has not been handed yet, in order.

    ``farewell`` is the close notice of a phone that has gone; it stands behind the frames.
    """

    __slots__ = ("farewell", "overhead")

    _items: deque[bytes]

    def __init__(self, budget: int, account: Account, on_shed: Callable[[], None] | None) -> None:
        super().__init__(budget, account, on_shed)
        self.farewell: bytes | None = None
        self.overhead = 0
        """Bytes that a phone that has gone takes, without its frames and its farewell."""

    def __bool__(self) -> bool:
        return bool(self._items) or self.farewell is not None

    @property
    def frames(self) -> int:
        """How many frames are held."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether the budget is used up: time to stop reading the phone."""
        return self.cost >= self.budget

    @property
    def low(self) -> bool:
        """Whether at most half of the budget is used: time to read the phone again.

        Half, so that a phone is not paused and resumed for every single frame.
        """
        return self.cost <= self.budget // 2

    def push(self, frame: bytes | bytearray) -> None:
        """Hold ``frame``. What the phone had sent already is held even over the budget."""
        self.account.ledger.held += 1
        self._append(bytes(frame))

    def say_farewell(self, notice: bytes, phone_cost: int) -> None:
        """Hold ``notice`` behind the frames: the phone has gone and sends no more.

        ``phone_cost`` is the number of bytes that the phone itself takes. It counts from now on,
        because the connection no longer does.
        """
        self.farewell = notice
        self.overhead = phone_cost + (_DEQUE_COST if self._items else 0)
        self._charge(_cost(notice) + self.overhead)

    def pop(self) -> bytes | None:
        """Take the frame that came first; None when only the farewell is left."""
        if not self._items:
            return None
        frame: bytes = self._take()
        return frame

    def drop_frames(self) -> None:
        """Drop the frames and leave the farewell."""
        if self._items:
            self._items = _NOTHING
            left = 0
            if self.farewell is not None:
                self.overhead -= _DEQUE_COST
                left = _cost(self.farewell) + self.overhead
            self._charge(left - self.cost)

    def clear(self) -> None:
        """Drop everything, the farewell too."""
        self._items = _NOTHING
        self.farewell = None
        self.overhead = 0
        if self.cost:
            self._charge(-self.cost)


def _cost(item: Frame | Close) -> int:
    if isinstance(item, Close):
        return ITEM_COST
    return len(item) + ITEM_COST
