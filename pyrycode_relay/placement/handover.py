"""Hands a connection to the worker that owns its server-id, and takes those that others hand over.

The worker that accepted a connection, the *edge*, reads its request and makes all checks up to the
WebSocket handshake. A plain connection then moves to its owner by descriptor, and costs nothing
more here. A TLS connection stays, because its state is in OpenSSL, and is carried. The owner
answers the handshake. What it does from then on does not depend on where the connection came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from twisted.logger import Logger

from pyrycode_relay.http.admission import Admission
from pyrycode_relay.http.relay_site import RETRY_AFTER, Endpoint, Readiness, Upgrade
from pyrycode_relay.http.shared_limits import SharedLimits
from pyrycode_relay.limits import Limits
from pyrycode_relay.placement.carry import Carrier
from pyrycode_relay.placement.link import Link, LinkListener, Links
from pyrycode_relay.placement.messages import Arrival, CloseCarried, Message
from pyrycode_relay.placement.ownership import Ownership
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.poller import Poller
from pyrycode_relay.websocket.transports import adopt, plain_descriptor, release_socket

_bugs = Logger()

_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n" % RETRY_AFTER
)
"""The answer of an owner that drains to a connection that is handed to it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker's place among the workers of its relay."""

    reactor: Any
    poller: Poller
    limits: Limits
    admission: Admission
    usage: SharedLimits
    index: int
    """This worker's index."""
    ownership: Ownership
    paths: Sequence[str]
    """The path of each worker's socket for links, by index."""
    listening: socket.socket
    """This worker's socket for links."""
    endpoints: Mapping[bytes, Endpoint]
    """The WebSocket endpoint of each path."""
    readiness: Callable[[], Readiness]


class Placement:
    """Brings each connection to the worker that owns its server-id."""

    def __init__(self, worker: Worker) -> None:
        self.carriers: set[Carrier] = set()
        """The connections that this worker carries."""
        self.handed_over = 0
        """Plain connections that were passed to another worker."""
        self.lost = 0
        """Connections that could not be passed to another worker, and were closed."""
        self._worker = worker
        self._links = [Links(worker.reactor, path) for path in worker.paths]
        self._listener = LinkListener(worker.reactor, worker.listening, self._receive)
        self._numbers = count(1)
        self._carried: WeakKeyDictionary[Link, WeakValueDictionary[int, RelayProtocol]]
        self._carried = WeakKeyDictionary()
        self._moved = False

    def start(self) -> None:
        """Take connections from the other workers."""
        self._listener.start()

    def move(self) -> None:
        """Leave all server-ids of this worker to its successor; its connections remain."""
        self._moved = True
        self._listener.move()

    def stop(self) -> None:
        """Close the links."""
        self._listener.close()
        for links in self._links:
            links.close()

    # The edge

    def elsewhere(self, server_id: str) -> Elsewhere | None:
        """Return the worker that owns ``server_id``; None if it is this one."""
        owner = self._worker.ownership.owner(server_id)
        if owner == self._worker.index and not self._moved:
            return None
        return Elsewhere(self, owner)

    def has_room(self, owner: int) -> bool:
        """Whether a connection can be passed to ``owner`` now."""
        return self._links[owner].has_room()

    def bring(self, owner: int, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        """Pass a connection to ``owner``."""
        try:
            if plain_descriptor(transport) is None:
                self._carry(owner, upgrade, transport, rest)
            else:
                self._hand_over(owner, upgrade, transport, rest)
        except OSError:
            self.lost += 1

    def _hand_over(self, owner: int, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        sock = release_socket(transport)
        ticket = self._worker.usage.send(upgrade.leg, upgrade.remote, owner)
        try:
            self._links[owner].send(_arrival(upgrade, rest, ticket=ticket), [sock])
        except OSError:
            self._worker.usage.settle(ticket)
            raise
        self.handed_over += 1

    def _carry(self, owner: int, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        worker = self._worker
        number = next(self._numbers)
        carrier = Carrier(
            worker.poller,
            worker.admission.enter(upgrade.leg, upgrade.remote),
            close_timeout=worker.limits.close_timeout,
            send_buffer=worker.limits.send_buffer,
        )
        carrier.gone = self.carriers.discard
        carrier.ask_to_close = partial(self._ask_to_close, owner, number)
        self.carriers.add(carrier)
        sockets = carrier.start(transport)
        try:
            self._links[owner].send(_arrival(upgrade, rest, carried=number), sockets)
        except OSError:
            carrier.abort()
            raise

    def _ask_to_close(self, owner: int, number: int) -> None:
        try:
            self._links[owner].send(CloseCarried(number))
        except OSError:
            self.lost += 1

    # The owner

    def _receive(self, link: Link, message: Message, sockets: list[socket.socket]) -> None:
        if isinstance(message, Arrival):
            self._arrive(link, message, sockets)
        elif isinstance(message, CloseCarried):
            carried = self._carried.get(link)
            connection = None if carried is None else carried.get(message.carried)
            if connection is not None:
                connection.close_when_drained(EndCause.SHUTTING_DOWN)

    def _arrive(self, link: Link, arrival: Arrival, sockets: list[socket.socket]) -> None:
        worker = self._worker
        if not sockets:
            raise ValueError("a connection came without its socket: too many open files")
        if self._moved:
            # The sender did not know yet that this worker is being replaced.
            self._links[worker.index].send(arrival, sockets)
            return
        if worker.readiness() is Readiness.DRAINING:
            worker.usage.settle(arrival.ticket)
            _refuse(sockets)
            return
        sock, client = sockets[0], sockets[1] if arrival.carried else None
        endpoint = worker.endpoints[arrival.path.encode()]
        place = None
        if not arrival.carried:
            # The edge counts a connection that it carries.
            place = worker.admission.enter(endpoint.leg, arrival.remote)
            worker.usage.settle(arrival.ticket)
        factory = endpoint.factory
        connection = factory.protocol(factory)
        connection.identify(arrival.server_id, arrival.binary_version)
        connection.device_name = arrival.device_name
        connection.remote = arrival.remote
        connection.accepted = arrival.accepted
        connection.place = place
        transport = adopt(sock, client, connection, worker.reactor)
        if arrival.carried:
            carried = self._carried.setdefault(link, WeakValueDictionary())
            carried[arrival.carried] = connection
        connection.arrive_on(transport, arrival.response, arrival.rest)


@dataclasses.dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another worker, for the site that has read a request for it."""

    placement: Placement
    owner: int

    def has_room(self) -> bool:
        """Whether the worker can take a connection now."""
        return self.placement.has_room(self.owner)

    def bring(self, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        """Pass a connection to the worker."""
        self.placement.bring(self.owner, upgrade, transport, rest)


def _arrival(upgrade: Upgrade, rest: bytes, *, ticket: int = 0, carried: int = 0) -> Arrival:
    return Arrival(
        path=upgrade.path,
        server_id=upgrade.server_id,
        binary_version=upgrade.binary_version,
        device_name=upgrade.device_name,
        remote=upgrade.remote,
        accepted=upgrade.accepted,
        response=upgrade.response,
        rest=rest,
        ticket=ticket,
        carried=carried,
    )


def _refuse(sockets: Sequence[socket.socket]) -> None:
    """Answer that the relay drains, and close."""
    with contextlib.suppress(OSError):
        sockets[0].send(_BUSY, socket.MSG_DONTWAIT)
    for each in sockets:
        each.close()
