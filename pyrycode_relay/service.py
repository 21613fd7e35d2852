"""The relay as a Twisted service: holds the registry, opens the listeners, drains on stop."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

from autobahn import websocket
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyrycode_relay import __version__
from pyrycode_relay.acme.cache import CertCache
from pyrycode_relay.addresses import Trusted
from pyrycode_relay.config.settings import Settings, endpoint_string
from pyrycode_relay.endpoints.binary import BinaryFactory
from pyrycode_relay.endpoints.context import Exchange
from pyrycode_relay.endpoints.phone import PhoneFactory
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.http.admission import Admission, Leg
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.challenge_site import ChallengeSite
from pyrycode_relay.http.proxy_protocol import ProxyFactory
from pyrycode_relay.http.relay_site import Backend, Endpoint, Readiness, RelaySite
from pyrycode_relay.monitoring.admin_site import AdminSite
from pyrycode_relay.monitoring.monitored import Monitored
from pyrycode_relay.monitoring.status import Status
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import Files, Folder, Pair, Source, check_authorities
from pyrycode_relay.tls.store import Certificates, TLSFactory
from pyrycode_relay.websocket.connection import RelayFactory, RelayProtocol
from pyrycode_relay.websocket.poller import Epoll, Poller

if TYPE_CHECKING:
    from pyrycode_relay.acme.issuance import Issuance

_bugs = Logger()

DRAIN_PACE: Final = 0.005
"""Seconds of the drain for each connection: 200 peers are told to go in a second, so that they
do not come back to the next process in one wave, and a relay with few peers stops at once."""

_DRAIN_SHARE: Final = 0.5
"""Share of the drain time over which peers are told to go; the rest is for them to do so."""

_OPEN_FILES: Final = 4096
"""Files that may be open where nobody has asked the system."""

_POLL: Final = 0.05
"""Seconds between looks at whether all connections have gone."""


class RelayService(Service):
    """The relay.

    ``reactor`` listens and keeps the time. ``observers`` hear of events. ``capacity`` is for how
    many connections the process has room.
    """

    name = "pyrycode-relay"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observers: Sequence[Observer],
        random: Random | None = None,
        capacity: Capacity | None = None,
        epoll: Callable[[], Epoll] = select.epoll,
    ) -> None:
        self.settings = settings
        self.readiness = Readiness.STARTING
        self.ports: list[IListeningPort] = []
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._started = self._clock.seconds()
        self._observers = tuple(observers)
        self._aborted = 0
        self._dismissals: list[IDelayedCall] = []
        self._random = random or Random()  # noqa: S311 - spreads load, no secret
        self._trusted = Trusted(settings.trusted_proxy)
        limits = settings.limits
        self._poller = Poller(reactor, epoll)
        self.exchange = Exchange(self._clock, limits, self, self._random, self._poller)
        binaries = BinaryFactory(self.exchange)
        phones_v1 = PhoneFactory(self.exchange, header_gate.gate_phone_v1)
        phones_v2 = PhoneFactory(self.exchange, header_gate.gate_phone_v2)
        self._phones: tuple[RelayFactory, ...] = (phones_v1, phones_v2)
        self._binaries: tuple[RelayFactory, ...] = (binaries,)
        capacity = capacity or Capacity.within(_OPEN_FILES, limits)
        self.admission = Admission(limits, capacity, self._clock.seconds)
        server = Endpoint(Leg.BINARY, binaries, header_gate.gate_binary)
        backend = Backend(
            endpoints={
                b"/v1/server": server,
                b"/v2/server": server,
                b"/v1/client": Endpoint(Leg.PHONE, phones_v1, header_gate.gate_phone_v1),
                b"/v2/client": Endpoint(Leg.PHONE, phones_v2, header_gate.gate_phone_v2),
            },
            admission=self.admission,
            readiness=lambda: self.readiness,
            health=self.health,
        )
        self.site = RelaySite(self._clock, self, limits, backend, self._trusted, settings.domain)
        self.challenge_site = ChallengeSite(self._clock, self, limits)
        self._cache: CertCache | None = None
        self._issuance: Issuance | None = None
        if settings.acme:
            root = settings.cert_cache.expanduser().absolute()
            self._cache = CertCache(root, settings.acme_directory)
            self._issuance = self._make_issuance(self._cache)
        self.certificates: Certificates | None = None
        if settings.tls_listen:
            sources = _sources(settings, self._cache)
            self.certificates = Certificates(sources, settings.domain, self, self._clock)
        self.status: Status | None = None
        self.admin: AdminSite | None = None
        self.admin_port: IListeningPort | None = None
        if settings.metrics_listen:
            self._add_admin()

    def _add_admin(self) -> None:
        """Have the relay watched, and the operator's side made."""
        clock, limits = self._clock, self.settings.limits
        self.status = Status(
            clock,
            Monitored(
                registry=self.exchange.registry,
                memory_budget=self.exchange.ledger,
                tally=self.exchange.tally,
                admission=self.admission,
                certificates=self.certificates,
                state=lambda: self.readiness.value,
                crowded_out=lambda: self.site.channels.crowded_out,
                seconds=clock.seconds,
                wall=time.time,
            ),
        )
        self._observers += (self.status,)
        self.admin = AdminSite(
            clock,
            self.status,
            self.settings.metrics_allow_remote,
            self,
            limits,
        )

    def saw(self, event: Event, **fields: object) -> None:
        """Pass an event on to all observers."""
        for observer in self._observers:
            observer.saw(event, **fields)

    def accept_failed(self, error: str) -> None:
        """Take note that a listener could not take a connection; ``error`` names the shortage."""
        self.saw(
            Event.ACCEPT_FAILED,
            err=error,
            reason="new connections are closed; the limit of open files, or memory, is too low",
        )

    def health(self) -> dict[str, object]:
        """Return what ``/healthz`` shows, in its order."""
        return {
            "status": "ok",
            "version": __version__,
            "connected_binaries": self.exchange.registry.binaries,
            "connected_phones": self.exchange.registry.phones,
            "uptime_seconds": int(self._clock.seconds() - self._started),
        }

    # Starting

    def privilegedStartService(self) -> None:
        """Open the listeners, while ports below 1024 can still be bound.

        Raises `StartupError`; what was opened before is closed again.
        """
        listeners: list[tuple[str, IProtocolFactory]]
        listeners = [
            (address, self._proxied(self.site)) for address in self.settings.insecure_listen
        ]
        if self.certificates is not None:
            # Keys may be for root alone to read, too; then their change needs a restart.
            self.certificates.load()
            secure = TLSFactory(self.certificates, self.site, self, self._clock)
            listeners += [(address, self._proxied(secure)) for address in self.settings.tls_listen]
        listeners += [(address, self.challenge_site) for address in self.settings.http_listen]
        for address, factory in listeners:
            self.ports.append(self._open(address, factory, "Cannot listen on"))
        if self.admin is not None:
            address = self.settings.metrics_listen
            fix = "; give --metrics-listen another address, or an empty one"
            self.admin_port = self._open(address, self.admin, "Cannot serve metrics on", fix)
        super().privilegedStartService()

    def _open(
        self, address: str, factory: IProtocolFactory, problem: str, fix: str = ""
    ) -> IListeningPort:
        try:
            return self._listen(address, factory)
        except Exception as error:
            self._close_ports()
            raise StartupError(f"{problem} {address}: {_cause(error)}{fix}.") from error

    def _close_ports(self) -> None:
        """Close what was opened before the reactor runs, which stopListening waits for."""
        for port in self.ports:
            cast(Any, port).connectionLost(Failure(CONNECTION_DONE))
        self.ports.clear()

    def _proxied(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Put what reads PROXY headers below ``factory``, for one listener, when they are on."""
        if not self.settings.proxy_protocol:
            return factory
        limits, waiting = self.settings.limits, self.admission.capacity.waiting
        return ProxyFactory(
            factory,
            self._clock,
            self,
            limits,
            max_waiting=waiting,
            trusted=self._trusted,
        )

    def _listen(self, address: str, factory: IProtocolFactory) -> IListeningPort:
        # Every server endpoint of Twisted answers at once; only clients' take their time.
        outcome: list[IListeningPort | Failure] = []
        endpoint = serverFromString(self._reactor, endpoint_string(address))
        endpoint.listen(factory).addBoth(outcome.append)
        if not outcome:
            raise RuntimeError("the endpoint did not answer at once")
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]

    def startService(self) -> None:
        """Begin to serve.

        Raises `StartupError` when the certificate cache cannot be used.
        """
        super().startService()
        if not self.ports:
            self.privilegedStartService()
        if self._cache is not None:
            self._prepare(self._cache)
        if self.certificates is not None:
            self.certificates.watch()
        self._poller.start()
        self._be_ready()
        if self.status is not None and self.admin_port is not None:
            self.status.history.start()
            self.saw(Event.ADMIN_LISTENING, listen=_address(self.admin_port))
        if not websocket.USES_NVX:
            self.saw(
                Event.NVX_MISSING,
                reason="Autobahn's compiled parts are missing: one large frame costs 85 ms of "
                "CPU instead of 0.8; install autobahn from a wheel",
            )
        self.saw(
            Event.STARTING,
            version=__version__,
            mode=self.settings.limits.on_reclaim.value,
            capacity=str(self.admission.capacity),
            listen=", ".join(_address(port) for port in self.ports),
        )
        if self._issuance is not None:
            self._issuance.start()

    def _prepare(self, cache: CertCache) -> None:
        """See that certificates can be obtained and kept, before anything is said to start."""
        if self.settings.acme_ca_file is not None:
            check_authorities(self.settings.acme_ca_file)
        for folder in cache.prepare():
            self.saw(Event.CERT_CACHE_TIGHTENED, path=str(folder))

    def _make_issuance(self, cache: CertCache) -> Issuance:
        # 6 MiB and a fifth of a second that a relay without ACME has no use for; imported while
        # twistd still has the privileges to read whatever it was started from.
        from pyrycode_relay.acme import client, issuance  # noqa: PLC0415

        settings = self.settings
        ca = client.Ca(settings.acme_directory, settings.acme_email, settings.acme_ca_file)
        return issuance.Issuance(
            lambda key: client.Conversation(ca, key),
            frozenset(settings.domain),
            cache,
            self.challenge_site.challenges,
            self._read_certificates,
            self,
            self._clock,
            issuance.Thread(self._reactor, issuance.CALL_DEADLINE).run,
            time.time,
            self._random,
        )

    def _be_ready(self) -> None:
        """Be ready, unless there is a first certificate to wait for, or the end has begun."""
        if self.readiness is Readiness.STARTING and (
            self.certificates is None or self.certificates.ready
        ):
            self.readiness = Readiness.READY

    def _read_certificates(self) -> None:
        if self.certificates is not None:
            self.certificates.reload()
            self._be_ready()

    def reload(self) -> None:
        """Read the certificates again, and try again to get one if that has failed."""
        self._read_certificates()
        if self._issuance is not None:
            self._issuance.hurry()

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Drain: open no more, flush, tell every peer to go, and be done by the drain timeout."""
        super().stopService()
        if self.certificates is not None:
            self.certificates.stop()
        if self._issuance is not None:
            self._issuance.stop()
        self.readiness = Readiness.DRAINING
        phones = list(self._connections(self._phones))
        binaries = list(self._connections(self._binaries))
        self.saw(Event.DRAINING, version=__version__, binaries=len(binaries), phones=len(phones))
        limits = self.settings.limits
        count = len(phones) + len(binaries)
        spread = min(limits.drain_timeout * _DRAIN_SHARE, count * DRAIN_PACE)
        # Phones first: what they still send has a binary to go to.
        middle = spread * len(phones) / count if count else 0
        self._dismiss(phones, 0, middle)
        self._dismiss(binaries, middle, spread)
        deadline = self._clock.seconds() + limits.drain_timeout
        closed: list[Deferred[Any]] = [
            # One that fails, say because its UNIX socket's file is gone, must not end the drain.
            maybeDeferred(port.stopListening).addErrback(_log_close_failure)
            for port in self.ports
        ]
        self.ports.clear()
        emptied: Deferred[None] = Deferred()
        self._await_end(deadline, emptied)
        return gatherResults([*closed, emptied]).addCallback(self._drained)

    def _close_admin(self) -> Deferred[Any]:
        """End the operator's side, which is there up to the end of the drain."""
        if self.status is not None:
            self.status.history.stop()
        for channel in () if self.admin is None else [*self.admin.channels]:
            channel.forceAbortClient()
        port, self.admin_port = self.admin_port, None
        closed = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        return closed.addErrback(_log_close_failure)

    def _connections(self, factories: Sequence[RelayFactory]) -> Iterator[RelayProtocol]:
        for factory in factories:
            yield from factory.connections

    def _dismiss(self, peers: Sequence[RelayProtocol], start: float, end: float) -> None:
        for peer in peers:
            delay = self._random.uniform(start, end)
            self._dismissals.append(self._clock.callLater(delay, peer.part, EndCause.SHUTTING_DOWN))

    def _await_end(self, deadline: float, emptied: Deferred[None]) -> None:
        """Wait until every connection has gone; near the deadline, see to it."""
        limits = self.settings.limits
        left = deadline - self._clock.seconds()
        peers = [*self._connections(self._phones), *self._connections(self._binaries)]
        channels = [*self.site.channels, *self.challenge_site.channels]
        if left <= min(limits.close_timeout, limits.drain_timeout * _DRAIN_SHARE):
            for peer in peers:
                # Those that still wait for what is held for them.
                peer.close(EndCause.SHUTTING_DOWN, flush=False)
        if left <= 0:
            for peer in peers:
                self._aborted += 1
                peer.abort()
        if not peers or left <= 0:
            for channel in channels:
                # Nobody waits for a request that has not come.
                channel.forceAbortClient()
        if peers or channels:
            self._clock.callLater(_POLL, self._await_end, deadline, emptied)
        else:
            emptied.callback(None)

    def _drained(self, _: object) -> Deferred[Any]:
        for dismissal in self._dismissals:
            if dismissal.active():
                dismissal.cancel()
        self.exchange.registry.close()
        self._poller.stop()
        self.saw(Event.DRAINED, version=__version__, aborted=self._aborted)
        return self._close_admin()


def _sources(settings: Settings, cache: CertCache | None) -> list[Source]:
    """Return where certificates come from."""
    if cache is not None:
        return [Files(Pair(cache.fullchain, cache.privkey), awaited=True, option="--cert-cache")]
    return _given_sources(settings)


def check_certificates(settings: Settings, observer: Observer) -> None:
    """Read the operator's certificates as a start would. Raises `StartupError`."""
    if sources := _given_sources(settings):
        # Nothing is timed: the clock stands.
        Certificates(sources, settings.domain, observer, Clock()).load()


def _given_sources(settings: Settings) -> list[Source]:
    pairs = zip(settings.tls_cert, settings.tls_key, strict=True)
    files = [Files(Pair(certificate, key)) for certificate, key in pairs]
    return [*files, *map(Folder, settings.tls_dir)]


def _log_close_failure(failure: Failure) -> None:
    _bugs.failure("a listener did not close cleanly", failure)


def _cause(error: BaseException) -> str:
    """Return why a listener could not be opened, in the system's words."""
    reason = getattr(error, "socketError", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _address(port: IListeningPort) -> str:
    host: Any = port.getHost()
    if hasattr(host, "port"):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    name = getattr(host, "name", host)
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def handle_signals(stop: Callable[[], None], later: Callable[..., object]) -> None:
    """Make SIGTERM and SIGINT drain the relay, and a second one end the process at once.

    ``stop`` stops the reactor; ``later`` runs a function in its thread. Twisted's own handlers
    would end the process by the same signal after a drain that went well, so that a service
    manager sees a failure; with these it ends with 0.
    """

    def drain(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        later(stop)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, drain)
