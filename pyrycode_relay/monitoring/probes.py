"""Which events a probe causes, and their level.

A health check runs a probe every minute, so its events are neither news nor failures. Anybody can
use a probe's server-id. For this reason, only the events that a probe itself causes are treated
differently. All others keep their level, and every connection is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyrycode_relay.events import Event, Level
from pyrycode_relay.protocol.probe_ids import is_probe

CAUSED: Final = frozenset(
    {
        Event.SERVER_CLAIMED,
        Event.SERVER_ID_CONFLICT,
        Event.SERVER_RELEASED,
        Event.SERVER_EXPIRED,
        Event.PHONE_REGISTERED,
        Event.PHONE_REGISTER_NO_SERVER,
        Event.PHONE_UNREGISTERED,
    }
)
"""The events that a probe causes at a relay that works, but for those of a push wake."""


def by_probe(event: Event, fields: Mapping[str, object]) -> bool:
    """Whether a probe caused an event, as far as its server-id tells."""
    server_id = fields.get("server_id")
    return event in CAUSED and isinstance(server_id, str) and is_probe(server_id)


def level(event: Event, fields: Mapping[str, object]) -> Level:
    """Return the level of one event with these fields: debug if a probe caused it."""
    return Level.DEBUG if by_probe(event, fields) else event.level
