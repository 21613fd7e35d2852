"""The relay's limits and their defaults."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

ITEM_COST: Final = 64
"""Bytes charged for each queued item in addition to its length: roughly what an object costs."""

ENVELOPE_ALLOWANCE: Final = 4096
"""Bytes for the envelope: a binary's message may exceed ``max_message_bytes`` by this many.

A ``conn_id`` has fewer than 2,000 bytes, even with a server-id of 256 bytes that are all escaped.
"""

STRANGER_LINES: Final = 6
"""Lines per minute, and at once, for each event with `LineLimit.TOTAL`: refused requests.

A client's author needs to see only one refusal. A scanner has any number of addresses, so the limit
is for all of them together: two events, some 150 bytes a line, at most 3 MB a day.
"""

DEPARTURE_SECONDS: Final = 60
"""How long a phone that has left is remembered: longer than a daemon takes to notice."""
DEPARTURES: Final = 4096
"""Phones that are remembered after they have left: some 500 bytes each, 2 MB in all.

More than 68 a second push the oldest out early. Then an envelope for it is logged as a mistake.
"""


class OnReclaim(enum.Enum):
    """What happens to the phones of a server-id when its binary returns."""

    EVICT = "evict"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Limits:
    """The relay's limits; ``--help`` explains each. Times are in seconds."""

    grace: float = 30.0
    on_reclaim: OnReclaim = OnReclaim.EVICT
    max_phones: int = 16
    max_message_bytes: int = 262_144
    outbox_bytes: int = 67_108_864
    hold_bytes: int = 1_048_576
    memory_budget: int = 268_435_456
    write_stall: float = 30.0
    message_timeout: float = 30.0
    heartbeat_interval: float = 30.0
    heartbeat_timeout: float = 30.0
    probe_timeout: float = 10.0
    close_timeout: float = 5.0
    header_timeout: float = 5.0
    drain_timeout: float = 10.0
    send_buffer: int = 131_072
    upgrade_rate: float = 10.0
    """Upgrades per minute for each address."""
    upgrade_burst: int = 20
    max_connections_per_address: int = 64
    max_connections: int = 0
    """0: as many as the limit of open files allows."""
    max_waiting: int = 0
    """0: a share of the limit of open files."""
    reserve_binaries: float = 0.1
    limits_dry_run: bool = False
    worker_timeout: float = 10.0
    worker_backoff: float = 30.0
