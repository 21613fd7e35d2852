"""Byte-budgeted queues: a peer's outbox, and the frames that wait for a binary.

Source: "Flow control and liveness" in ``docs/protocol.md``. Budgets are in bytes, because a
daemon with a dozen sessions sends hundreds of small frames in one burst when a phone connects.
Every item is charged its length plus `ITEM_COST` and takes no more memory than that: a queue
copies an item that is not `bytes`. A view would keep its whole message in memory, and a bytearray
has spare room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pyrycode_relay.limits import ITEM_COST
from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.registry.drain_time import Pace
from pyrycode_relay.registry.memory_budget import QueueGroup

Payload: TypeAlias = bytes | memoryview
"""The bytes of one JSON value."""

_DEQUE_COST: Final = 768
"""Bytes that a deque takes in addition to its items."""

_NOTHING: Final[deque[Any]] = deque(maxlen=0)
"""Stands for every deque that would be empty, because most are."""


class _Queue:
    """Items with a cost that counts in a group.

    Args: ``budget`` is the limit in bytes of this queue, which its owner enforces. ``on_shed``
    is called when the memory budget drops the queue. ``pace`` returns what the queue's peer has
    taken lately.
    """

    __slots__ = ("__weakref__", "_items", "budget", "cost", "group", "on_shed", "pace")

    _items: deque[Any]

    def __init__(
        self,
        budget: int,
        group: QueueGroup,
        on_shed: Callable[[], None] | None,
        pace: Callable[[], Pace] = Pace,
    ) -> None:
        self.budget = budget
        self.group = group
        self.on_shed = on_shed
        self.pace = pace
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
        self.group.settle(self, change)

    def clear(self) -> None:
        """Drop everything."""
        raise NotImplementedError

    def retire(self) -> None:
        """Drop everything and the reference to the owner.

        A closed connection is then freed at once, not when the garbage collector next runs.
        """
        self.clear()
        self.on_shed = None
        self.pace = Pace


class Outbox(_Queue):
    """What waits to be written to one peer, in order: frames, then possibly a close.

    The item being written counts until the transport has passed all of it to the kernel.
    """

    __slots__ = ("_writing",)

    _items: deque[bytes | Close]

    def __init__(
        self,
        budget: int,
        group: QueueGroup,
        on_shed: Callable[[], None] | None,
        pace: Callable[[], Pace] = Pace,
    ) -> None:
        super().__init__(budget, group, on_shed, pace)
        self._writing = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def would_pass_budget(self, frame: Payload) -> bool:
        """Whether ``frame`` would bring the cost over the budget."""
        return self.cost + _cost(frame) > self.budget

    def push(self, item: Payload | Close) -> None:
        """Queue a frame, or the close that takes effect after everything before it.

        The caller asks `would_pass_budget` first. A close is queued whatever the budget.
        """
        self._append(item if isinstance(item, Close) else bytes(item))

    @property
    def close(self) -> Close | None:
        """The close at the end, if there is one."""
        last = self._items[-1] if self._items else None
        return last if isinstance(last, Close) else None

    def pop(self) -> bytes | Close:
        """Take the next item. Raises `IndexError` if there is none."""
        item: bytes | Close = self._take()
        return item

    def writing(self, size: int) -> None:
        """Count an item of ``size`` bytes that is being written."""
        change = size + ITEM_COST - self._writing
        self._writing += change
        self._charge(change)

    def written(self) -> None:
        """Stop counting what was being written."""
        if self._writing:
            change, self._writing = -self._writing, 0
            self._charge(change)

    def clear(self) -> None:
        """Drop everything, because the connection is closing."""
        self._items = _NOTHING
        if self.cost:
            self._writing = 0
            self._charge(-self.cost)


class NoOutbox(Outbox):
    """Stands for the outbox of every connection that has queued nothing yet, as most never do.

    All these connections share it, so it stays empty.
    """

    __slots__ = ()

    def push(self, item: Payload | Close) -> None:  # noqa: ARG002
        """Refuse. Raises `TypeError`."""
        raise TypeError("this outbox is shared and stays empty")

    def writing(self, size: int) -> None:  # noqa: ARG002
        """Refuse. Raises `TypeError`."""
        raise TypeError("this outbox is shared and stays empty")


class PendingFrames(_Queue):
    """Frames that one peer has sent and that wait to be passed on, in order.

    A phone's frames wait for its binary; a binary's messages wait for its claim.
    """

    __slots__ = ("close_notice", "overhead")

    _items: deque[bytes]

    def __init__(
        self,
        budget: int,
        group: QueueGroup,
        on_shed: Callable[[], None] | None,
        pace: Callable[[], Pace] = Pace,
    ) -> None:
        super().__init__(budget, group, on_shed, pace)
        self.close_notice: bytes | None = None
        """The close notice of a phone that has gone; it comes after the frames."""
        self.overhead = 0
        """Bytes that a phone that has gone takes, without its frames and its close notice."""

    def __bool__(self) -> bool:
        return bool(self._items) or self.close_notice is not None

    @property
    def frames(self) -> int:
        """Number of frames that wait."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether the budget is used up: time to stop reading the peer."""
        return self.cost >= self.budget

    @property
    def low(self) -> bool:
        """Whether at most half of the budget is used: time to read the peer again.

        Half, so that a peer is not paused and resumed for every frame.
        """
        return self.cost <= self.budget // 2

    def push(self, frame: bytes | bytearray) -> None:
        """Add ``frame``, even over the budget: the peer had sent it before reading stopped."""
        self.group.memory_budget.held += 1
        self._append(bytes(frame))

    def add_close_notice(self, notice: bytes, phone_cost: int) -> None:
        """Add the close notice of a phone that has gone.

        ``phone_cost`` is the number of bytes that the phone itself takes. It counts from now on,
        because the connection no longer does.
        """
        self.close_notice = notice
        self.overhead = phone_cost + (_DEQUE_COST if self._items else 0)
        self._charge(_cost(notice) + self.overhead)

    def pop(self) -> bytes | None:
        """Take the oldest frame; None if only the close notice is left."""
        if not self._items:
            return None
        frame: bytes = self._take()
        return frame

    def drop_frames(self) -> None:
        """Drop the frames and keep the close notice."""
        if self._items:
            self._items = _NOTHING
            left = 0
            if self.close_notice is not None:
                self.overhead -= _DEQUE_COST
                left = _cost(self.close_notice) + self.overhead
            self._charge(left - self.cost)

    def clear(self) -> None:
        """Drop everything, the close notice too."""
        self._items = _NOTHING
        self.close_notice = None
        self.overhead = 0
        if self.cost:
            self._charge(-self.cost)


def _cost(item: Payload | Close) -> int:
    if isinstance(item, Close):
        return ITEM_COST
    return len(item) + ITEM_COST
