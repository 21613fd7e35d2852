"""The relay's public paths: WebSocket endpoints, ``/healthz`` and ``/readyz``.

Source: sections 1 and 6 of ``docs/protocol.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from autobahn.websocket.types import ConnectionDeny
from twisted.internet.interfaces import IReactorTime
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.web import http_headers

from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http.admission import Admission, Bound, Denial, Enforcement, Leg
from pyrycode_relay.http.handshake import Headers, find_fault, response
from pyrycode_relay.http.paths import find_path_fault
from pyrycode_relay.http.server import HardenedRequest, Site
from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.header_gate import HeaderError, UpgradeRefusal
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import RelayFactory

HEALTHZ: Final = b"/healthz"
READYZ: Final = b"/readyz"
RETRY_AFTER: Final = 5
"""Seconds after which a client may come back while the relay starts or drains: one restart."""

_STARTING: Final = b"starting: there is no certificate yet, see the log\n"
_PORT: Final = re.compile(rb":[0-9]*\Z")
_GATED: Final = [(name, name.encode()) for name in header_gate.GATED]
_DEVICE_NAME: Final = header_gate.DEVICE_NAME.encode()


class Readiness(Enum):
    """Whether the relay takes new connections."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A WebSocket path: the kind of its connections, and their factory."""

    leg: Leg
    factory: RelayFactory[RelayProtocol]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A request for a WebSocket that has passed every check."""

    leg: Leg
    path: str
    server_id: str
    binary_version: str
    """The binary's version; empty for a phone."""
    device_name: str
    remote: str
    """The caller's address."""
    accepted: float
    """When the socket was accepted, by the clock."""
    response: bytes
    """The response that accepts the handshake; it is not sent yet."""


class Owner(Protocol):
    """Another process, which serves the server-id of a request."""

    def has_room(self) -> bool:
        """Whether it can take a connection now."""

    def bring(self, upgrade: Upgrade, transport: Any, rest: bytes) -> None:
        """Pass a connection to it; ``rest`` is what came behind the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The relay behind the paths."""

    endpoints: Mapping[bytes, Endpoint]
    """The WebSocket endpoint of each path."""
    admission: Admission
    """Denies upgrades that exceed a limit."""
    readiness: Callable[[], Readiness]
    """Returns the relay's state."""
    health: Callable[[], Mapping[str, object]]
    """Returns what ``/healthz`` shows."""
    elsewhere: Callable[[str], Owner | None]
    """Returns the process that serves a server-id; None if it is this one."""


