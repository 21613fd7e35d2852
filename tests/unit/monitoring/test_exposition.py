"""Metrics: counters with all their cells, open files on any kernel, and what a scrape costs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from twisted.internet.testing import MemoryReactorClock

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.monitoring import process_stats
from pyrycode_relay.monitoring.counters import Cells
from pyrycode_relay.monitoring.process_stats import Descriptors
from pyrycode_relay.registry.registry import Claimed
from pyrycode_relay.service import RelayService
from tests.system.harness import eventually
from tests.unit.bench import Binary, Cases, Leg

BINARIES, PHONES = 500, 16


class CellTests(Cases):
    def test_from_the_start(self) -> None:
        """Each cell is there before anything was counted, and a cell that is not never comes."""
        cells = Cells("x", "Things.", one=("a", "b"), other=("c", "d"))
        cells.add("a", "d")
        self.assertEqual(cells.counts, {("a", "c"): 0, ("a", "d"): 1, ("b", "c"): 0, ("b", "d"): 0})
        self.assertRaises(KeyError, cells.add, "a", "z")
        self.assertEqual([sample.value for sample in cells.family().samples], [0, 1, 0, 0])

    def test_without_labels(self) -> None:
        """A counter without labels is one cell."""
        cells = Cells("x", "Things.")
        cells.add()
        [sample] = cells.family().samples
        self.assertEqual((sample.name, sample.value), ("pyrycode_relay_x_total", 1))


class DescriptorTests(Cases):
    def test_count(self) -> None:
        """A file that is opened is one more."""
        descriptors = Descriptors()
        before = eventually("the files are counted", descriptors.count)
        more = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        try:
            eventually("they are more", lambda: descriptors.count() >= before + 20)
        finally:
            for each in more:
                os.close(each)

    def test_older_kernels(self) -> None:
        """Where the folder has no size its files are counted aside, and nobody waits for that."""
        self.patch(Path, "stat", lambda _: SimpleNamespace(st_size=0))
        listing, counted_by = os.listdir, []

        def listdir(path: str) -> list[str]:
            counted_by.append(threading.current_thread())
            return listing(path)

        self.patch(os, "listdir", listdir)
        found = eventually("the files are counted", Descriptors().count)
        self.assertLess(abs(found - len(listing("/proc/self/fd"))), 5)
        self.assertNotIn(threading.current_thread(), counted_by)

    def test_no_proc(self) -> None:
        """Where there is no such folder the number is unknown."""
        self.patch(process_stats, "_DESCRIPTORS", "/nowhere/at/all")
        self.assertEqual(Descriptors().count(), 0)


class CostTests(Cases):
    def cost(self, service: RelayService) -> float:
        """Return the seconds of CPU that a scrape takes, the best of several."""
        assert service.status is not None
        best = 1.0
        for _ in range(10):
            start = time.process_time()
            service.status.metrics.text()
            best = min(best, time.process_time() - start)
        return best

    def test_crowd(self) -> None:
        """A scrape of a relay with 8,000 phones costs little more than one of an empty relay.

        It is the same work but for sums over server-ids, so it is no matter of the
        machine.
        """
        service = RelayService(
            MemoryReactorClock(), Settings(("tcp:0",), metrics_listen="127.0.0.1:0"), []
        )
        empty = self.cost(service)
        registry = service.exchange.registry
        for number in range(BINARIES):
            claimed = registry.claim(f"server-{number}", Binary())
            assert isinstance(claimed, Claimed)
            for _ in range(PHONES):
                registry.register(f"server-{number}", Leg())
        self.assertEqual(registry.phones, BINARIES * PHONES)
        self.assertLess(self.cost(service), 3 * empty)
        registry.close()
