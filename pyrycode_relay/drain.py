"""The drain: closes all connections, in order and in time.

Source: "Drain" in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from random import Random
from typing import Any, Final, Protocol, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pyrycode_relay.protocol.close_codes import EndCause

_bugs = Logger()

PACE: Final = 0.005
"""Seconds of the drain for each peer: 200 peers a second, or more if `_SHARE` leaves less time. A
relay with few peers stops at once."""

_SHARE: Final = 0.5
"""Share of the drain time over which the close frames are spread. The rest is for the answers."""

_POLL: Final = 0.05
"""Seconds between checks whether all connections are gone."""


class Peer(Protocol):
    """An upgraded connection."""

    def close_when_drained(self, cause: EndCause) -> None:
        """Send what is queued, then a close frame."""

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        """Send a close frame; without ``flush``, discard what is queued."""

    def abort(self) -> None:
        """Drop the connection."""


class Request(Protocol):
    """A connection that waits for a request, or for its response to go."""

    def forceAbortClient(self) -> None:
        """Drop the connection."""


@dataclass(frozen=True, slots=True)
class Connections:
    """All connections of the relay, in collections that each connection leaves when it is gone."""

    phones: Sequence[Iterable[Peer]]
    binaries: Sequence[Iterable[Peer]]
    requests: Sequence[Iterable[Request]]

    def peers(self) -> list[Peer]:
        """Return the upgraded connections that are open now."""
        return [*chain(*self.phones, *self.binaries)]


class Drain:
    """Closes all connections, within ``timeout`` seconds.

    Each peer gets its close frame at a random moment, after what is queued for it. Binaries come
    last, so that they still get what phones send. ``close_timeout`` seconds before the end, the
    queues of the remaining peers are dropped; at the end these peers are aborted.
    """

    def __init__(
        self,
        clock: IReactorTime,
        random: Random,
        connections: Connections,
        *,
        timeout: float,
        close_timeout: float,
    ) -> None:
        self._clock = clock
        self._random = random
        self._connections = connections
        self._timeout = timeout
        self._last_call = min(close_timeout, timeout * _SHARE)

    def carry(self, carried: Iterable[Peer]) -> None:
        """Close the connections that this process carries to another one, too."""
        connections = self._connections
        self._connections = replace(connections, phones=[*connections.phones, carried])

    async def run(self, patience: float = 0.0) -> int:
        """Drain; return how many peers had to be aborted.

        ``patience`` is how many seconds to wait for requests once no peer is left.
        """
        started = self._clock.seconds()
        deadline = started + self._timeout
        closes = self._schedule_closes()
        aborted: set[Peer] = set()
        while True:
            left = deadline - self._clock.seconds()
            peers = self._connections.peers()
            requests = [*chain(*self._connections.requests)]
            if not peers and not requests:
                break
            for peer in peers:
                if left <= self._last_call:
                    _contained(partial(peer.close, EndCause.SHUTTING_DOWN, flush=False))
                if left <= 0:
                    aborted.add(peer)
                    _contained(peer.abort)
            if left <= 0 or (not peers and self._clock.seconds() - started >= patience):
                # A drain does not wait for requests that have not come.
                for request in requests:
                    _contained(request.forceAbortClient)
            await deferLater(cast(Any, self._clock), _POLL)
            if left <= 0:
                break
        for close in closes:
            if close.active():
                close.cancel()
        return len(aborted)

    def _schedule_closes(self) -> list[IDelayedCall]:
        phones = [*chain(*self._connections.phones)]
        binaries = [*chain(*self._connections.binaries)]
        count = len(phones) + len(binaries)
        spread = min(self._timeout * _SHARE, count * PACE)
        middle = spread * len(phones) / count if count else 0
        return [
            self._clock.callLater(
                self._random.uniform(start, end),
                _contained,
                peer.close_when_drained,
                EndCause.SHUTTING_DOWN,
            )
            for peers, start, end in ((phones, 0, middle), (binaries, middle, spread))
            for peer in peers
        ]


def _contained(act: Callable[..., object], *arguments: object) -> None:
    """Call ``act`` for one connection; log a bug, which costs that connection only."""
    try:
        act(*arguments)
    except Exception:
        _bugs.failure("a bug while a connection is drained")
