"""How many connections the limit of open files allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.http.capacity import (
    LEAST_FILES,
    MOST_CONNECTIONS,
    SPARE_FILES,
    Capacity,
)
from pyrycode_relay.limits import Limits
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases, cases, examples


class CapacityTests(Cases):
    @cases(
        {
            "least": (LEAST_FILES, 144, 48),
            "common": (1024, 704, 128),
            "system": (65_536, 63_296, 2048),
            "container": (1_048_576, MOST_CONNECTIONS, 2048),
        }
    )
    def test_derived(self, files: int, connections: int, waiting: int) -> None:
        """Without settings, the numbers follow from the open files and leave some spare."""
        capacity = Capacity.within(files, Limits())
        self.assertEqual((capacity.connections, capacity.waiting), (connections, waiting))
        self.assertEqual(capacity.reserved, connections // 10)
        self.assertGreaterEqual(files, capacity.ceiling + waiting + SPARE_FILES)

    def test_given(self) -> None:
        """Settings are taken as they are if the open files just suffice."""
        limits = Limits(max_connections=200, max_waiting=72, reserve_binaries=0.25)
        capacity = Capacity.within(SPARE_FILES + 272, limits)
        self.assertEqual((capacity.connections, capacity.waiting, capacity.reserved), (200, 72, 50))
        error = self.assertRaises(StartupError, Capacity.within, SPARE_FILES + 271, limits)
        self.assertIn("need 464 open files, and 463 are allowed", str(error))

    @cases(
        {
            "few_files": (100, Limits()),
            "many_connections": (1024, Limits(max_connections=5000)),
            "many_waiting": (1024, Limits(max_waiting=1000)),
        }
    )
    def test_not_enough(self, files: int, limits: Limits) -> None:
        """Too few open files are one sentence with the number and the fix."""
        error = self.assertRaises(StartupError, Capacity.within, files, limits)
        self.assertIn(str(files), str(error))
        self.assertIn("ulimit -n", str(error))
        self.assertTrue(str(error).endswith("."))
        self.assertEqual(len(str(error).splitlines()), 1)

    @cases(
        {
            "least": (LEAST_FILES, 2, 78, 24),
            "common": (1024, 4, 388, 32),
            "system": (65_536, 8, 32_520, 256),
            "container": (1_048_576, 32, MOST_CONNECTIONS, 64),
        }
    )
    def test_workers(self, files: int, workers: int, connections: int, waiting: int) -> None:
        """Workers share one number of connections; each has room for all of them, carried."""
        capacity = Capacity.within(files, Limits(), workers)
        self.assertEqual((capacity.connections, capacity.waiting), (connections, waiting))
        self.assertLessEqual(2 * capacity.connections + waiting + SPARE_FILES, files)

    def test_given_for_workers(self) -> None:
        """Settings are for all workers; a process must have the files for all connections."""
        limits = Limits(max_connections=200, max_waiting=70)
        least = SPARE_FILES + 2 * 200 + 35 + 12
        capacity = Capacity.within(least, limits, 2)
        self.assertEqual((capacity.connections, capacity.waiting), (200, 35))
        error = self.assertRaises(StartupError, Capacity.within, least - 1, limits, 2)
        self.assertIn(f"--max-waiting=70 need {least} open files", str(error))

    @examples(200)
    @given(
        st.integers(0, 2_000_000),
        st.integers(0, 1_000_000),
        st.integers(0, 1_000_000),
        st.sampled_from([0, 0.1, 0.9]),
        st.integers(1, 32),
    )
    def test_any(
        self, files: int, connections: int, waiting: int, share: float, workers: int
    ) -> None:
        """Any numbers either fit into the open files or are refused by a sentence."""
        limits = Limits(max_connections=connections, max_waiting=waiting, reserve_binaries=share)
        try:
            capacity = Capacity.within(files, limits, workers)
        except StartupError:
            return
        self.assertGreater(capacity.connections, 0)
        self.assertGreater(capacity.waiting, 0)
        self.assertLessEqual(capacity.connections, capacity.ceiling)
        self.assertLess(capacity.reserved, capacity.connections)
        self.assertGreaterEqual(capacity.waiting * workers, waiting)
        if workers == 1:
            self.assertEqual(capacity.ceiling + capacity.waiting + SPARE_FILES, files)
        else:
            self.assertLess(2 * capacity.ceiling + capacity.waiting + SPARE_FILES, files)
