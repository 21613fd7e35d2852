"""The relay's public paths: WebSocket endpoints, ``/healthz`` and ``/readyz``.

Source: sections 1 and 6 of ``docs/protocol.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.web import http
from twisted.web.http_headers import Headers

from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http.admission import Admission, Bound, Denial, Leg, Mode
from pyrycode_relay.http.server import HardenedRequest, Site
from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.header_gate import Fields, Gate, HeaderError, UpgradeRefusal
from pyrycode_relay.websocket.connection import RelayFactory

RETRY_AFTER: Final = 5
"""Seconds after which a client may come back while the relay starts or drains: one restart."""

_STARTING: Final = b"starting: there is no certificate yet, see the log\n"
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_PORT: Final = re.compile(rb":[0-9]*\Z")

_CAPS: Final = {
    Bound.ADDRESS: "too many connections of this address",
    Bound.TOTAL: "too many connections",
    Bound.RESERVE: "what is left is kept for binaries",
}
"""What the log calls each number of connections that is reached."""


class Readiness(Enum):
    """Whether the relay takes new connections."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A WebSocket path: its gate, and the factory of its connections."""

    leg: Leg
    factory: RelayFactory
    gate: Gate


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


class RelaySite(Site):
    """Serves the relay's public paths.

    Args:
        reactor: The clock of all deadlines.
        observer: Receives events.
        limits: Its ``header_timeout`` and ``close_timeout`` apply.
        backend: The relay.
        trusted: Proxies whose word on the caller's address is taken.
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
        self._domains = frozenset(domain.encode() for domain in domains)

    def handle(self, request: HardenedRequest) -> None:
        """Answer a request, or hand its connection over to a WebSocket protocol."""
        endpoint = self.backend.endpoints.get(request.path)
        if self._domains and _over_tls(request) and _host(request) not in self._domains:
            request.refuse(421)
        elif endpoint is not None:
            self._upgrade(request, endpoint)
        elif request.path == b"/healthz":
            self._answer_health(request)
        elif request.path == b"/readyz":
            self._answer_readiness(request)
        else:
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
        """Refuse what must not reach Autobahn, and hand it the rest.

        The order of the checks is the wire contract's: draining, then the rate and the numbers
        of connections, then the header gate, then the handshake. Of a request that fails its
        handshake the gate is asked here; of any other, in ``onConnect``.
        """
        if self.backend.readiness() is Readiness.DRAINING:
            self._note_refusal(request, UpgradeRefusal.NOT_READY)
            request.refuse(503, {b"Retry-After": b"%d" % RETRY_AFTER})
            return
        remote = request.caller
        denial = self.backend.admission.ask(endpoint.leg, remote)
        if denial is not None:
            self._tell(denial, remote, request.path.decode("ascii"))
            if denial.mode is Mode.ENFORCED:
                status = 429 if denial.bound is Bound.RATE else 503
                request.refuse(status, {b"Retry-After": b"%d" % denial.retry_after})
                return
        fields = [
            (name.lower(), values) for name, values in request.requestHeaders.getAllRawHeaders()
        ]
        problem = _handshake_problem(request)
        try:
            header_gate.check_block(fields)
            if problem is not None:
                endpoint.gate(_decoded(fields))
        except HeaderError as error:
            self._note_refusal(request, error.refusal)
            request.refuse(400)
            return
        if problem is not None:
            status, extra = problem
            self._note_refusal(request, UpgradeRefusal.NO_HANDSHAKE)
            request.refuse(status, extra)
            return
        self._hand_over(request, endpoint, dict(fields), remote)

    def _tell(self, denial: Denial, remote: str, path: str) -> None:
        if denial.bound is Bound.RATE:
            self._observer.saw(Event.RATE_LIMITED, remote=remote, path=path, mode=denial.mode)
        else:
            self._observer.saw(
                Event.CONNECTION_CAP_REACHED,
                remote=remote,
                path=path,
                reason=_CAPS[denial.bound],
                mode=denial.mode,
            )

    def _note_refusal(self, request: HardenedRequest, refusal: UpgradeRefusal) -> None:
        path = request.path.decode("ascii")
        self._observer.saw(Event.REQUEST_REFUSED, path=path, err=refusal)

    def _hand_over(
        self,
        request: HardenedRequest,
        endpoint: Endpoint,
        fields: Mapping[bytes, Sequence[bytes]],
        remote: str,
    ) -> None:
        channel = request.channel
        protocol = endpoint.factory.connection()
        protocol.remote = remote
        protocol.accepted = channel.accepted
        name = fields.get(header_gate.DEVICE_NAME.encode())
        if name is not None:
            protocol.device_name = header_gate.device_name(name[0])
        # Nothing of the request shall outlive it, least of all a token.
        request.requestHeaders = Headers()
        channel.surrender()
        key = fields[b"sec-websocket-key"][0]
        protocol.place = self.backend.admission.enter(endpoint.leg, remote)
        protocol.take_over(channel, request.path.decode("ascii"), _gated(fields), key)


def _decoded(fields: Fields) -> dict[str, str]:
    return {name.decode("latin-1"): values[0].decode("latin-1") for name, values in fields}


def _gated(fields: Mapping[bytes, Sequence[bytes]]) -> dict[str, str]:
    """Return the headers that the gate looks at; ``onConnect`` gets no others."""
    return {
        name: fields[name.encode()][0].decode("latin-1")
        for name in header_gate.GATED
        if name.encode() in fields
    }


def _tokens(request: http.Request, name: str) -> set[str]:
    values = request.requestHeaders.getRawHeaders(name) or []
    return {token.strip().lower() for value in values for token in value.split(",")}


def _over_tls(request: HardenedRequest) -> bool:
    """Whether TLS ends in this process; a proxy that ends it checks the Host itself."""
    return isinstance(request.channel.transport, TLSMemoryBIOProtocol)


def _host(request: HardenedRequest) -> bytes:
    """Return the Host without its port, in lower case; empty unless there is exactly one."""
    return _PORT.sub(b"", request.single(b"host") or b"").lower()


def _handshake_problem(request: HardenedRequest) -> tuple[int, dict[bytes, bytes]] | None:
    """Return how to refuse a request that is no WebSocket handshake (RFC 6455, section 4.2.1)."""
    if request.method != b"GET":
        return 405, {b"Allow": b"GET"}
    if request.clientproto != b"HTTP/1.1" or request.single(b"host") is None:
        return 400, {}
    if request.has_body:
        # Whatever stands before us might take it for a body, and we for frames.
        return 400, {}
    upgrade = {b"Upgrade": b"websocket", b"Sec-WebSocket-Version": b"13"}
    if "websocket" not in _tokens(request, "upgrade"):
        return 426, upgrade
    if "upgrade" not in _tokens(request, "connection"):
        return 426, upgrade
    if request.single(b"sec-websocket-version") != b"13":
        return 426, upgrade
    key = request.single(b"sec-websocket-key")
    if key is None or _KEY.fullmatch(key) is None:
        return 400, {}
    return None
