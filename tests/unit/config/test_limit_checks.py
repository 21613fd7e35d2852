"""Limits that contradict each other."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.config.limit_checks import contradictions
from pyrycode_relay.limits import ITEM_COST, Limits
from tests.unit.bench import Cases, cases, examples


class ContradictionTests(Cases):
    def test_defaults(self) -> None:
        """The defaults contradict nothing."""
        self.assertEqual([*contradictions(Limits())], [])

    @cases(
        {
            "outbox": (
                {"outbox_bytes": 1000, "max_message_bytes": 1000},
                (
                    "--outbox-bytes is 1000, but one message may count 1064 bytes "
                    "(--max-message-bytes + 64); raise the first to 1064, or lower the second."
                ),
            ),
            "budget": (
                {"memory_budget": 2**21, "outbox_bytes": 2**22},
                (
                    "--memory-budget is 2097152, but one phone may use 4194304 bytes "
                    "(--outbox-bytes); raise the first, or lower the second."
                ),
            ),
            "budget_of_held": (
                {"memory_budget": 2**22, "outbox_bytes": 2**22, "hold_bytes": 2**23},
                (
                    "--memory-budget is 4194304, but one phone may use 8388608 bytes "
                    "(--hold-bytes); raise the first, or lower the second."
                ),
            ),
            "interval": (
                {"heartbeat_interval": 0.5},
                (
                    "--heartbeat-interval is 0.5, which ends connections over slow networks; "
                    "give at least 1 second."
                ),
            ),
            "timeout": (
                {"heartbeat_timeout": 0.9},
                (
                    "--heartbeat-timeout is 0.9, which ends connections over slow networks; "
                    "give at least 1 second."
                ),
            ),
            "connections": (
                {"max_connections": 1},
                (
                    "--max-connections is 1, but a daemon and its phone need two; raise it, "
                    "or give 0 for as many as the open files allow."
                ),
            ),
        }
    )
    def test_sentence(self, limits: dict[str, Any], sentence: str) -> None:
        """Each contradiction is one sentence with names, values and the fix."""
        self.assertEqual([*contradictions(Limits(**limits))], [sentence])

    @examples(200)
    @given(st.integers(1, 2**20), st.integers(0, 2**20), st.integers(0, 2**20))
    def test_enough(self, message: int, more: int, budget: int) -> None:
        """An outbox for a message, and a budget for the larger queue, contradict nothing."""
        outbox = message + ITEM_COST + more
        limits = Limits(
            max_message_bytes=message,
            outbox_bytes=outbox,
            hold_bytes=message,
            memory_budget=outbox + budget,
        )
        self.assertEqual([*contradictions(limits)], [])
