"""The memory that workers share: its layout, its rows, its marks."""

from __future__ import annotations

import os

from pyrycode_relay.http import shared_memory
from pyrycode_relay.http.shared_memory import (
    LEAST_ROWS,
    MOST_WORKERS,
    WAYS,
    Key,
    SharedMemory,
    Total,
    create,
)
from tests.unit.bench import Cases, cases


class MemoryTests(Cases):
    def memory(self, workers: int = 3, connections: int = 0) -> SharedMemory:
        """Return a new memory."""
        descriptor = create(workers, connections)
        self.addCleanup(os.close, descriptor)
        return SharedMemory(descriptor)

    def one_set(self, workers: int = 2) -> SharedMemory:
        """Return a memory in which all addresses have the same set."""
        self.patch(shared_memory, "LEAST_ROWS", WAYS)
        return self.memory(workers)


class CreateTests(MemoryTests):
    @cases({"none": (0,), "too_many": (MOST_WORKERS + 1,)})
    def test_number_of_workers(self, workers: int) -> None:
        """The number of workers is bounded."""
        error = self.assertRaises(ValueError, create, workers, 100)
        self.assertIn("1 to 32", str(error))

    @cases({"few": (10, LEAST_ROWS), "many": (100_000, 262_144)})
    def test_rows(self, connections: int, rows: int) -> None:
        """Each worker has two rows for each possible connection, and a least number."""
        self.assertEqual(len(self.memory(2, connections).digests), 2 * rows)

    def test_descriptor(self) -> None:
        """A child gets the memory only if its parent passes it on; nobody can cut it off."""
        descriptor = create(2, 10)
        self.addCleanup(os.close, descriptor)
        self.assertFalse(os.get_inheritable(descriptor))
        for size in (0, 1 << 30):
            self.assertRaises(PermissionError, os.ftruncate, descriptor, size)

    def test_the_memory_outlives_its_descriptor(self) -> None:
        """The caller may close the descriptor."""
        descriptor = create(2, 10)
        memory = SharedMemory(descriptor)
        os.close(descriptor)
        memory.publish(1, Total.PHONES, 5)
        self.assertEqual(memory.sum(Total.PHONES), 5)

    @cases({"empty": (b"",), "zeros": (bytes(4096),), "cut_off": (b"pyrylim1" + bytes(40),)})
    def test_foreign(self, content: bytes) -> None:
        """A file that is no such memory is refused."""
        descriptor = os.memfd_create("foreign")
        self.addCleanup(os.close, descriptor)
        os.write(descriptor, content)
        error = self.assertRaises(ValueError, SharedMemory, descriptor)
        self.assertIn("not the memory", str(error))

    @cases({str(workers): (workers,) for workers in (1, 2, 3, 8, MOST_WORKERS)})
    def test_no_part_overlaps(self, workers: int) -> None:
        """Each part has the same words for every process, and no other part has them."""
        self.patch(shared_memory, "LEAST_ROWS", WAYS)
        memory = self.memory(workers)
        columns = ("tickets", "since", "travellers", "digests", "due", "counts", "legs")
        for number, name in enumerate(columns, 1):
            column = getattr(memory, name)
            for index in range(len(column)):
                column[index] = number
        for total in Total:
            for worker in range(workers):
                memory.publish(worker, total, 100 + total)
        for number, name in enumerate(columns, 1):
            self.assertEqual({*getattr(memory, name)}, {number}, name)
        for total in Total:
            self.assertEqual(memory.sum(total), (100 + total) * workers)


