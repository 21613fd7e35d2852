"""The memory in which each worker publishes its connections and rates, for the others to read.

Each word has one writer: the worker of its index. So there is no lock: a worker that is stopped or
killed at any point makes no other wait. The exception is a connection on its way to another
worker: its sender sets the mark, and its receiver removes it.

An aligned word is stored whole. Two words are not: a reader may see one of them a moment early.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import secrets
import struct
import sys
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

MOST_WORKERS: Final = 32
WAYS: Final = 16
"""Rows of one worker for all addresses with the same set."""
LEAST_ROWS: Final = 65_536
"""Addresses that each worker has room for, 20 bytes each; more if it may have many connections."""

_ROWS_PER_CONNECTION: Final = 2
"""With one address per connection and all connections in one worker, one set in 1,000 is full."""
_MARKS: Final = 8192
"""Connections on their way between all pairs of workers that can be counted."""
_LEAST_MARKS: Final = 8
_MOST_MARKS: Final = 256
"""Bounds of their number for one pair."""
_MAGIC: Final = b"pyrylim1"
_HEADER: Final = struct.Struct("=8sQQ32s")
_HEADER_SIZE: Final = 64
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Total(enum.IntEnum):
    """A number that each worker publishes."""

    BINARY_CONNECTIONS = 0
    PHONE_CONNECTIONS = 1
    BINARIES = 2
    """Server-ids with a binary."""
    PHONES = 3
    """Phones that are registered."""


@dataclass(frozen=True, slots=True)
class Key:
    """A `limit_key` in the table: its keyed hash, and the set that may contain it."""

    digest: bytes
    word: int
    """`digest` as a number; never 0, which is an empty row."""
    of_set: int


def create(workers: int, connections: int) -> int:
    """Return the descriptor of a new memory for ``workers`` workers, all of its numbers 0.

    ``connections`` is the largest number of connections in all workers. The descriptor is closed
    on exec unless its owner passes it on. Its size is sealed: no process can truncate it.
    """
    if not 1 <= workers <= MOST_WORKERS:
        raise ValueError(f"{workers} workers; there must be 1 to {MOST_WORKERS}")
    rows = max(LEAST_ROWS, _ROWS_PER_CONNECTION * connections)
    sets = 1 << (-(-rows // WAYS) - 1).bit_length()
    descriptor = os.memfd_create("pyrycode-relay-limits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, _Layout(workers, sets).size)
        header = _HEADER.pack(_MAGIC, workers, sets, secrets.token_bytes(32))
        os.pwrite(descriptor, header, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class _Layout:
    """Where each part of the memory begins, in bytes."""

    def __init__(self, workers: int, sets: int) -> None:
        pairs = workers * workers
        self.depth = min(_MOST_MARKS, max(_LEAST_MARKS, _MARKS // pairs))
        self.marks = pairs * self.depth
        self.rows = workers * sets * WAYS
        self.totals = _HEADER_SIZE
        self.tickets = self.totals + 8 * len(Total) * workers
        self.since = self.tickets + 8 * self.marks
        self.travellers = self.since + 8 * self.marks
        self.digests = self.travellers + 8 * self.marks
        self.due = self.digests + 8 * self.rows
        self.counts = self.due + 8 * self.rows
        self.legs = self.counts + 4 * self.rows
        self.size = self.legs + self.marks


class SharedMemory:
    """The memory behind a descriptor that `create` has made. The caller may close the descriptor.

    **Rows.** An address has a row of each worker that has its connections or has taken its tokens.
    The rows of all workers for one set are neighbours, so one search finds all of an address.

    **Marks.** Each pair of sender and receiver has `depth` of them. The first marks of all pairs
    are neighbours, then the second ones, and so on: senders use the first that is free, so those
    in use are usually in the first part of the memory.

    Raises `ValueError` if the memory is of another kind.
    """

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, _HEADER.size, 0)
        magic, workers, sets, self._secret = (
            _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0, b"")
        )
        layout = _Layout(workers or 1, sets)
        if magic != _MAGIC or size != layout.size:
            raise ValueError("This is not the memory of a relay's limits of this version.")
        self.workers: int = workers
        self._sets: int = sets
        self.depth = layout.depth
        self._memory = mmap.mmap(descriptor, size)
        words = memoryview(self._memory)

        def part(start: int, stop: int) -> memoryview:
            return words[start:stop]

        self._totals = part(layout.totals, layout.tickets).cast("Q")
        self.tickets = part(layout.tickets, layout.since).cast("Q")
        """The ticket of each mark in use."""
        self.since = part(layout.since, layout.travellers).cast("d")
        """When each mark was set."""
        self.travellers = part(layout.travellers, layout.digests).cast("Q")
        """The digest of each mark's address."""
        self.digests = part(layout.digests, layout.due).cast("Q")
        """The digest of each row's address; 0 in an empty row."""
        self.due = part(layout.due, layout.counts).cast("d")
        """When each row's bucket is full again."""
        self.counts = part(layout.counts, layout.legs).cast("I")
        """The connections of each row."""
        self.legs = part(layout.legs, layout.size)
        """What each mark counts: 0 is nothing, then `Total` + 1."""
        self._at_digests = layout.digests
        self._at_travellers = layout.travellers
        self._at_legs = layout.legs
        self._marks = layout.marks
        self._set_rows = workers * WAYS
        self._first_marks = min(_LEAST_MARKS * workers * workers, layout.marks)
        self._no_more_marks = bytes(layout.marks - self._first_marks)

    def key(self, text: str) -> Key:
        """Return where a `limit_key` is. The hash is keyed: nobody can aim at a set."""
        digest = blake2b(text.encode(), digest_size=8, key=self._secret).digest()
        word = int.from_bytes(digest, sys.byteorder) or 1
        of_set = int.from_bytes(digest, "little") % self._sets
        return Key(word.to_bytes(8, sys.byteorder), word, of_set)

    def publish(self, worker: int, total: Total, number: int) -> None:
        """Set one of a worker's numbers."""
        self._totals[total * self.workers + worker] = number

    def sum(self, total: Total) -> int:
        """Return the sum of all workers' numbers, without connections on their way."""
        first = total * self.workers
        return sum(self._totals[first : first + self.workers])

    # Rows.

    def rows(self, key: Key) -> list[int]:
        """Return the rows of an address, of all workers."""
        first = key.of_set * self._set_rows
        return [first + at for at in self._search(self._at_digests, first, self._set_rows, key)]

    def own_rows(self, worker: int, key: Key) -> range:
        """Return a worker's rows for the set of an address."""
        first = key.of_set * self._set_rows + worker * WAYS
        return range(first, first + WAYS)

    def _search(self, start: int, first: int, number: int, key: Key) -> list[int]:
        """Return which of ``number`` words from the word ``first`` of a column hold the digest."""
        start += 8 * first
        words = self._memory[start : start + 8 * number]
        found = []
        at = words.find(key.digest)
        while at >= 0:
            if not at % 8:
                found.append(at // 8)
            at = words.find(key.digest, at + 1)
        return found

    def claim(self, worker: int, key: Key) -> int | None:
        """Return the worker's row for an address; None if others' connections fill all its rows.

        A new row takes an empty one, or that of the address without connections whose bucket has
        the most tokens.
        """
        rows = self.own_rows(worker, key)
        words = self.digests[rows.start : rows.stop].tolist()
        if key.word in words:
            return rows[words.index(key.word)]
        if 0 in words:
            row = rows[words.index(0)]
        else:
            free = [each for each in rows if not self.counts[each]]
            if not free:
                return None
            row = min(free, key=self.due.__getitem__)
        self.due[row] = 0.0
        self.digests[row] = key.word
        return row

    # Marks: connections on their way from one worker to another.

    def free_mark(self, sender: int, receiver: int) -> int | None:
        """Return a pair's first free mark, if there is one."""
        pair = sender * self.workers + receiver
        # Only marks of this pair: one receiver that is stopped takes none of the others'.
        at = self.legs[pair :: self.workers * self.workers].tobytes().find(0)
        return None if at < 0 else at * self.workers * self.workers + pair

    def sender(self, mark: int) -> int:
        """Return the worker that may set a mark."""
        return mark % (self.workers * self.workers) // self.workers

    def _marks_in_use(self) -> bytes:
        """Return what the marks count, up to the last part that is in use."""
        legs = self._memory[self._at_legs : self._at_legs + self._marks]
        return legs[: self._first_marks] if legs.endswith(self._no_more_marks) else legs

    def on_their_way(self) -> tuple[int, int]:
        """Return the binaries' and the phones' connections on their way."""
        legs = self._marks_in_use()
        return legs.count(Total.BINARY_CONNECTIONS + 1), legs.count(Total.PHONE_CONNECTIONS + 1)

    def on_their_way_of(self, key: Key) -> int:
        """Return the connections of an address on their way."""
        legs = self._marks_in_use()
        if legs.count(0) == len(legs):
            return 0
        found = self._search(self._at_travellers, 0, len(legs), key)
        return sum(legs[mark] != 0 for mark in found)

    # When a worker is gone.

    def clear(self, worker: int) -> None:
        """Remove the connections of a worker that has ended; its addresses' rates stay.

        Call it before the worker's successor starts. It removes connections on their way from
        and to that worker, too; those that arrive anyway are counted on arrival.
        """
        for total in Total:
            self.publish(worker, total, 0)
        none = memoryview(bytes(4 * WAYS)).cast("I")
        for first in range(worker * WAYS, len(self.counts), self._set_rows):
            self.counts[first : first + WAYS] = none
        for mark, leg in enumerate(self.legs.tobytes()):
            if leg and worker in (self.sender(mark), mark % self.workers):
                self.legs[mark] = 0
