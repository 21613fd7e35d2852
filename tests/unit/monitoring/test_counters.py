"""Counters have all their cells from the start."""

from __future__ import annotations

from pyrycode_relay.monitoring.counters import Cells
from tests.unit.bench import Cases


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
