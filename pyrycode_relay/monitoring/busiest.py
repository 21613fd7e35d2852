"""The busiest server-ids, and the busiest addresses of phones, among the open connections.

Nothing is counted for this per frame: each phone's connection counts its frames anyway. A walk adds
them up while somebody looks at the page, some hundred connections in a turn of the reactor, so that
no frame waits for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.tally import FRAME

SHOWN: Final = 5
"""Rows of a table."""

SLICE: Final = 500
"""Connections in one turn of the reactor: less than a millisecond."""

EVERY: Final = 5.0
"""Seconds between the ends of two walks, at least."""

FORGET: Final = 30.0
"""Seconds without a look after which the totals of the last walk are dropped."""

_EMPTY: Final[Mapping[str, Any]] = {"seconds": None, "ids": [], "addresses": []}


class Talker(Protocol):
    """A phone's connection, as `PhoneProtocol` is one."""

    server_id: str
    remote: str
    traffic: int
    """Frames and bytes in both directions, packed into one number; see `FRAME`."""


@dataclass(frozen=True, slots=True)
class _Row:
    """The traffic of one server-id or address in the time between two walks."""

    name: str
    connections: int
    frames: float
    bytes: float
    """Both by the second."""


class _Totals:
    """Sums over all connections, packed as `Talker.traffic` is; and how many there are."""

    def __init__(self) -> None:
        self.traffic: dict[str, int] = {}
        self.connections: dict[str, int] = {}

    def add(self, name: str, traffic: int) -> None:
        self.traffic[name] = self.traffic.get(name, 0) + traffic
        self.connections[name] = self.connections.get(name, 0) + 1


class Busiest:
    """The tables of the busiest server-ids and addresses; a walk fills them when somebody looks.

    Memory: while somebody looks, some 200 bytes for each server-id and each address with a phone,
    so at most that for each open connection, twice. `FORGET` seconds after the last look it is
    free again.

    Args:
        clock: Runs the walks.
        phones: The sets of the phones' connections.
        shown: Returns what stands for a server-id or an address.

    """

    def __init__(
        self,
        clock: IReactorTime,
        phones: Sequence[Collection[Talker]],
        shown: Callable[[str], str],
    ) -> None:
        self._clock = clock
        self._phones = phones
        self._shown = shown
        self._before: tuple[_Totals, _Totals] | None = None
        self._walked_at = 0.0
        self._document: Mapping[str, Any] = _EMPTY
        self._step: IDelayedCall | None = None
        self._forget: IDelayedCall | None = None

    def document(self) -> Mapping[str, Any]:
        """Return the result of the last walk as an object for JSON; start another if it is old.

        The first walk has nothing to compare with, so the first tables are empty.
        """
        if self._forget is not None:
            self._forget.cancel()
        self._forget = self._clock.callLater(FORGET, self._drop)
        old = self._before is None or self._clock.seconds() - self._walked_at >= EVERY
        if self._step is None and old:
            self._run(self._walk([*chain.from_iterable(self._phones)]))
        return self._document

    def stop(self) -> None:
        """End, and leave no timer behind."""
        for call in (self._step, self._forget):
            if call is not None and call.active():
                call.cancel()
        self._step = self._forget = None
        self._before = None
        self._document = _EMPTY

    def _drop(self) -> None:
        self._forget = None
        self.stop()

    def _run(self, walk: Iterator[None]) -> None:
        """Do a part of a walk in this turn of the reactor, and plan the next."""
        self._step = None
        for _ in walk:
            self._step = self._clock.callLater(0, self._run, walk)
            return

    def _walk(self, phones: list[Talker]) -> Iterator[None]:
        """Add everything up; yield after each part."""
        ids, addresses = _Totals(), _Totals()
        for begin in range(0, len(phones), SLICE):
            for phone in islice(phones, begin, begin + SLICE):
                self._add(phone, ids, addresses)
            yield
        now = self._clock.seconds()
        before, span = self._before, now - self._walked_at
        self._before, self._walked_at = (ids, addresses), now
        if before is None or span <= 0:
            return
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for name, totals, earlier in (
            ("ids", ids, before[0]),
            ("addresses", addresses, before[1]),
        ):
            rows: list[_Row] = []
            for part in _parts(_rows(totals, earlier, span), SLICE):
                rows = _busiest([*rows, *part])
                yield
            tables[name] = [self._shown_row(row) for row in rows]
        self._document = {"seconds": round(span, 1), **tables}

    @staticmethod
    def _add(phone: Talker, ids: _Totals, addresses: _Totals) -> None:
        traffic = phone.traffic
        ids.add(phone.server_id, traffic)
        addresses.add(limit_key(phone.remote), traffic)

    def _shown_row(self, row: _Row) -> Mapping[str, Any]:
        return {
            "name": row.name if row.name == UNIX else self._shown(row.name),
            "connections": row.connections,
            "frames": round(row.frames, 2),
            "bytes": round(row.bytes, 1),
        }


def _rows(totals: _Totals, before: _Totals, span: float) -> Iterator[_Row]:
    """Yield the rows of all that had traffic; ``span`` is the time since ``before``."""
    for name, traffic in totals.traffic.items():
        earlier = before.traffic.get(name, 0)
        frames = traffic // FRAME - earlier // FRAME
        size = traffic % FRAME - earlier % FRAME
        # If a connection has ended in the meantime, the sum may be smaller than before.
        if frames > 0:
            yield _Row(name, totals.connections[name], frames / span, max(0, size) / span)


def _busiest(rows: list[_Row]) -> list[_Row]:
    """Return the rows with most frames and those with most bytes, by bytes."""
    most = heapq.nlargest(SHOWN, rows, key=lambda row: row.frames)
    most += [
        row for row in heapq.nlargest(SHOWN, rows, key=lambda row: row.bytes) if row not in most
    ]
    return sorted(most, key=lambda row: (-row.bytes, -row.frames))


def _parts(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    while part := [*islice(rows, size)]:
        yield part
