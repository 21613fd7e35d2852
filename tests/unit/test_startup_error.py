"""The error that ends a start."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.startup_error import StartupError


class StartupErrorTests(SynchronousTestCase):
    def test_problems(self) -> None:
        """The problems are kept apart; the text has one on each line."""
        error = StartupError("First.", "Second.")
        self.assertEqual(error.problems, ("First.", "Second."))
        self.assertEqual(str(error), "First.\nSecond.")
