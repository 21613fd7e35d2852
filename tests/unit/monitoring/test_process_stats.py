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


class MemoryLimitTests(Cases):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.write("proc/meminfo", "MemTotal:       16 kB\nMemFree: 1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")

    def test_machine(self) -> None:
        """Without a control group, the machine's memory is the limit."""
        self.assertEqual(process_stats.memory_limit(self.root), 16_384)

    def test_version_2(self) -> None:
        """A group's limit counts, and so does one above it; "max" is none."""
        self.write("proc/self/cgroup", "0::/system.slice/relay.service\n")
        self.write("sys/fs/cgroup/system.slice/relay.service/memory.max", "max\n")
        self.assertEqual(process_stats.memory_limit(self.root), 16_384)
        self.write("sys/fs/cgroup/system.slice/memory.max", "9000\n")
        self.assertEqual(process_stats.memory_limit(self.root), 9000)

    def test_version_1(self) -> None:
        """So it is with the older control groups, whose largest number means none."""
        self.write("proc/self/cgroup", "5:cpu,memory:/a\n3:cpuset:/a\n")
        self.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000\n")
        self.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        self.assertEqual(process_stats.memory_limit(self.root), 7000)

    def test_container(self) -> None:
        """In a container, the mount is the container's own group, whatever the path says."""
        self.write("proc/self/cgroup", "0::/docker/123\n")
        self.write("sys/fs/cgroup/memory.max", "5000\n")
        self.assertEqual(process_stats.memory_limit(self.root), 5000)

    def test_unknown(self) -> None:
        """If nothing can be read, the limit is unknown; here it is known."""
        self.assertEqual(process_stats.memory_limit(self.root / "nowhere"), 0)
        self.assertGreater(process_stats.memory_limit(), process_stats.resident_bytes())

    def test_cpu(self) -> None:
        """CPU time is there, and grows."""
        self.assertGreater(process_stats.cpu_seconds(), 0)