class RowTests(MemoryTests):
    def test_secret_hash(self) -> None:
        """Each memory hashes with a key of its own; all processes with the same one."""
        descriptor = create(2, 10)
        self.addCleanup(os.close, descriptor)
        one, other = SharedMemory(descriptor), SharedMemory(descriptor)
        self.assertEqual(one.key("192.0.2.1"), other.key("192.0.2.1"))
        self.assertNotEqual(one.key("192.0.2.1"), self.memory().key("192.0.2.1"))

    def test_all_rows_of_an_address(self) -> None:
        """An address has at most one row of each worker, and all of them are found."""
        memory = self.memory()
        here, there = memory.key("192.0.2.1"), memory.key("192.0.2.2")
        rows = [memory.claim(worker, here) for worker in (0, 2)]
        self.assertEqual([memory.claim(worker, here) for worker in (0, 2)], rows)
        self.assertEqual(memory.rows(here), rows)
        self.assertEqual(memory.rows(there), [])
        for worker, row in zip((0, 2), rows, strict=True):
            self.assertIn(row, memory.own_rows(worker, here))

    def test_halves_of_two_digests(self) -> None:
        """A digest that consists of parts of two others is not found."""
        memory = self.one_set()
        key = memory.key("192.0.2.1")
        before = int.from_bytes(b"head" + key.digest[:4], "little")
        after = int.from_bytes(key.digest[4:] + b"tail", "little")
        memory.digests[4], memory.digests[5] = before, after
        self.assertEqual(memory.rows(key), [])
        memory.digests[9] = key.word
        self.assertEqual(memory.rows(key), [9])

    def test_room_for_another(self) -> None:
        """The bucket with the most tokens goes; an address with connections never does."""
        memory = self.one_set()
        keys = [memory.key(f"192.0.2.{number}") for number in range(WAYS)]
        rows = []
        for number, key in enumerate(keys):
            row = memory.claim(1, key)
            assert row is not None
            memory.due[row] = 100.0 - number
            rows.append(row)
        self.assertEqual(len({*rows}), WAYS)
        memory.counts[rows[-1]] = 1
        late = memory.key("192.0.2.99")
        self.assertEqual(memory.claim(1, late), rows[-2])
        self.assertEqual(memory.due[rows[-2]], 0, "a full bucket")
        self.assertEqual(memory.rows(keys[-2]), [])
        for row in rows:
            memory.counts[row] = 1
        self.assertIsNone(memory.claim(1, memory.key("192.0.2.100")))
        self.assertEqual(memory.rows(late), [rows[-2]])
        self.assertIsNotNone(memory.claim(0, keys[0]), "the other worker has rows")


class MarkTests(MemoryTests):
    def mark(self, memory: SharedMemory, sender: int, receiver: int, key: Key) -> int | None:
        """Set a mark for a phone's connection."""
        mark = memory.free_mark(sender, receiver)
        if mark is not None:
            memory.travellers[mark] = key.word
            memory.legs[mark] = Total.PHONE_CONNECTIONS + 1
        return mark

    @cases({str(workers): (workers,) for workers in (2, 3, 8, MOST_WORKERS)})
    def test_each_pair_has_its_own(self, workers: int) -> None:
        """A pair that has used up its marks leaves all of the others'; all are counted."""
        self.patch(shared_memory, "LEAST_ROWS", WAYS)
        memory = self.memory(workers)
        key = memory.key("192.0.2.1")
        number = 0
        while self.mark(memory, 0, 1, key) is not None:
            number += 1
            self.assertEqual(memory.on_their_way(), (0, number))
        self.assertEqual(number, memory.depth)
        self.assertGreaterEqual(number, 8)
        marks = {self.mark(memory, one, other, key) for one in range(workers) for other in (0, 1)}
        self.assertEqual(len(marks), 2 * workers)
        self.assertEqual(
            {memory.sender(mark) for mark in marks if mark is not None}, {*range(workers)}
        )
        self.assertEqual(memory.on_their_way_of(key), number + 2 * workers - 1)
        self.assertEqual(memory.on_their_way_of(memory.key("192.0.2.2")), 0)

    def test_clear(self) -> None:
        """What ends with a worker is removed, and nothing else."""
        memory = self.memory(3)
        key = memory.key("192.0.2.1")
        for worker in range(3):
            for total in Total:
                memory.publish(worker, total, 1)
            row = memory.claim(worker, key)
            assert row is not None
            memory.counts[row] = 7
            memory.due[row] = 5.0
            for receiver in range(3):
                if receiver != worker:
                    self.mark(memory, worker, receiver, key)
        memory.clear(1)
        self.assertEqual([memory.sum(total) for total in Total], [2, 2, 2, 2])
        rows = memory.rows(key)
        self.assertEqual([memory.counts[row] for row in rows], [7, 0, 7])
        self.assertEqual([memory.due[row] for row in rows], [5.0, 5.0, 5.0])
        self.assertEqual(memory.on_their_way(), (0, 2), "from 0 to 2, and back")
        memory.clear(0)
        memory.clear(2)
        self.assertEqual({*memory.counts} | {*memory.legs}, {0})
