"""Limits that are each allowed alone, but make no sense together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyrycode_relay.limits import ITEM_COST, Limits

_MIN_HEARTBEAT: Final = 1.0
"""Seconds: with less, pings outnumber messages, and a slow network ends connections."""


def contradictions(limits: Limits) -> Iterator[str]:
    """Yield a sentence for each contradiction: the settings, their values and the fix."""
    message = limits.max_message_bytes + ITEM_COST
    if limits.outbox_bytes < message:
        yield (
            f"--outbox-bytes is {limits.outbox_bytes}, but one message may count {message} bytes "
            f"(--max-message-bytes + {ITEM_COST}); raise the first to {message}, or lower the "
            "second."
        )
    for name, value in (("outbox", limits.outbox_bytes), ("hold", limits.hold_bytes)):
        if limits.memory_budget < value:
            yield (
                f"--memory-budget is {limits.memory_budget}, but one phone may use {value} bytes "
                f"(--{name}-bytes); raise the first, or lower the second."
            )
    for name, seconds in (
        ("interval", limits.heartbeat_interval),
        ("timeout", limits.heartbeat_timeout),
    ):
        if seconds < _MIN_HEARTBEAT:
            yield (
                f"--heartbeat-{name} is {seconds}, which ends connections over slow networks; "
                f"give at least {_MIN_HEARTBEAT:.0f} second."
            )
    if limits.max_connections == 1:
        yield (
            "--max-connections is 1, but a daemon and its phone need two; raise it, or give 0 for "
            "as many as the open files allow."
        )
