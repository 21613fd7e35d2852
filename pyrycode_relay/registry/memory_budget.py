"""The memory budget: one number for all queues, and the rule for what is dropped when it is full.

Source: "Flow control and liveness" in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest
from typing import Final, Protocol

from pyrycode_relay.registry.drain_time import Pace, drain_time

CANDIDATES: Final = 256
"""Queues of which one is dropped: the largest of their group. To ask a queue's peer takes a system
call, so this bounds the time for which the relay stands still when memory runs out. All other
queues are smaller than a 256th of the budget."""


WORTHWHILE: Final = 16_777_216
"""Bytes by which the queues must shrink before their memory is returned to the system."""


class Queue(Protocol):
    """What the budget needs of a queue."""

    cost: int
    """Bytes that the queue counts for."""
    on_shed: Callable[[], None] | None
    """Called to drop the queue; has to lower its cost. None if the queue is never dropped."""

    def pace(self) -> Pace:
        """Return what the peer has taken of the queue lately."""

    def clear(self) -> None:
        """Drop everything in the queue."""


class QueueGroup:
    """The queues of one kind: their sum, and those that can be dropped."""

    __slots__ = ("memory_budget", "queues", "total")

    def __init__(self, memory_budget: MemoryBudget) -> None:
        self.memory_budget = memory_budget
        self.total = 0
        self.queues: dict[Queue, float] = {}
        """The queues that can be dropped, and when each began."""

    def settle(self, queue: Queue, change: int) -> None:
        """Add ``change`` bytes, by which the cost of ``queue`` has changed."""
        self.total += change
        if not queue.cost or queue.on_shed is None:
            self.queues.pop(queue, None)
        elif queue not in self.queues:
            self.queues[queue] = self.memory_budget.seconds()
        self.memory_budget.settle(change)

    def slowest(self) -> Queue:
        """Return the queue that would take longest to drain; of equal ones the largest.

        Only the largest `CANDIDATES` queues are compared. Raises `ValueError` if there is none.
        """
        now = self.memory_budget.seconds()

        def judge(queue: Queue) -> tuple[float, int]:
            return drain_time(queue.cost, queue.pace(), now - self.queues[queue]), queue.cost

        return max(nlargest(CANDIDATES, self.queues, key=lambda queue: queue.cost), key=judge)


class MemoryBudget:
    """The sum of all queues, at most ``budget`` bytes. ``seconds`` returns the time.

    When the sum exceeds the budget, a queue of the larger group is dropped: the one that would
    take longest to drain, even if another queue grew last. So phones' backlogs never close a
    binary, and binaries' backlogs never close a phone. A peer that reads keeps its queue, however
    large, while peers that read less fill memory. A queue without ``on_shed`` counts but is never
    dropped.
    """

    def __init__(self, budget: int, seconds: Callable[[], float]) -> None:
        self.budget = budget
        self.seconds = seconds
        self.phones = QueueGroup(self)
        """Queues of data for phones, and of phones' frames that wait for their binary."""
        self.binaries = QueueGroup(self)
        """Data being written to binaries, and messages from binaries whose claim is undecided."""
        self.total = 0
        self.highest = 0
        self.on_shrink: Callable[[], None] | None = None
        """Called when the sum has fallen by `WORTHWHILE` bytes."""
        self._crest = 0
        """The largest sum since that call."""
        self.shed = 0
        """Queues dropped since the start."""
        self.held = 0
        """Frames held for a binary since the start."""

    def settle(self, change: int) -> None:
        """Add ``change`` bytes; drop queues while the sum exceeds the budget."""
        self.total += change
        if self.total > self._crest:
            self._crest = self.total
            self.highest = max(self.highest, self.total)
        elif self._crest - self.total >= WORTHWHILE:
            self._crest = self.total
            if self.on_shrink is not None:
                self.on_shrink()
        while change > 0 and self.total > self.budget:
            groups = [each for each in (self.phones, self.binaries) if each.queues]
            if not groups:
                break
            victim = max(groups, key=lambda each: each.total).slowest()
            before = victim.cost
            self.shed += 1
            if victim.on_shed is not None:
                victim.on_shed()
            if victim.cost >= before:
                # The budget holds even if on_shed dropped nothing.
                victim.clear()
