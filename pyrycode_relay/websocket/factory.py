"""The factory of one endpoint's connections, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar, cast

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.limits import Limits
from pyrycode_relay.registry.memory_budget import QueueGroup
from pyrycode_relay.registry.queues import NoOutbox
from pyrycode_relay.tally import LegTally
from pyrycode_relay.websocket.autobahn import (
    AutobahnAdapter,
    AutobahnFactory,
    ConnectionRequest,
    settled,
)
from pyrycode_relay.websocket.poller import Poller

Connection_co = TypeVar("Connection_co", bound=AutobahnAdapter, covariant=True)


@dataclass(frozen=True, slots=True)
class Environment:
    """What the connections of one endpoint share.

    ``clock`` runs all their timers, ``group`` bounds their queues together, ``random`` spreads
    their heartbeats, ``poller`` serves their sockets, ``tally`` counts.
    """

    clock: IReactorTime
    limits: Limits
    group: QueueGroup
    max_message_bytes: int
    """Largest message that a peer may send."""
    random: Random
    poller: Poller
    tally: LegTally


class RelayFactory(AutobahnFactory, Generic[Connection_co]):
    """Makes the connections of one endpoint."""

    protocol: type[Connection_co]

    def __init__(self, protocol: type[Connection_co], environment: Environment) -> None:
        super().__init__(protocol, environment.clock, environment.max_message_bytes)
        self.clock = environment.clock
        self.seconds = environment.clock.seconds
        self.limits = environment.limits
        self.group = environment.group
        self.no_outbox = NoOutbox(self.limits.outbox_bytes, self.group, None)
        """The outbox of every connection that has not queued anything."""
        self.random = environment.random
        self.poller = environment.poller
        self.tally = environment.tally
        self.connections: set[Connection_co] = set()
        """The connections that have a socket."""
        common = settled(protocol, self)
        whole = type(protocol.__name__, (protocol,), {"__slots__": (), **common})
        self.protocol = cast("type[Connection_co]", whole)

    def connect(self, path: str, headers: Mapping[str, str]) -> Connection_co:
        """Make a connection and call its ``onConnect`` with the request.

        ``headers`` have lower-case names. Raises ``ConnectionDeny`` if ``onConnect`` denies the
        request. The connection has no socket until it takes one over from an HTTP channel.
        """
        connection = self.protocol(self)
        connection.onConnect(ConnectionRequest("", headers, "", path, {}, 13, "", [], []))
        return connection
