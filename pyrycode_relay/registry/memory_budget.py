"""The memory budget: one number for all queues, and the rule for what is dropped when it is full.

Source: "Flow control and liveness" in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Queue(Protocol):
    """What the budget needs of a queue."""

    cost: int
    """Bytes that the queue counts for."""
    on_shed: Callable[[], None] | None
    """Called to drop the queue; has to lower its cost. None if the queue is never dropped."""

    def clear(self) -> None:
        """Drop everything in the queue."""


class QueueGroup:
    """The queues of one kind: their sum, and those that can be dropped."""

    __slots__ = ("memory_budget", "queues", "total")

    def __init__(self, memory_budget: MemoryBudget) -> None:
        self.memory_budget = memory_budget
        self.total = 0
        self.queues: set[Queue] = set()

    def settle(self, queue: Queue, change: int) -> None:
        """Add ``change`` bytes, by which the cost of ``queue`` has changed."""
        self.total += change
        if queue.cost and queue.on_shed is not None:
            self.queues.add(queue)
        else:
            self.queues.discard(queue)
        self.memory_budget.settle(change)


class MemoryBudget:
    """The sum of all queues, at most ``budget`` bytes.

    When the sum exceeds the budget, the largest queue of the larger group is dropped, even if
    another queue grew last. So phones' backlogs never close a binary, and binaries' backlogs
    never close a phone. A queue without ``on_shed`` counts but is never dropped.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.phones = QueueGroup(self)
        """Queues of data for phones, and of phones' frames that wait for their binary."""
        self.binaries = QueueGroup(self)
        """Data being written to binaries, and messages from binaries whose claim is undecided."""
        self.total = 0
        self.highest = 0
        self.shed = 0
        """Queues dropped since the start."""
        self.held = 0
        """Frames held for a binary since the start."""

    def settle(self, change: int) -> None:
        """Add ``change`` bytes; drop queues while the sum exceeds the budget."""
        self.total += change
        self.highest = max(self.highest, self.total)
        while change > 0 and self.total > self.budget:
            groups = [each for each in (self.phones, self.binaries) if each.queues]
            if not groups:
                break
            group = max(groups, key=lambda each: each.total)
            largest = max(group.queues, key=lambda each: each.cost)
            before = largest.cost
            self.shed += 1
            if largest.on_shed is not None:
                largest.on_shed()
            if largest.cost >= before:
                # The budget holds even if on_shed dropped nothing.
                largest.clear()
