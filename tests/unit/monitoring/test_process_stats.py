"""Open files are counted on any kernel, and without waiting."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

from pyrycode_relay.monitoring import process_stats
from pyrycode_relay.monitoring.process_stats import Descriptors
from tests.peers.waiting import eventually
from tests.unit.bench import Cases


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
