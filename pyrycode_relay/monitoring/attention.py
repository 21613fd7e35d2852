"""The verdict: what needs attention now, since when, and the worst first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pyrycode_relay.events import Event
from pyrycode_relay.monitoring import thresholds
from pyrycode_relay.monitoring.findings import (
    Counted,
    Facts,
    Failing,
    Finding,
    Past,
    find,
)
from pyrycode_relay.monitoring.history import BEAT, BEATS
from pyrycode_relay.monitoring.kinds import Kind

WELL: Final = "well"
"""The verdict if nothing needs attention; otherwise it is the worst severity's value."""

_MARKS: Final = int(thresholds.LONGEST_WINDOW / (BEAT * BEATS)) + 2
"""Marks kept: the longest window's, its beginning, and one more: some 20 KiB."""

_ORDER: Final = {kind: place for place, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Item:
    """A finding, and since when there is one of its kind and subject, in seconds since 1970."""

    finding: Finding
    since: float

    def document(self) -> dict[str, Any]:
        """Return the item as an object for JSON."""
        finding = self.finding
        return {
            "kind": finding.kind.label,
            "severity": finding.kind.severity.value,
            "since": self.since,
            "text": finding.text,
            "reason": finding.reason,
            "subject": finding.subject,
            "value": finding.value,
            "limit": finding.limit,
            "advice": finding.kind.advice,
            "section": finding.kind.section,
        }


class Attention:
    """Remembers the course of the counted numbers, and since when each finding holds.

    Args:
        read: Returns the numbers now.
        seconds: The clock of the windows.

    """

    def __init__(self, read: Callable[[], Facts], seconds: Callable[[], float]) -> None:
        self._read = read
        self._seconds = seconds
        self._marks: deque[tuple[float, Counted]] = deque(maxlen=_MARKS)
        self._since: dict[tuple[Kind, str], float] = {}

    def sample(self) -> None:
        """Note the numbers, and what begins or ends to need attention. Called every 10 seconds."""
        facts = self._read()
        self._marks.append((self._seconds(), facts.counted))
        self._settle(facts)

    def items(self) -> list[Item]:
        """Return what needs attention now, the worst first."""
        return self._settle(self._read())

    def _settle(self, facts: Facts) -> list[Item]:
        findings = [*find(facts, self._past(facts.counted))]
        since = {
            (each.kind, each.subject): each.since
            or self._since.get((each.kind, each.subject), facts.now)
            for each in findings
        }
        self._since = since
        items = [Item(each, since[each.kind, each.subject]) for each in findings]
        return sorted(items, key=lambda item: (_ORDER[item.finding.kind], item.finding.subject))

    def _past(self, now: Counted) -> Past:
        window = self._within(thresholds.BINARIES_WINDOW)
        binaries = [*(counted.binaries for counted in window), now.binaries]

        def increase(name: str, seconds: float) -> int:
            before = next(self._within(seconds), now)
            return max(0, int(getattr(now, name)) - int(getattr(before, name)))

        return Past(increase, _quantile(thresholds.BINARIES_QUANTILE, binaries))

    def _within(self, seconds: float) -> Iterator[Counted]:
        """Yield the marks from the beginning of a window on, the oldest first."""
        begin = self._seconds() - seconds
        marks = [*self._marks]
        for index, (_, counted) in enumerate(marks):
            if index + 1 == len(marks) or marks[index + 1][0] > begin:
                yield counted


def _quantile(share: float, values: list[int]) -> float:
    """Return a quantile as Prometheus does: by linear interpolation."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def verdict(items: list[Item]) -> str:
    """Return the worst severity, or `WELL`; ``items`` have the worst first."""
    return items[0].finding.kind.severity.value if items else WELL


class Orders:
    """Whether the last order to the CA failed: an observer of events."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self.failing: Failing | None = None

    def saw(self, event: Event, **fields: object) -> None:
        """Take note of an order's outcome."""
        if event is Event.ACME_ISSUED:
            self.failing = None
        elif event is Event.ACME_FAILED:
            since = self._wall() if self.failing is None else self.failing.since
            problem = f" ({fields['err']})" if fields.get("err") else ""
            self.failing = Failing(f"{fields.get('reason')}{problem}", since)
