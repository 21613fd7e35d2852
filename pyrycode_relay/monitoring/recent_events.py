"""What has happened lately that an operator would want to know, without whom it happened to.

Kept for the status page: no address, no id in clear, nothing that a peer has sent. A keyed hash
stands for a server-id, with a key of this process only, so that two lines of one server-id can
be told to belong together and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyrycode_relay.events import Event, Level
from pyrycode_relay.protocol.close_codes import EndCause

KEPT: Final = 8
"""Entries kept of each kind of event: no kind, however often it comes, displaces another."""

MAX_REASON: Final = 200
"""Characters of a reason: the longest of our own; one of a CA's can be of any length."""

_SENTENCES: Final = ("reason", "capacity", "certificates")
_COUNTS: Final = ("binaries", "phones", "aborted")
SHOWN: Final = frozenset({*_SENTENCES, *_COUNTS})
"""The fields that the page shows: the first sentence there is, otherwise the counts. The relay
itself writes them all; no peer does."""

_KEY_BYTES: Final = 32
_HASH_BYTES: Final = 4
"""Eight hex digits: enough to tell apart the few server-ids on a page."""

_COMMON: Final = frozenset({Event.ADMIN_LISTENING, Event.PHONE_REGISTERED, Event.SERVER_CLAIMED})
"""Events of a day on which nothing happens."""

_GIVEN_UP: Final = EndCause.INTERNAL_ERROR.close.code
"""The code of a phone's end that is notable: heartbeat, backlog, stall or a bug."""


@dataclass(slots=True)
class Entry:
    """An event, or several of a kind that came one after the other.

    ``time`` is that of the last one, in seconds since 1970. ``server`` is the hash of a
    server-id or empty, ``reason`` the relay's own words or empty.
    """

    event: str
    level: str
    server: str
    reason: str
    time: float
    count: int = 0


class RecentEvents:
    """The observer that keeps what is notable; ``wall`` gives the time since 1970."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._key = os.urandom(_KEY_BYTES)
        self._kinds: dict[Event, OrderedDict[tuple[str, str], Entry]] = {}

    def saw(self, event: Event, **fields: object) -> None:
        """Keep an event, if it is notable."""
        if event.level < Level.INFO or event in _COMMON:
            return
        if event is Event.PHONE_UNREGISTERED and fields.get("close_code") != _GIVEN_UP:
            return
        server = self._pseudonym(fields.get("server_id"))
        reason = _detail(fields)[:MAX_REASON]
        kind = self._kinds.setdefault(event, OrderedDict())
        entry = kind.pop((server, reason), None)
        if entry is None:
            entry = Entry(event.label, event.level.name.lower(), server, reason, 0.0)
        entry.count += 1
        entry.time = self._wall()
        kind[server, reason] = entry
        if len(kind) > KEPT:
            kind.popitem(last=False)

    def _pseudonym(self, server_id: object) -> str:
        if not isinstance(server_id, str):
            return ""
        data = server_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=_HASH_BYTES).hexdigest()

    def entries(self) -> Iterator[Entry]:
        """Yield what is kept, the latest first."""
        entries = [entry for kind in self._kinds.values() for entry in kind.values()]
        yield from sorted(entries, key=lambda entry: entry.time, reverse=True)


def _detail(fields: Mapping[str, object]) -> str:
    """Return what the page shows beside an event's name."""
    for name in _SENTENCES:
        if name in fields:
            return str(fields[name])
    return ", ".join(f"{fields[name]} {name}" for name in _COUNTS if name in fields)
