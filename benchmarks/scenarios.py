"""What is measured, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Traffic:
    """Phones that keep a number of messages in flight, which their binary sends back."""

    name: str
    ids: int
    phones: int
    """Phones for each server-id."""
    in_flight: int
    """Messages under way for each phone."""
    size: int
    """Bytes of a phone's message."""

    @property
    def shape(self) -> str:
        """What it is, in words."""
        size = f"{self.size} B" if self.size < 1024 else f"{self.size / 1024:.0f} KiB"
        return f"{self.ids} x {self.phones} phones, {self.in_flight} in flight, {size}"


TRAFFIC: Final = (
    Traffic("small", 4, 4, 8, 256),
    Traffic("solo", 1, 1, 1, 256),
    Traffic("wide", 50, 10, 1, 256),
    # Few connections: so many bytes are under way in each that more of them change nothing.
    Traffic("large", 2, 2, 4, 16_384),
    Traffic("huge", 1, 2, 2, 200_000),
)

CROWD_IDS: Final = 125
CROWD_PHONES: Final = 16
"""A crowd of 2,000 phones: for upgrades, idle memory and the storm."""

GROWTH: Final = (100, 1000, 2000, 4000, 8000)
"""Connections at which the cost of a frame is taken."""
GROWTH_IN_FLIGHT: Final = 64
"""Messages under way at any number of connections; each answer lets the next phone in turn speak,
so that the server's batches stay the same and every connection is used as often as any other."""

DRIBBLE: Final = (16_384, 65_536, 262_144)
"""Bytes of messages that come in small pieces; the cost of a byte must not grow with them."""
DRIBBLE_PIECE: Final = 100
"""Bytes of a piece."""

EXTRAS: Final = ("upgrades", "storm", "growth", "dribble")
NAMES: Final = (*(traffic.name for traffic in TRAFFIC), *EXTRAS)