class RelaySite(Site):
    """Serves the relay's public paths.

    Args:
        reactor: The clock of all deadlines.
        observer: Receives events.
        limits: Its ``header_timeout`` and ``close_timeout`` apply.
        backend: The relay.
        trusted: Proxies that may name the caller's address.
        domains: Host names, in lower case, that a request over TLS may be for; empty for any.

    """

    def __init__(
        self,
        reactor: IReactorTime,
        observer: Observer,
        limits: Limits,
        backend: Backend,
        trusted: Trusted,
        domains: Sequence[str],
    ) -> None:
        max_waiting = backend.admission.capacity.waiting
        super().__init__(reactor, observer, limits, max_waiting=max_waiting, trusted=trusted)
        self.backend = backend
        self._paths = (*backend.endpoints, HEALTHZ, READYZ)
        self._domains = frozenset(domain.encode() for domain in domains)

    def handle(self, request: HardenedRequest) -> None:
        """Answer a request, or hand its connection over to a WebSocket protocol."""
        endpoint = self.backend.endpoints.get(request.path)
        if self._domains and _over_tls(request) and _host(request) not in self._domains:
            request.refuse(421)
        elif endpoint is not None:
            self._upgrade(request, endpoint)
        elif request.path == HEALTHZ:
            self._answer_health(request)
        elif request.path == READYZ:
            self._answer_readiness(request)
        else:
            self._refuse_path(request)

    def _refuse_path(self, request: HardenedRequest) -> None:
        fault, meant = find_path_fault(request.path, self._paths)
        if meant is None:
            self._observer.saw(Event.PATH_UNKNOWN, remote=request.caller, err=fault)
        else:
            path = meant.decode("ascii")
            self._observer.saw(Event.PATH_UNKNOWN, remote=request.caller, path=path, err=fault)
        request.refuse(404)

    def _answer_health(self, request: HardenedRequest) -> None:
        if self.only_reads(request):
            body = json.dumps(self.backend.health(), separators=(",", ":")).encode()
            request.setHeader(b"Content-Type", b"application/json; charset=utf-8")
            request.setHeader(b"Cache-Control", b"no-store")
            request.answer(200, body)

    def _answer_readiness(self, request: HardenedRequest) -> None:
        if self.only_reads(request):
            request.setHeader(b"Cache-Control", b"no-store")
            readiness = self.backend.readiness()
            if readiness is Readiness.READY:
                request.answer(200, b"")
                return
            request.setHeader(b"Retry-After", b"%d" % RETRY_AFTER)
            starting = readiness is Readiness.STARTING
            request.answer(503, _STARTING if starting else b"")

    def _upgrade(self, request: HardenedRequest, endpoint: Endpoint) -> None:
        """Hand a request's connection over to a WebSocket protocol, or refuse the request.

        The wire contract fixes the order of the checks: draining, the rate and the numbers of
        connections, the header gate in ``onConnect``, the handshake. A refused request takes
        no place, and the protocol made for it is freed.
        """
        if self.backend.readiness() is Readiness.DRAINING:
            wait = {b"Retry-After": b"%d" % RETRY_AFTER}
            self._refuse(request, 503, UpgradeRefusal.NOT_READY, wait)
            return
        denial = self.backend.admission.ask(endpoint.leg, request.caller)
        if denial is not None:
            self._note_denial(request, denial)
            if denial.enforcement is Enforcement.ENFORCED:
                status = 429 if denial.bound is Bound.RATE else 503
                request.refuse(status, {b"Retry-After": b"%d" % denial.retry_after})
                return
        lines = request.requestHeaders.getAllRawHeaders()
        headers = {name.lower(): values for name, values in lines}
        try:
            header_gate.check_block(headers.items())
            protocol = endpoint.factory.connect(request.path.decode("ascii"), _gated(headers))
        except HeaderError as error:
            self._refuse(request, 400, error.refusal)
            return
        except ConnectionDeny as denied:
            self._refuse(request, denied.code, _cause(denied))
            return
        fault = find_fault(request.method, request.clientproto, headers, has_body=request.has_body)
        if fault is not None:
            self._refuse(request, fault.status, UpgradeRefusal.NO_HANDSHAKE, fault.headers)
            return
        owner = self.backend.elsewhere(protocol.identity[0])
        if owner is None:
            self._hand_over(request, endpoint.leg, protocol, headers)
        elif owner.has_room():
            self._bring(request, endpoint.leg, protocol, headers, owner)
        else:
            wait = {b"Retry-After": b"%d" % RETRY_AFTER}
            self._refuse(request, 503, UpgradeRefusal.NOT_READY, wait)

    def _bring(
        self,
        request: HardenedRequest,
        leg: Leg,
        protocol: RelayProtocol,
        headers: Headers,
        owner: Owner,
    ) -> None:
        """Pass a request's connection to the process that serves its server-id."""
        server_id, binary_version = protocol.identity
        upgrade = Upgrade(
            leg=leg,
            path=request.path.decode("ascii"),
            server_id=server_id,
            binary_version=binary_version,
            device_name=_device_name(headers),
            remote=request.caller,
            accepted=request.channel.accepted,
            response=response(headers),
        )
        # No part of the request may outlive it, least of all a token.
        request.requestHeaders = http_headers.Headers()
        request.channel.depart(partial(owner.bring, upgrade))

    def _note_denial(self, request: HardenedRequest, denial: Denial) -> None:
        remote, path = request.caller, request.path.decode("ascii")
        if denial.bound is Bound.RATE:
            self._observer.saw(
                Event.RATE_LIMITED, remote=remote, path=path, enforcement=denial.enforcement
            )
        else:
            self._observer.saw(
                Event.CONNECTION_CAP_REACHED,
                remote=remote,
                path=path,
                reason=denial.bound,
                enforcement=denial.enforcement,
            )

    def _refuse(
        self,
        request: HardenedRequest,
        status: int,
        refusal: UpgradeRefusal,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Refuse an upgrade and report why."""
        path = request.path.decode("ascii")
        self._observer.saw(Event.REQUEST_REFUSED, remote=request.caller, path=path, err=refusal)
        request.refuse(status, headers)

    def _hand_over(
        self, request: HardenedRequest, leg: Leg, protocol: RelayProtocol, headers: Headers
    ) -> None:
        """Give a request's connection to its protocol, with the response to the handshake."""
        channel = request.channel
        protocol.remote = request.caller
        protocol.accepted = channel.accepted
        protocol.device_name = _device_name(headers)
        # No part of the request may outlive it, least of all a token.
        request.requestHeaders = http_headers.Headers()
        channel.surrender()
        protocol.place = self.backend.admission.enter(leg, protocol.remote)
        protocol.upgrade_from(channel, response(headers))


def _gated(headers: Headers) -> dict[str, str]:
    """Return the headers that the gate looks at; ``onConnect`` gets no others."""
    return {name: headers[raw][0].decode("latin-1") for name, raw in _GATED if raw in headers}


def _device_name(headers: Headers) -> str:
    values = headers.get(_DEVICE_NAME)
    return "" if values is None else header_gate.device_name(values[0])


def _cause(denied: ConnectionDeny) -> UpgradeRefusal:
    """Return why ``onConnect`` denies a request: the gate's error, from which it raises."""
    error = denied.__cause__
    if not isinstance(error, HeaderError):
        raise denied
    return error.refusal


def _over_tls(request: HardenedRequest) -> bool:
    """Whether TLS ends in this process; a proxy that ends it checks the Host itself."""
    return isinstance(request.channel.transport, TLSMemoryBIOProtocol)


def _host(request: HardenedRequest) -> bytes:
    """Return the Host without its port, in lower case; empty unless there is exactly one."""
    return _PORT.sub(b"", request.single(b"host") or b"").lower()
