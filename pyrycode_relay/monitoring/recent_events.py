"""Recent events for the status page, without personal data.

An entry contains no address, no conn_id and nothing that a peer sent. A hash stands for a server-id
unless the operator wants to see the ids. It shows which entries are about the same server-id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyrycode_relay.events import Event, Level
from pyrycode_relay.monitoring import probes
from pyrycode_relay.protocol.close_codes import EndCause

KEPT: Final = 8
"""Entries kept for each kind of event, so that a frequent kind never displaces another."""

MAX_REASON: Final = 200
"""Maximum characters of a reason. The relay's own are shorter; a CA's can have any length."""

_TEXTS: Final = ("reason", "capacity", "certificates")
_COUNTS: Final = ("binaries", "phones", "aborted")
SHOWN: Final = frozenset({*_TEXTS, *_COUNTS})
"""The fields that the page shows: the first text there is, otherwise the counts. The relay itself
writes all of them; none comes from a peer."""

_ROUTINE: Final = frozenset(
    {
        Event.LISTENING,
        Event.ACME_LISTENING,
        Event.ADMIN_LISTENING,
        Event.READY,
        Event.PHONE_REGISTERED,
        Event.SERVER_CLAIMED,
        Event.PUSH_WAKE_SENT,
        Event.PATH_UNKNOWN,
        Event.REQUEST_REFUSED,
        Event.LOG_LINES_DROPPED,
        Event.LOG_REOPEN_FAILED,
    }
)
"""Events that are not kept: those of normal operation, and those that only the log has. On the
internet, refused requests are normal."""

_FAILURE: Final = EndCause.INTERNAL_ERROR.close.code
"""The close code for heartbeat, backlog, stall and bug; phones' other ends are not kept."""


@dataclass(slots=True)
class Entry:
    """One event, or ``count`` events of the same kind, server-id and reason."""

    event: str
    level: str
    server: str
    """What stands for the server-id, or empty."""
    reason: str
    """The relay's own text, or empty."""
    time: float
    """Time of the last event, in seconds since 1970."""
    count: int = 0


class RecentEvents:
    """The observer that keeps recent events.

    Args:
        wall: Returns the seconds since 1970.
        shown: Returns what stands for a server-id.

    """

    def __init__(self, wall: Callable[[], float], shown: Callable[[str], str]) -> None:
        self._wall = wall
        self._shown = shown
        self._kinds: dict[Event, OrderedDict[tuple[str, str], Entry]] = {}

    def saw(self, event: Event, **fields: object) -> None:
        """Keep an event, unless it is routine or a probe caused it."""
        if probes.level(event, fields) < Level.INFO or event in _ROUTINE:
            return
        if event is Event.PHONE_UNREGISTERED and fields.get("close_code") != _FAILURE:
            return
        server_id = fields.get("server_id")
        server = self._shown(server_id) if isinstance(server_id, str) else ""
        reason = _detail(event, fields)[:MAX_REASON]
        kind = self._kinds.setdefault(event, OrderedDict())
        entry = kind.pop((server, reason), None)
        if entry is None:
            entry = Entry(event.label, event.level.name.lower(), server, reason, 0.0)
        entry.count += 1
        entry.time = self._wall()
        kind[server, reason] = entry
        if len(kind) > KEPT:
            kind.popitem(last=False)

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, latest first."""
        entries = [entry for kind in self._kinds.values() for entry in kind.values()]
        yield from sorted(entries, key=lambda entry: entry.time, reverse=True)


def _detail(event: Event, fields: Mapping[str, object]) -> str:
    """Return the text that the page shows next to an event's name."""
    if event is Event.PUSH_WAKE_FAILED:
        # The error's own text also has words of the provider.
        return str(getattr(fields.get("err"), "fault", ""))
    for name in _TEXTS:
        if name in fields:
            return str(fields[name])
    return ", ".join(f"{fields[name]} {name}" for name in _COUNTS if name in fields)
