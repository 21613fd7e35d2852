"""Hands a connection to the worker that owns its server-id, and takes those that others hand over.

The worker that accepted a connection, the *edge*, reads its request and makes all checks up to the
WebSocket handshake. A plain connection then moves to its owner by descriptor, and costs nothing
more here. A TLS connection stays, because its state is in OpenSSL, and is carried. The owner
answers the handshake, and from then on treats the connection like any other.
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


class OtherWorker:
    """A worker that connections are passed to; implements the site's `Owner`.

    A connection that cannot be passed on is closed: its owner is gone, or files ran out.

    Args:
        worker: This worker.
        path: The path of the other worker's socket for links.
        index: The other worker's index.
        carriers: The connections that this worker carries; it adds its own.

    """

    def __init__(self, worker: Worker, path: str, index: int, carriers: set[Carrier]) -> None:
        self._worker = worker
        self._index = index
        self._carriers = carriers
        self._links = Links(worker.reactor, path)
        self._numbers = count(1)
        self.has_room = self._links.has_room
        self.send = self._links.send
        self.close = self._links.close

    def bring(self, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        """Pass a connection to the worker."""
        with contextlib.suppress(OSError):
            if plain_descriptor(transport) is None:
                self._carry(upgrade, transport, rest)
            else:
                self._hand_over(upgrade, transport, rest)

    def _hand_over(self, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        sock = release_socket(transport)
        usage = self._worker.usage
        ticket = usage.send(upgrade.leg, upgrade.remote, self._index)
        try:
            self.send(Arrival(upgrade=upgrade, rest=rest, ticket=ticket), [sock])
        except OSError:
            usage.settle(ticket)
            raise

    def _carry(self, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        worker = self._worker
        number = next(self._numbers)
        carrier = Carrier(
            worker.poller,
            worker.admission.enter(upgrade.leg, upgrade.remote),
            close_timeout=worker.limits.close_timeout,
            send_buffer=worker.limits.send_buffer,
        )
        carrier.gone = self._carriers.discard
        carrier.ask_to_close = partial(self._ask_to_close, number)
        self._carriers.add(carrier)
        sockets = carrier.start(transport)
        try:
            self.send(Arrival(upgrade=upgrade, rest=rest, carried=number), sockets)
        except OSError:
            carrier.abort()
            raise

    def _ask_to_close(self, number: int) -> None:
        # If the owner is gone, the connection ends anyway.
        with contextlib.suppress(OSError):
            self.send(CloseCarried(number))


class Placement:
    """Brings each connection to the worker that owns its server-id."""

    def __init__(self, worker: Worker) -> None:
        self.carriers: set[Carrier] = set()
        """The connections that this worker carries."""
        self._worker = worker
        self._others = [
            OtherWorker(worker, path, index, self.carriers)
            for index, path in enumerate(worker.paths)
        ]
        """The workers by index; this one's entry is its successor."""
        self._listener = LinkListener(worker.reactor, worker.listening, self._receive)
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
        for other in self._others:
            other.close()

    def elsewhere(self, server_id: str) -> OtherWorker | None:
        """Return the worker that owns ``server_id``; None if it is this one."""
        owner = self._worker.ownership.owner(server_id)
        if owner == self._worker.index and not self._moved:
            return None
        return self._others[owner]

    def _receive(self, link: Link, message: Message, sockets: list[socket.socket]) -> None:
        if isinstance(message, Arrival):
            self._arrive(link, message, sockets)
        elif isinstance(message, CloseCarried):
            carried = self._carried.get(link)
            connection = None if carried is None else carried.get(message.carried)
            if connection is not None:
                connection.close_when_drained(EndCause.SHUTTING_DOWN)

    def _arrive(self, link: Link, arrival: Arrival, sockets: list[socket.socket]) -> None:
        worker, upgrade = self._worker, arrival.upgrade
        if not sockets:
            raise ValueError("a connection came without its socket: too many open files")
        if self._moved:
            # The sender did not know yet that this worker is being replaced.
            self._others[worker.index].send(arrival, sockets)
            return
        if worker.readiness() is Readiness.DRAINING:
            worker.usage.settle(arrival.ticket)
            _refuse(sockets)
            return
        sock, client = sockets[0], sockets[1] if arrival.carried else None
        place = None
        if not arrival.carried:
            # The edge counts a connection that it carries.
            place = worker.admission.enter(upgrade.leg, upgrade.remote)
            worker.usage.settle(arrival.ticket)
        factory = worker.endpoints[upgrade.path.encode()].factory
        connection = factory.protocol(factory)
        connection.identify(upgrade.server_id, upgrade.binary_version)
        connection.device_name = upgrade.device_name
        connection.remote = upgrade.remote
        connection.accepted = upgrade.accepted
        connection.place = place
        transport = adopt(sock, client, connection, worker.reactor)
        if arrival.carried:
            carried = self._carried.setdefault(link, WeakValueDictionary())
            carried[arrival.carried] = connection
        connection.arrive_on(transport, upgrade.response, arrival.rest)


def _refuse(sockets: Sequence[socket.socket]) -> None:
    """Answer that the relay drains, and close."""
    with contextlib.suppress(OSError):
        sockets[0].send(_BUSY, socket.MSG_DONTWAIT)
    for each in sockets:
        each.close()
